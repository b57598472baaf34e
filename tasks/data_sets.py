"""The data sets that our tasks can be trained on: what they are called and what provides them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataSet:
    """One data set that our tasks can be trained on.

    Attributes:
        name: of its folder.
        repository: on the hub of `datasets`.
        config: one of the repository's configurations; None: it has only one.
        num_bytes: of what is downloaded, about.
        splits: those that tasks read.
        include: patterns of the files that are needed; empty: all.
    """

    name: str
    repository: str
    config: str | None
    num_bytes: int
    splits: tuple[str, ...] = ("train",)
    include: tuple[str, ...] = ()

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
            ("train.100", "validation"),
            ("clean/train.100/*", "clean/validation/*"),
        ),
        DataSet(
            "wikitext103",
            "Salesforce/wikitext",
            "wikitext-103-v1",
            310_000_000,
            ("train", "validation"),
            ("wikitext-103-v1/*",),
        ),
    )
}
