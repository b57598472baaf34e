"""Real data sets: where they lie, what is missing, and how one is opened.

A data set called NAME is looked for, in this order, as

    <folder>/NAME      what `hf download` puts there (Parquet files), or `Dataset.save_to_disk`
    the cache of the `datasets` library, if it has been loaded on this machine before

where <folder> is the sweep file's `data:`, else $SPECTRAL_SWEEPS_DATA, else
~/.cache/spectral-sweeps. Nothing is ever downloaded here: a thousand trials that start at once on a
cluster should not. Files are opened with Hugging Face's `datasets` (the extra `data` of the
installation), which maps them into memory.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.task import TaskError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "ENVIRONMENT",
    "SETS",
    "CorruptDataError",
    "DataSet",
    "MissingDataError",
    "folder",
    "missing",
    "open_split",
    "use",
]

ENVIRONMENT = "SPECTRAL_SWEEPS_DATA"
"""Environment variable that names the folder of data sets."""


class MissingDataError(TaskError):
    """A data set, or a package that reads it, is not on this machine; says what provides it."""


class CorruptDataError(TaskError):
    """A file of a data set cannot be read or is not what it should be; names the file."""


@dataclass(frozen=True)
class DataSet:
    """One data set that our tasks can be trained on.

    Attributes:
        name: of its folder.
        repository: on the hub of `datasets`.
        config: one of the repository's configurations; None: it has only one.
        num_bytes: of what is downloaded, about.
        include: patterns of the files that are needed; empty: all.
    """

    name: str
    repository: str
    config: str | None
    num_bytes: int
    include: tuple[str, ...] = field(default=())

    def command(self, target: Path) -> str:
        """The shell command that downloads it into a folder."""
        words = ["hf", "download", self.repository, "--repo-type", "dataset"]
        for pattern in self.include:
            words += ["--include", pattern]
        return shlex.join([*words, "--local-dir", str(target)])


SETS: dict[str, DataSet] = {
    each.name: each
    for each in (
        DataSet("cifar10", "uoft-cs/cifar10", None, 144_000_000),
        DataSet("cifar100", "uoft-cs/cifar100", None, 142_000_000),
        DataSet("mnist", "ylecun/mnist", None, 18_000_000),
        DataSet(
            "librispeech",
            "openslr/librispeech_asr",
            "clean",
            6_700_000_000,
            ("clean/train.100/*", "clean/validation/*"),
        ),
        DataSet(
            "wikitext103",
            "Salesforce/wikitext",
            "wikitext-103-v1",
            310_000_000,
            ("wikitext-103-v1/*",),
        ),
    )
}

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

    Looks at names of files only.
    """
    known = SETS[name]
    here = folder() / name
    problems = []
    if importlib.util.find_spec("datasets") is None:
        problems.append(
            f"data set {name}: the package `datasets` that reads it is not installed: "
            "pip install 'spectral-sweeps[data]'"
        )
    elif not (here.is_dir() and any(_saved_or_parquet(here))) and not _cached(known):
        size = _size(known.num_bytes)
        problems.append(
            f"data set {name} is not on this machine: looked in {here}. Download it there "
            f"(about {size}) with: {known.command(here)}. Or name the folder that holds a folder "
            f"{name!r} in the sweep file's `data:` or in ${ENVIRONMENT}."
        )
    return problems


def open_split(name: str, split: str) -> Dataset:
    """One split of a data set, mapped into memory.

    Args:
        name: one of `SETS`.
        split: as the hub names it, such as "train", "test", "validation" or "train.100".

    Raises:
        MissingDataError: it is not on this machine.
        CorruptDataError: it is, and cannot be read; names the file or folder.
    """
    if problems := missing(name):
        raise MissingDataError(problems[0])
    here, known = folder() / name, SETS[name]
    if not here.is_dir() or not any(_saved_or_parquet(here)):
        return _from_cache(known, split)
    saved = here / split
    if (saved / "state.json").is_file():
        from datasets import load_from_disk

        with _corrupt(saved):
            return load_from_disk(str(saved))
    files = _parquet_files(here, split)
    if not files:
        raise MissingDataError(
            f"data set {name}: there is no split {split!r} in {here}: expected Parquet files such "
            f"as {split}-00000-of-00001.parquet, or a folder {split} of Dataset.save_to_disk. "
            f"It is downloaded with: {known.command(here)}"
        )
    return _from_parquet(files)


def _saved_or_parquet(here: Path) -> Iterator[Path]:
    yield from here.glob("*/state.json")
    yield from here.rglob("*.parquet")


def _parquet_files(here: Path, split: str) -> list[Path]:
    """Files called <split>-*.parquet or <split>.parquet, or lying in a folder called <split>."""
    return sorted(
        path
        for path in here.rglob("*.parquet")
        if path.stem == split or path.name.startswith(f"{split}-") or path.parent.name == split
    )


def _from_parquet(files: list[Path]) -> Dataset:
    import pyarrow.parquet as pq
    from datasets import Dataset

    for path in files:  # one by one, to name the one that is damaged
        with _corrupt(path):
            pq.read_metadata(path)
    with _corrupt(files[0].parent):
        return Dataset.from_parquet([str(path) for path in files])


def _cached(known: DataSet) -> bool:
    from datasets import config

    place = Path(config.HF_DATASETS_CACHE) / known.repository.replace("/", "___")
    return any(place.rglob("dataset_info.json")) if place.is_dir() else False


def _from_cache(known: DataSet, split: str) -> Dataset:
    from datasets import DownloadConfig, load_dataset

    offline = DownloadConfig(local_files_only=True)
    with _corrupt(Path(known.repository)):
        return load_dataset(known.repository, known.config, split=split, download_config=offline)


@contextmanager
def _corrupt(place: Path) -> Iterator[None]:
    """Whatever a reader raises for a file becomes an error that names it."""
    try:
        yield
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise CorruptDataError(
            f"{place} cannot be read: {first or type(error).__name__}. Remove it and download it "
            "again."
        ) from error


def _size(num_bytes: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}"
    return f"{num_bytes} bytes"
