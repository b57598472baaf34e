"""Real data sets: where they lie, what is missing, and how one is opened.

A data set called NAME is looked for, in this order, as

    <folder>/NAME      what `hf download` puts there (Parquet files), or `Dataset.save_to_disk`
    the cache of the `datasets` library, if it has been loaded on this machine before

where <folder> is the sweep file's `data:`, else $SPECTRAL_SWEEPS_DATA, else
~/.cache/spectral-sweeps. Nothing is ever downloaded here: a thousand trials that start at once on a
cluster should not. Files are opened with Hugging Face's `datasets` (the extra `data` of the
installation), which maps them into memory; of Parquet files it keeps a copy in its own cache.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from errno import ENOENT
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.data_sets import SETS, DataSet
from tasks.task import TaskError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "ENVIRONMENT",
    "SETS",
    "CorruptDataError",
    "DataSet",
    "MissingDataError",
    "files_of",
    "folder",
    "missing",
    "open_split",
    "place",
    "use",
]

ENVIRONMENT = "SPECTRAL_SWEEPS_DATA"
"""Environment variable that names the folder of data sets."""


class MissingDataError(TaskError):
    """A data set, or a package that reads it, is not on this machine; says what provides it."""


class CorruptDataError(TaskError):
    """A file of a data set cannot be read or is not what it should be; names the file."""


_chosen: list[Path] = []  # what `use` was last told; at most one


def use(path: str | Path | None) -> None:
    """Look for data sets in this folder from now on; None: as the environment says."""
    _chosen[:] = [] if path is None else [Path(path).expanduser()]


def folder() -> Path:
    """The folder that holds one folder per data set; it need not exist."""
    if _chosen:
        return _chosen[0]
    named = os.environ.get(ENVIRONMENT)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "spectral-sweeps"


def missing(name: str) -> list[str]:
    """What keeps this machine from opening a data set: at most one text; empty if nothing does.

    Looks at names of files only: at all splits of `DataSet.splits`, and whether one that is said to
    be in several files (train-00000-of-00002.parquet) is there in full.
    """
    if not _installed():
        return [
            f"data set {name}: the package `datasets` that reads it is not installed: "
            "pip install 'spectral-sweeps[data]'"
        ]
    known, here = SETS[name], folder() / name
    found = {split: _find(known, split) for split in known.splits}
    if all(files.complete for files in found.values()):
        return []
    if not any(files.paths for files in found.values()):
        return [
            f"data set {name} is not on this machine: looked in {here}. Download it there "
            f"(about {known.size}) with: {known.command(here)}. Or name the folder "
            f"that holds a folder {name!r} in the sweep file's `data:` or in ${ENVIRONMENT}."
        ]
    lacking = [_lacking(known, split, files) for split, files in found.items()]
    return [f"data set {name}: {'; '.join(text for text in lacking if text)}. {_again(known)}"]


def open_split(name: str, split: str) -> Dataset:
    """One split of a data set, mapped into memory.

    Images and sounds are left as they are encoded, `{"bytes": ..., "path": ...}`: decoding them is
    the reader's, who knows the row that fails.

    Args:
        name: one of `SETS`.
        split: as the hub names it, such as "train", "test", "validation" or "train.100".

    Raises:
        MissingDataError: it, or a file of this split, is not on this machine.
        CorruptDataError: it is, and cannot be read, or has not as many rows as it should; names the
            file, or the folder of several.
    """
    known = SETS[name]
    if not _installed() or not any(_find(known, each).paths for each in (*known.splits, split)):
        raise MissingDataError(missing(name)[0])
    files = _find(known, split)
    if not files.complete:
        raise MissingDataError(f"data set {name}: {_lacking(known, split, files)}. {_again(known)}")
    folders = dict.fromkeys(path.parent for path in files.paths)
    if len(folders) > 1:
        raise CorruptDataError(
            f"data set {name}: files of split {split!r} lie in several folders: "
            f"{', '.join(map(str, folders))}. Keep one of them."
        )
    opened = _READERS[files.kind](list(files.paths))
    expected = known.rows.get(split, len(opened))
    if len(opened) != expected:
        raise CorruptDataError(
            f"{place(name, split)} has {len(opened):,} rows, and split {split!r} of data set "
            f"{name} should have {expected:,}. Remove it and download it again: "
            f"{known.command(folder() / name)}"
        )
    for column, feature in opened.features.items():
        if getattr(feature, "decode", False):
            opened = opened.cast_column(column, replace(feature, decode=False))
    return opened


def place(name: str, split: str) -> Path:
    """The file that holds a split, or the folder of several, as messages name it."""
    files = _find(SETS[name], split)
    return files.paths[0] if len(files.paths) == 1 else files.paths[0].parent


def files_of(name: str, split: str) -> list[tuple[Path, int]]:
    """The files of a split and how many rows of it each holds, in their order.

    For a message about one row. A split of `Dataset.save_to_disk` is one folder.
    """
    files = _find(SETS[name], split)
    if files.kind == "parquet":
        import pyarrow.parquet as pq

        return [(path, pq.read_metadata(path).num_rows) for path in files.paths]
    return [(path, len(_READERS[files.kind]([path]))) for path in files.paths]


@dataclass(frozen=True)
class _Files:
    """The files of one split.

    Attributes:
        kind: key of `_READERS`.
        paths: those that are there; of a saved split its folder.
        absent: numbers of the files that are said to exist and are not there, from 0.
    """

    kind: str
    paths: tuple[Path, ...]
    absent: tuple[int, ...] = ()

    @property
    def complete(self) -> bool:
        return bool(self.paths) and not self.absent


def _find(known: DataSet, split: str) -> _Files:
    """The files of a split, in the data set's folder or else in the cache."""
    here = folder() / known.name
    saved = here / split
    if (saved / "state.json").is_file():
        return _Files("saved", (saved,))
    # A repository may hold other configurations beside the one that is wanted.
    root = here / known.config if known.config and (here / known.config).is_dir() else here
    found = [
        path
        for path in root.rglob("*.parquet")
        if path.stem == split or path.name.startswith(f"{split}-") or path.parent.name == split
    ]
    if found:
        return _Files("parquet", tuple(sorted(found)), _absent(found))
    return _find_in_cache(known, split)


