"""The data sets that our tasks can be trained on: what they are called and what provides them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
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
        rows: how many a split has, where nobody else would notice that some are lacking.
    """

    name: str
    repository: str
    config: str | None
    num_bytes: int
    splits: tuple[str, ...] = ("train",)
    include: tuple[str, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)

    @property
    def size(self) -> str:
        """`num_bytes` for the reader."""
        for unit, scale in (("GB", 10**9), ("MB", 10**6)):
            if self.num_bytes >= scale:
                return f"{self.num_bytes / scale:.3g} {unit}"
        return f"{self.num_bytes} bytes"

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
            {"train": 1_801_350, "validation": 3_760},
        ),
    )
}
