"""LibriSpeech as features: computed once per data folder, then mapped into memory.

The 6.7 GB of sound become 2 GB of features in <data folder>/features, which takes minutes; every
later trial of any process maps that file. Two forms of the data set are read:

    <data folder>/librispeech/**/*.parquet, or the cache of `datasets`      see `tasks.data`
    <data folder>/librispeech/LibriSpeech/train-clean-100/SPEAKER/CHAPTER   the unpacked archives:
                                         .../dev-clean                      FLAC and .trans.txt

Source: Panayotov, Chen, Povey & Khudanpur, "Librispeech: an ASR corpus based on public domain audio
books", ICASSP 2015.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tasks import data
from tasks.audio import MELS, Utterances, features, missing_readers, read_sound
from tasks.transcripts import encode, padded

VERSION = 1
"""Raised when features or transcripts would come out otherwise; part of the stored file's name."""

SPLITS = {"train.100": "train-clean-100", "validation": "dev-clean"}
"""Name in Parquet files -> folder of the archives; the first is trained on."""

_SECONDS_BETWEEN_MESSAGES = 20.0


@dataclass(frozen=True)
class _Entry:
    """One utterance that has not been read yet."""

    id_: str
    text: str
    read: Callable[[], Tensor]


def missing() -> list[str]:
    """What keeps this machine from training on LibriSpeech; looks at names of files only."""
    problems = missing_readers()
    if _unpacked() is None:
        problems += [
            f"{problem} The unpacked archives train-clean-100 and dev-clean are read too, from "
            f"{data.folder() / 'librispeech' / 'LibriSpeech'}."
            for problem in data.missing("librispeech")
        ]
    return problems


def utterances() -> Utterances:
    """All of train-clean-100, for training, and dev-clean.

    Raises:
        MissingDataError: the data set is not on this machine.
        CorruptDataError: a file of it cannot be read; names it.
    """
    if problems := missing():
        raise data.MissingDataError(" ".join(problems))
    splits = [_entries(split) for split in SPLITS]
    entries = [entry for split in splits for entry in split]
    name = hashlib.sha256("\n".join(f"{e.id_} {e.text}" for e in entries).encode()).hexdigest()
    place = _writable_folder() / f"librispeech-{VERSION}-{name[:16]}"
    if not place.is_dir():
        with _alone(place.with_name(f".{place.name}.lock")):
            if not place.is_dir():
                _compute(entries, place)
    lengths = torch.from_numpy(np.load(place / "lengths.npy"))
    targets, target_lengths = padded(encode(entry.text) for entry in entries)
    # Copy on write, because torch refuses memory that is read-only; nothing writes to it.
    frames = np.memmap(place / "frames.f32", np.float32, "c", shape=(int(lengths.sum()), MELS))
    return Utterances(
        torch.from_numpy(frames),
        lengths.cumsum(0) - lengths,
        lengths,
        targets.to(torch.uint8),
        target_lengths,
        len(splits[0]),
    )


def _unpacked() -> Path | None:
    """The folder that holds both archives' folders, if they were unpacked."""
    here = data.folder() / "librispeech"
    for folder in (here / "LibriSpeech", here):
        if all((folder / name).is_dir() for name in SPLITS.values()):
            return folder
    return None


def _entries(split: str) -> list[_Entry]:
    folder = _unpacked()
    return list(_of_folder(folder / SPLITS[split]) if folder else _of_table(split))


def _of_folder(folder: Path) -> Iterator[_Entry]:
    found = sorted(folder.glob("*/*/*.trans.txt"))
    if not found:
        raise data.MissingDataError(
            f"{folder}: there is no SPEAKER/CHAPTER/*.trans.txt; unpack the archive again"
        )
    for transcripts in found:
        for line in transcripts.read_text(encoding="utf-8").splitlines():
            id_, _, text = line.partition(" ")
            sound = transcripts.parent / f"{id_}.flac"
            yield _Entry(id_, text.strip(), lambda path=sound: read_sound(path, str(path)))  # type: ignore[misc]


def _of_table(split: str) -> Iterator[_Entry]:
    # As Arrow, columns come as they are stored: `datasets` decodes sound with another library.
    home = data.folder() / "librispeech"
    table = data.open_split("librispeech", split).with_format("arrow")
    texts = table.select_columns(["id", "text"])[:].to_pylist()
    sounds = table.select_columns(["audio"])

    def read(row: int, id_: str) -> Tensor:
        audio = sounds[row].to_pylist()[0]["audio"]
        source = Path(audio["path"]) if audio["bytes"] is None else audio["bytes"]
        return read_sound(source, f"{home}, split {split}, utterance {id_}")

    for row, each in enumerate(texts):
        id_ = each["id"]
        yield _Entry(id_, each["text"], lambda row=row, id_=id_: read(row, id_))  # type: ignore[misc]


def _writable_folder() -> Path:
    """Beside the data sets, or under the home folder if those may only be read."""
    beside = data.folder()
    if not os.access(beside, os.W_OK):
        beside = Path.home() / ".cache" / "spectral-sweeps"
    return beside / "features"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; where the file system knows no locks, all work and the first wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield


def _compute(entries: list[_Entry], place: Path) -> None:
    """Write features to a folder that is complete whenever it is visible."""
    hidden = place.with_name(f".{place.name}-{uuid.uuid4().hex[:8]}")
    hidden.mkdir(parents=True)
    lengths, told = [], time.monotonic()
    try:
        with (hidden / "frames.f32").open("wb") as file:
            for done, entry in enumerate(entries):
                frames = features(entry.read())
                lengths.append(len(frames))
                file.write(frames.contiguous().numpy().tobytes())
                if time.monotonic() - told > _SECONDS_BETWEEN_MESSAGES:
                    told = time.monotonic()
                    _say(f"computing features, once: {done + 1} of {len(entries)} utterances")
        np.save(hidden / "lengths.npy", np.array(lengths, np.int64))
        try:
            hidden.rename(place)
        except OSError:
            if not place.is_dir():
                raise  # not because another process was first
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _say(text: str) -> None:
    print(f"librispeech: {text}", file=sys.stderr, flush=True)