def _find_in_cache(known: DataSet, split: str) -> _Files:
    """<cache>/<owner>___<name>/<configuration>/<version>/<hash>/<name>-<split>[-i-of-n].arrow."""
    from datasets import config

    root = Path(config.HF_DATASETS_CACHE) / known.repository.replace("/", "___")
    # Written last: without it, the folder is one that is still being made.
    prepared = sorted(
        (file.stat().st_mtime, file.parent)
        for file in root.glob(f"{known.config or '*'}/*/*/dataset_info.json")
    )
    for _, place in reversed(prepared):  # the newest first
        found = [*place.glob(f"*-{split}.arrow"), *place.glob(f"*-{split}-*-of-*.arrow")]
        if found:
            return _Files("arrow", tuple(sorted(found)), _absent(found))
    return _Files("arrow", ())


def _absent(found: Iterable[Path]) -> tuple[int, ...]:
    """Of files called ...-00003-of-00014.parquet, the numbers that are not among them."""
    numbered = [re.search(r"-(\d+)-of-(\d+)$", path.stem) for path in found]
    numbers = {int(match[1]) for match in numbered if match}
    total = max((int(match[2]) for match in numbered if match), default=0)
    return tuple(sorted(set(range(total)) - numbers))


def _lacking(known: DataSet, split: str, files: _Files) -> str:
    here = folder() / known.name
    if files.absent:
        numbers = ", ".join(map(str, files.absent[:10])) + (", ..." if files.absent[10:] else "")
        return (
            f"of the {len(files.paths) + len(files.absent)} files of split {split!r} in "
            f"{files.paths[0].parent}, counted from 0, these are not there: {numbers}"
        )
    if not files.paths:
        return (
            f"there is no split {split!r} in {here}: expected Parquet files such as "
            f"{split}-00000-of-00001.parquet, or a folder {split} of Dataset.save_to_disk"
        )
    return ""


def _again(known: DataSet) -> str:
    # `hf download` fetches only what is not there yet; how much that is, only the hub knows.
    command = known.command(folder() / known.name)
    return f"What is not there is downloaded with (all of it is about {known.size}): {command}"


def _installed() -> bool:
    spec = importlib.util.find_spec("datasets")
    # A mere folder called datasets, in the working directory, has no origin.
    return spec is not None and spec.origin is not None


def _from_saved(paths: list[Path]) -> Dataset:
    from datasets import load_from_disk

    with _corrupt(paths[0]):
        return load_from_disk(str(paths[0]))


def _from_parquet(paths: list[Path]) -> Dataset:
    import pyarrow.parquet as pq
    from datasets import Dataset

    for path in paths:  # one by one, to name the one that is damaged
        with _corrupt(path):
            pq.read_metadata(path)
    with _corrupt(paths[0] if len(paths) == 1 else paths[0].parent), _quietly():
        return Dataset.from_parquet([str(path) for path in paths])


def _from_arrow(paths: list[Path]) -> Dataset:
    from datasets import Dataset, concatenate_datasets

    parts = []
    for path in paths:
        with _corrupt(path):
            parts.append(Dataset.from_file(str(path)))
    return concatenate_datasets(parts)


_READERS = {"saved": _from_saved, "parquet": _from_parquet, "arrow": _from_arrow}


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the bar of progress that `datasets` draws into whatever else is being printed."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _corrupt(place: Path) -> Iterator[None]:
    """Whatever a reader raises for a file becomes an error that names it.

    Except what is no fault of the file, such as a full disk or a missing permission: that is
    raised as it is, and nobody is told to remove anything. A file that another one refers to and
    that is not there is a fault.
    """
    try:
        yield
    except Exception as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        errno = getattr(root, "errno", None)  # of the operating system's errors, not of Arrow's
        if isinstance(root, MemoryError) or errno not in (None, ENOENT):
            raise
        first = str(root).strip().split("\n")[0]
        raise CorruptDataError(
            f"{place} cannot be read: {first or type(root).__name__}. Remove it and download it "
            "again."
        ) from error
