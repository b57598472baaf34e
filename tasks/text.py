"""English text as token ids, cut into chunks: the documentation of Python, and WikiText-103."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shlex
import string
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks import data
from tasks.data import CorruptDataError, MissingDataError
from tasks.task import TaskError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "ALPHABET",
    "BATCH_LINES",
    "GPT_NEOX_TOKENS",
    "TOKENIZER_BYTES",
    "Corpus",
    "cleaned",
    "corpus",
    "missing",
    "tokenizer_command",
    "tokenizer_file",
]

ALPHABET = " " + string.digits + string.ascii_lowercase
"""The characters of the embedded text; the place of one is its token id."""

GPT_NEOX_TOKENS = 50_277
"""Tokens of EleutherAI/gpt-neox-20b's tokenizer, those added to its vocabulary of 50,254 included.

They stand for runs of spaces, and a text without its punctuation has such runs. Known here, and not
read from the tokenizer's file, so that a model can be built where there are no data.
"""

BATCH_LINES = 1000
"""Lines of WikiText-103 whose tokens are joined before they are cut into chunks."""

_CLEANING = "2"  # raised when `cleaned` changes: token ids on disk are then made anew
_ABANDONED_SECONDS = 600.0  # who writes a temporary file touches it at every batch of lines
TOKENIZER_BYTES = 2_100_000
"""Of the tokenizer's file, about."""


@dataclass(frozen=True)
class Corpus:
    """One text, tokenised.

    Attributes:
        tokens: uint16, the whole text; may be a read-only file mapped into memory.
        ends: int64, ascending: where each batch of lines ends in `tokens`.
    """

    tokens: NDArray[np.uint16]
    ends: NDArray[np.int64]

    def starts(self, length: int) -> NDArray[np.int64]:
        """Where each chunk of `length` tokens begins, int64, ascending.

        Chunks follow each other without overlap inside a batch of lines; what is left at the end of
        a batch, fewer than `length` tokens, belongs to none.
        """
        begins = np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])
        counts = (self.ends - begins) // length
        place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.asarray(np.repeat(begins, counts) + place * length, dtype=np.int64)


def cleaned(line: str) -> str:
    """Lower case, and only letters and digits (as `str.isalnum`) and white space (`str.isspace`).

    Line ends are white space, and stay. What is removed leaves no space behind: in WikiText
    punctuation stands between spaces already.

    Source: Yunis et al., arXiv 2408.11804 (their text; their code has this filter, and drops what
    it returns).
    """
    return re.sub(r"[^\w\s]|_", "", line.lower())


def missing(name: str, vocabulary: int | None = None) -> list[str]:
    """What keeps this machine from opening a text; see `corpus` for the arguments.

    Looks for files and packages, and reads none.
    """
    problems = []
    if name == "wikitext103":
        problems += data.missing(name)
        file = tokenizer_file()
        if not file.is_file():
            problems.append(
                f"the tokenizer of wikitext103 is not on this machine: looked for {file}. Download "
                f"it there (about {TOKENIZER_BYTES / 1e6:.1f} MB) with: {tokenizer_command()}"
            )
    elif importlib.util.find_spec("pydoc_data") is None:
        problems.append(
            "data set python_docs: this Python comes without the module pydoc_data.topics that "
            "holds the text; install the full standard library (on Debian: libpython3-stdlib)"
        )
    if (name == "wikitext103" or vocabulary is not None) and not _installed("tokenizers"):
        problems.append(
            f"data set {name}: the package `tokenizers` that makes its tokens is not installed: "
            "pip install 'spectral-sweeps[data]'"
        )
    return problems


def corpus(
    name: str, split: str = "train", vocabulary: int | None = None, clean: bool = True
) -> Corpus:
    """A text as token ids; for `python_docs`, kept for the life of the process.

    Args:
        name: "python_docs", one text of about 380,000 characters without splits, or "wikitext103".
        split: of wikitext103, "train" or "validation".
        vocabulary: of python_docs: byte-pair tokens to train on it, or None for its characters.
        clean: of wikitext103: whether each line goes through `cleaned`; python_docs has a cleaning
            of its own.

    Raises:
        MissingDataError: something of it is not on this machine.
        CorruptDataError: a file cannot be read, or is not what it should be; names the file.
        TaskError: the token ids cannot be written to the data folder.
    """
    if problems := missing(name, vocabulary):
        raise MissingDataError("\n".join(problems))
    return _wikitext103(split, clean) if name == "wikitext103" else _python_docs(vocabulary)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@functools.cache
def _python_docs(vocabulary: int | None) -> Corpus:
    from pydoc_data.topics import topics

    # A space for what is removed, unlike `cleaned`: here punctuation stands between words.
    text = " ".join(topics[name] for name in sorted(topics)).lower()
    text = re.sub("[^a-z0-9]+", " ", text).strip()
    if vocabulary is None:
        ids = np.zeros(128, np.uint16)
        ids[[ord(c) for c in ALPHABET]] = np.arange(len(ALPHABET))
        tokens = ids[np.frombuffer(text.encode("ascii"), np.uint8)]
    else:
        tokens = _byte_pairs(text, vocabulary)
    return Corpus(tokens, np.array([len(tokens)]))


