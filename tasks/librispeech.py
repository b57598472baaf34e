"""LibriSpeech as features: computed once per data folder, then mapped into memory.

The 6.7 GB of sound become 2 GB of features in <data folder>/features, or below the home folder if
the data may only be read; that takes minutes, and every later trial of any process maps that file.
Two forms of the data set are read, with the same result:

    <data folder>/librispeech/**/*.parquet, or the cache of `datasets`      see `tasks.data`
    <data folder>/librispeech/LibriSpeech/train-clean-100/SPEAKER/CHAPTER   the unpacked archives:
                                         .../dev-clean                      FLAC and .trans.txt

Source: Panayotov, Chen, Povey & Khudanpur, "Librispeech: an ASR corpus based on public domain audio
books", ICASSP 2015.
"""

from __future__ import annotations

import bisect
import fcntl
import hashlib
import itertools
import os
import platform
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
from tasks.task import TaskError
from tasks.transcripts import encode, padded

VERSION = 1
"""Raised when features or transcripts would come out otherwise; part of the stored file's name."""

SPLITS = {"train.100": "train-clean-100", "validation": "dev-clean"}
"""Name in Parquet files -> folder of the archives; the first is trained on."""

NUM_UTTERANCES = {"train.100": 28_539, "validation": 2_703}
"""Utterances of each split; data with another number are refused."""

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
    """All of train-clean-100, for training, and dev-clean; in each by the utterances' ids.

    Raises:
        MissingDataError: the data set is not on this machine.
        CorruptDataError: it is not complete, or a file of it or of the features cannot be read;
            names the file or the folder.
        TaskError: the features cannot be written.
    """
    if problems := missing():
        raise data.MissingDataError(" ".join(problems))
    # A caller may be working under a default device; what is read here is always on the CPU.
    with torch.device("cpu"):
        splits = [_entries(split) for split in SPLITS]
        entries = [entry for split in splits for entry in split]
        frames, lengths = _stored(_place(entries), len(entries))
        targets, target_lengths = padded(encode(entry.text) for entry in entries)
    return Utterances(
        frames,
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
    """A whole split, sorted: its order is the same in both forms, and so are batches."""
    folder, target = _unpacked(), data.folder() / "librispeech"
    found = _of_folder(folder / SPLITS[split]) if folder else _of_table(split)
    entries = sorted(found, key=lambda entry: entry.id_)
    if len(entries) != NUM_UTTERANCES[split]:
        where = folder / SPLITS[split] if folder else data.place("librispeech", split)
        again = (
            f"Unpack the archive {SPLITS[split]} again"
            if folder
            else f"Download it again: {data.SETS['librispeech'].command(target)}"
        )
        raise data.CorruptDataError(
            f"{where}: expected {NUM_UTTERANCES[split]:,} utterances, got {len(entries):,}. {again}"
        )
    return entries


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
    table = data.open_split("librispeech", split).with_format("arrow")
    texts = table.select_columns(["id", "text"])[:].to_pylist()
    sounds = table.select_columns(["audio"])
    files = data.files_of("librispeech", split)
    ends = list(itertools.accumulate(rows for _, rows in files))

    def read(row: int, id_: str) -> Tensor:
        audio = sounds[row].to_pylist()[0]["audio"] or {"bytes": None, "path": None}
        file, _ = files[bisect.bisect_right(ends, row)]
        where = f"{file}, split {split}, utterance {id_}"
        if audio["bytes"] is not None:
            return read_sound(audio["bytes"], where)
        if audio["path"] is None:
            raise data.CorruptDataError(
                f"{where}: there is no sound, and no path of a file with it. Download the data set "
                "again."
            )
        return read_sound(Path(audio["path"]), where)

    for row, each in enumerate(texts):
        id_ = each["id"]
        yield _Entry(id_, each["text"], lambda row=row, id_=id_: read(row, id_))  # type: ignore[misc]


def _place(entries: list[_Entry]) -> Path:
    """The folder of their features; computed first if there is none.

    Beside the data sets, or below the home folder if those may only be read.
    """
    key = hashlib.sha256("\n".join(f"{e.id_} {e.text}" for e in entries).encode()).hexdigest()
    homes = (data.folder(), Path.home() / ".cache" / "spectral-sweeps")
    folders = list(dict.fromkeys(home / "features" for home in homes))
    places = [folder / f"librispeech-{VERSION}-{key[:16]}" for folder in folders]
    for place in places:
        if place.is_dir():
            return place
    for place in places:
        if _may_write(place.parent):
            _make(entries, place)
            return place
    raise TaskError(
        f"the features of librispeech cannot be written to {' or '.join(map(str, folders))}. Allow "
        "that, or name another folder with the data set in the sweep file's `data:` or in "
        f"${data.ENVIRONMENT}"
    )


def _may_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _make(entries: list[_Entry], place: Path) -> None:
    """By the first process that comes; the others wait for it."""
    try:
        with _alone(place.with_name(f".{place.name}.lock")) as alone:
            if not place.is_dir():
                _compute(entries, place, alone)
    except OSError as error:
        raise TaskError(
            f"the features of librispeech cannot be written to {place.parent}: "
            f"{error.strerror or error}. Make room there, or name another folder with the data set "
            f"in the sweep file's `data:` or in ${data.ENVIRONMENT}"
        ) from error


def _stored(place: Path, count: int) -> tuple[Tensor, Tensor]:
    """(features of all `count` utterances, mapped into memory, and the lengths of each)."""
    file, again = place / "lengths.npy", f"Remove {place}; the features are then computed anew."
    try:
        lengths = np.load(file)
        if lengths.shape != (count,) or lengths.dtype != np.int64:
            found = f"{lengths.dtype} of shape {lengths.shape}"
            raise ValueError(f"expected {count} lengths in int64, got {found}")
        file = place / "frames.f32"
        size, expected = file.stat().st_size, int(lengths.sum()) * MELS * np.float32().itemsize
        if size != expected:
            raise ValueError(f"expected {expected} bytes, got {size}")
        # Copy on write, because torch refuses memory that is read-only; nothing writes to it.
        frames = np.memmap(file, np.float32, "c", shape=(int(lengths.sum()), MELS))
    except (OSError, ValueError, EOFError) as error:
        raise data.CorruptDataError(f"{file} cannot be read: {error}. {again}") from error
    return torch.from_numpy(frames), torch.from_numpy(lengths)


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """One process at a time, and True; where the file system knows no locks, all at once.

    They all work then, and the first wins. A lock of a file system may end at its host.
    """
    with path.open("w") as file:
        locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            locked = False
        yield locked


def _compute(entries: list[_Entry], place: Path, alone: bool) -> None:
    """Write features to a folder that is complete whenever it is visible.

    `alone`: no other process of this host is doing so. What one that was killed has left behind is
    then removed.
    """
    ours = f".{place.name}-{platform.node()}-"
    for left in place.parent.glob(f"{ours}*") if alone else ():
        shutil.rmtree(left, ignore_errors=True)
    hidden = place.with_name(f"{ours}{uuid.uuid4().hex[:8]}")
    hidden.mkdir()
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