def _byte_pairs(text: str, vocabulary: int) -> NDArray[np.uint16]:
    """Token ids of a text in a byte-pair vocabulary trained on that same text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return np.array(tokenizer.encode(text).ids, np.uint16)


def tokenizer_file() -> Path:
    """Where the tokenizer of wikitext103 is looked for."""
    return data.folder() / "gpt-neox-20b" / "tokenizer.json"


def tokenizer_command() -> str:
    """The shell command that downloads it there."""
    folder = str(tokenizer_file().parent)
    words = ["hf", "download", "EleutherAI/gpt-neox-20b", "tokenizer.json", "--local-dir", folder]
    return shlex.join(words)


def _tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer

    file = tokenizer_file()
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:
        raise CorruptDataError(
            f"{file} cannot be read: {error}. Remove it and download it again: "
            f"{tokenizer_command()}"
        ) from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= GPT_NEOX_TOKENS:
        raise CorruptDataError(
            f"{file} has token ids up to {largest}, that of EleutherAI/gpt-neox-20b up to "
            f"{GPT_NEOX_TOKENS - 1}. Remove it and download it again: {tokenizer_command()}"
        )
    return tokenizer


def _wikitext103(split: str, clean: bool) -> Corpus:
    """Token ids on disk, made by the first process that needs them."""
    lines = data.open_split("wikitext103", split)
    if "text" not in lines.column_names:
        raise CorruptDataError(
            f"{data.place('wikitext103', split)}: expected a column `text`, got "
            f"{', '.join(lines.column_names)}. Remove it and download it again."
        )
    cleaning = _CLEANING if clean else "none"
    key = hashlib.sha256(f"{cleaning} {len(lines)} ".encode() + tokenizer_file().read_bytes())
    folder = data.folder() / "wikitext103-tokens"
    tokens = folder / f"{split}-{key.hexdigest()[:16]}.uint16"
    ends = tokens.with_suffix(".ends.npy")
    if not (tokens.is_file() and ends.is_file()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _one_at_a_time(tokens.with_suffix(".lock")):
                if not (tokens.is_file() and ends.is_file()):
                    _remove_abandoned(tokens)
                    _tokenise(lines, _tokenizer(), tokens, ends, clean)
        except OSError as error:
            raise TaskError(
                f"the token ids of wikitext103 cannot be written to {folder}: "
                f"{error.strerror or error}. "
                f"Make room there, or name another folder in the sweep file's `data:` or in "
                f"${data.ENVIRONMENT}"
            ) from error
    return _kept(tokens, ends)


def _kept(tokens: Path, ends: Path) -> Corpus:
    """The two files of a text as one; refuses what was cut short since they were written."""
    again = "Remove it: the next trial makes it anew."
    try:
        stops = np.load(ends)
        if stops.dtype != np.int64 or stops.ndim != 1 or (np.diff(stops, prepend=0) < 0).any():
            raise ValueError("no ascending row of 64-bit integers")
    except (ValueError, EOFError, OSError) as error:
        raise CorruptDataError(f"{ends} cannot be read: {error}. {again}") from error
    size = tokens.stat().st_size
    if size != (expected := 2 * int(stops[-1]) if len(stops) else 0):
        raise CorruptDataError(
            f"{tokens} has {size} bytes, and should have {expected}: it is damaged. {again}"
        )
    if size == 0:
        return Corpus(np.zeros(0, np.uint16), stops)
    # Copy-on-write: torch refuses to share memory that it may not write to.
    return Corpus(np.memmap(tokens, np.uint16, mode="c"), stops)


def _remove_abandoned(tokens: Path) -> None:
    """What processes that were killed while they wrote have left behind.

    Only what nobody has touched for a while: where locks do not reach other hosts, one of those may
    be writing.
    """
    for suffix in (".part", ".ends"):
        for path in tokens.parent.glob(f"{tokens.name}.*{suffix}"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()


def _tokenise(lines: Any, tokenizer: Tokenizer, tokens: Path, ends: Path, clean: bool) -> None:
    """Write both files under other names first: whoever sees `tokens` sees all of both."""
    part = tokens.with_name(f"{tokens.name}.{uuid.uuid4().hex}.part")
    found, total = [], 0
    try:
        with part.open("wb") as file:
            for begin in range(0, len(lines), BATCH_LINES):
                some = lines[begin : begin + BATCH_LINES]["text"]
                if clean:
                    some = [cleaned(line) for line in some]
                for encoded in tokenizer.encode_batch(some, add_special_tokens=False):
                    file.write(np.array(encoded.ids, np.uint16).tobytes())
                    total += len(encoded.ids)
                found.append(total)
        with part.with_suffix(".ends").open("wb") as file:
            np.save(file, np.array(found, np.int64))
        part.with_suffix(".ends").replace(ends)
        part.replace(tokens)
    finally:
        part.unlink(missing_ok=True)
        part.with_suffix(".ends").unlink(missing_ok=True)


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """One process of a host after the other; the kernel lets go when its holder dies.

    Where the file system has no flock they go on together, and write the same bytes.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
