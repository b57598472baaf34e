"""What a snapshot measures: the `measure` field of a sweep file, and its part of an identity.

    measure: [ranks, spectrum]                             # a list of groups, the default
    measure: {groups: [ranks, agreement], vectors: 50}     # or a mapping of groups and options

A worker is handed a `Measure` with each trial, so nothing here imports torch or reads YAML.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from typing import Any, Literal

from orchestrator.nodes import Node, Problems, nearest
from orchestrator.schedules import KINDS, Schedule, schedule_of

Keep = Literal["none", "final", "all"]
KEEP = ("none", "final", "all")
DEFAULT_GROUPS: tuple[str, ...] = ("ranks", "spectrum")
DEFAULT_VECTORS = 100
DEFAULT_FRACTIONS = (0.5,)
MOST_PRUNED = 10
"""Steps at which pruned models are evaluated unless the file says when."""
USE_VECTORS = ("alignment", "agreement", "update")
"""The groups that need singular vectors."""
OPTIONS = ("groups", "vectors", "views", "residual", "keep", "workspace", "pruned")
PRUNED_OPTIONS = ("fractions", "last", *KINDS)


@dataclass(frozen=True)
class Measure:
    """What is measured at every snapshot of a trial. Picklable (without `places`), hashable.

    Attributes:
        groups: names of ``spectral.MEASUREMENTS``, sorted.
        vectors: leading singular vectors per matrix, at most its rank R; None: min(100, R).
        views: sorted patterns of view names, see `chooses`; empty: every view.
        residual: whether couplings across residual streams are measured too.
        fractions: ascending, each in (0, 1): shares of singular directions that pruned models keep.
        exempt_last: whether pruned models keep their last matrix whole.
        pruned: when pruned models are evaluated; None: see `steps`.
        keep: of which snapshots the leading singular vectors stay in the store.
        workspace: bytes that decompositions may take at once; None: spectral's default. It changes
            no number, so it is no part of an identity.
        places: where the options stand in the file: "measure", "vectors", "residual", "pruned",
            "groups:<name>" and "views:<pattern>".
    """

    groups: tuple[str, ...]
    vectors: int | None = None
    views: tuple[str, ...] = ()
    residual: bool = False
    fractions: tuple[float, ...] = DEFAULT_FRACTIONS
    exempt_last: bool = True
    pruned: Schedule | None = None
    keep: Keep = "none"
    workspace: int | None = None
    places: Mapping[str, Node] = field(default_factory=dict, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[Measure], tuple[Any, ...]]:
        return type(self), tuple(getattr(self, each.name) for each in fields(self) if each.compare)

    @property
    def uses_vectors(self) -> bool:
        """Whether a group needs singular vectors."""
        return not set(USE_VECTORS).isdisjoint(self.groups)

    def num_vectors(self, rank: int) -> int:
        """How many leading singular vectors there are of a matrix with R = `rank`."""
        return min(self.vectors or DEFAULT_VECTORS, rank)

    def chooses(self, view: str) -> bool:
        """Whether the view of this name is measured.

        ``*`` stands for any text and ``?`` for any character. Brackets stand for themselves,
        because names have them: ``layers.*.query[0]`` is the first head of each layer.
        """
        patterns = (pattern.replace("[", "[[]") for pattern in self.views)
        return not self.views or any(fnmatch.fnmatchcase(view, pattern) for pattern in patterns)

    def steps(self, snapshots: Sequence[int], last: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The steps of snapshots, and those among them at which pruned models are evaluated.

        The latter are none without the group ``pruned``; with a schedule they are its steps, which
        are added to the snapshots; else at most ten snapshots, evenly by rank, first and last in.

        Args:
            snapshots: ascending steps that the sweep's own schedule chooses.
            last: steps of the trial.
        """
        if "pruned" not in self.groups:
            return tuple(snapshots), ()
        if self.pruned is None:
            return tuple(snapshots), _evenly(snapshots)
        pruned = self.pruned.steps(last)
        return tuple(sorted({*snapshots, *pruned})), pruned

    def content(self, snapshots: Sequence[int], pruned: Sequence[int]) -> Any:
        """What an identity hashes of it, in JSON types.

        The list of groups if every option has its default, else a mapping with those that have
        not. Steps stand for the schedule: who writes out the default steps has the same trial.

        Args:
            snapshots: both as `steps` returned them.
            pruned: likewise.
        """
        options: dict[str, Any] = {}
        if self.vectors not in (None, DEFAULT_VECTORS):
            options["vectors"] = self.vectors
        if self.views:
            options["views"] = list(self.views)
        if self.residual:
            options["residual"] = True
        if self.fractions != DEFAULT_FRACTIONS:
            options["fractions"] = list(self.fractions)
        if not self.exempt_last:
            options["exempt_last"] = False
        if pruned and tuple(pruned) != _evenly(snapshots):
            options["pruned"] = list(pruned)
        if self.keep != "none":
            options["keep"] = self.keep
        groups = list(self.groups)
        return {"groups": groups, **options} if options else groups


def _evenly(steps: Sequence[int]) -> tuple[int, ...]:
    if len(steps) <= MOST_PRUNED:
        return tuple(steps)
    # never half-way: 2 i (n - 1) is even, an odd multiple of 9 is not
    intervals = MOST_PRUNED - 1
    return tuple(steps[round(i * (len(steps) - 1) / intervals)] for i in range(MOST_PRUNED))


def read_measure(node: Node | None, available: Collection[str], problems: Problems) -> Measure:
    """Read the field `measure`.

    Args:
        node: its value; None: it is not in the file.
        available: names of groups that there are.
        problems: receives what is wrong; the result is of use only if nothing was.
    """
    if node is None:
        return Measure(DEFAULT_GROUPS)
    if isinstance(node.value, list):
        found = Measure(_groups(node, available, problems))
        return replace(found, places=_places({"groups": node}, node))
    what = f"a list of measurements, or a mapping of {', '.join(OPTIONS[:-1])} and {OPTIONS[-1]}"
    if isinstance(node.value, str) and node.value in available:
        problems.add(node, f"expected {what}, got {node.got}: write [{node.value}]")
        return Measure(DEFAULT_GROUPS)
    entries = problems.mapping(node, OPTIONS, what)
    found = _Options(entries, available, problems).read()
    return replace(found, places=_places(entries, node))


def _places(entries: Mapping[str, Node], node: Node) -> dict[str, Node]:
    """What `Measure.places` holds, of valid entries of the mapping `node`."""
    found = {"measure": node}
    for name, entry in entries.items():
        items = entry.value if name in ("groups", "views") else None
        if isinstance(items, list):
            for item in items:
                found.setdefault(f"{name}:{item.plain}", item)
        else:
            found[name] = entry
    return found


def _items(node: Node, what: str, problems: Problems) -> list[Node]:
    """`Problems.items`, which for a text that should be in a list says how to write that."""
    if not isinstance(node.value, str) or not node.value.strip():
        return problems.items(node, what)
    plain = re.fullmatch(r"[A-Za-z_][\w.]*", node.value)
    written = node.value if plain else json.dumps(node.value, ensure_ascii=False)
    hint = f": write [{written}]" if len(written) <= 60 else ""
    problems.add(node, f"expected {what}, got {node.got}{hint}")
    return []


def _groups(node: Node, available: Collection[str], problems: Problems) -> tuple[str, ...]:
    accepted = f"one of {', '.join(available)}"
    usable = []
    for item in _items(node, "a list of at least one measurement", problems):
        if item.value in available:
            usable.append((item,))
        else:
            hint = nearest(item.value, available) if isinstance(item.value, str) else ""
            problems.add(item, f"unknown measurement {item.got}{hint}: {accepted}")
    chosen = problems.unrepeated(usable, "repeated measurement")
    return tuple(sorted(item.value for (item,) in chosen))


class _Options:
    """Reads the mapping form."""

    def __init__(
        self, entries: Mapping[str, Node], available: Collection[str], problems: Problems
    ) -> None:
        self.entries, self.available, self.problems = entries, available, problems

    def read(self) -> Measure:
        before = len(self.problems)
        groups = DEFAULT_GROUPS
        if "groups" in self.entries:
            groups = _groups(self.entries["groups"], self.available, self.problems)
        certain = len(self.problems) == before
        pruned = self.pruned()
        found = Measure(
            groups=groups,
            vectors=self.vectors(),
            views=self.views(),
            residual=self.residual(),
            keep=self.keep(),
            workspace=self.workspace(),
            **pruned,
        )
        if certain:  # else a misspelt group would make its options look idle
            self.idle(found)
        return found

    def idle(self, found: Measure) -> None:
        """Report the options that would change nothing."""
        stated = {"vectors": found.vectors is not None, "keep": found.keep != "none"}
        for name in (name for name, given in stated.items() if given and not found.uses_vectors):
            users = f"{', '.join(USE_VECTORS[:-1])} or {USE_VECTORS[-1]}"
            message = f"{name} has no effect without singular vectors: add {users} to groups"
            self.problems.add(self.entries[name], message)
        if found.residual and "alignment" not in found.groups:
            message = "residual has no effect without couplings: add alignment to groups"
            self.problems.add(self.entries["residual"], message)
        if found.views and found.groups == ("pruned",):
            message = (
                "views has no effect on pruned models, of which every matrix is cut: add another "
                "measurement to groups"
            )
            self.problems.add(self.entries["views"], message)
        if "pruned" in self.entries and "pruned" not in found.groups:
            message = "its options have no effect without the measurement: add pruned to groups"
            self.problems.add(self.entries["pruned"], message)

    def vectors(self) -> int | None:
        node = self.entries.get("vectors")
        return None if node is None else self.problems.whole(node, 1)

    def views(self) -> tuple[str, ...]:
        node = self.entries.get("views")
        if node is None:
            return ()
        what = "a list of at least one pattern of view names"
        items = _items(node, what, self.problems)
        usable = [(item,) for item in items if self.problems.text(item, "a pattern") is not None]
        patterns = self.problems.unrepeated(usable, "repeated pattern")
        return tuple(sorted(item.value for (item,) in patterns))

    def residual(self) -> bool:
        node = self.entries.get("residual")
        if node is not None and not isinstance(node.value, bool):
            self.problems.expected(node, "true or false")
        return node is not None and node.value is True

    def keep(self) -> Keep:
        return self.choice(self.entries.get("keep"), KEEP) or "none"

    def choice(self, node: Node | None, accepted: Sequence[str]) -> Any:
        """The node's word if it is one of these; None if it is another or there is none."""
        if node is None or node.value in accepted:
            return None if node is None else node.value
        hint = nearest(node.value, accepted) if isinstance(node.value, str) else ""
        listed = f"{', '.join(accepted[:-1])} or {accepted[-1]}"
        self.problems.add(node, f"expected {listed}, got {node.got}{hint}")
        return None

    def workspace(self) -> int | None:
        node = self.entries.get("workspace")
        if node is None:
            return None
        found = node.value if type(node.value) is int else bytes_of(node.value)
        if found is not None and 1 <= found < _ADDRESSABLE:
            return found
        units = f"{', '.join([*_UNITS][:-1])} or {[*_UNITS][-1]}"
        what = f"a number of bytes >= 1, or one with a unit of {units}, like 256 MB"
        self.problems.expected(node, what)
        return None

    def pruned(self) -> dict[str, Any]:
        node = self.entries.get("pruned")
        if node is None:
            return {}
        what = f"a mapping of fractions, last, and one of {', '.join(KINDS[:-1])} and {KINDS[-1]}"
        entries = self.problems.mapping(node, PRUNED_OPTIONS, what)
        found: dict[str, Any] = {"pruned": schedule_of(entries, node, self.problems)}
        if "fractions" in entries:
            found["fractions"] = self.fractions(entries["fractions"])
        if "last" in entries:
            last = self.choice(entries["last"], ("exempt", "included"))
            found["exempt_last"] = last != "included"
        return found

    def fractions(self, node: Node) -> tuple[float, ...]:
        usable = []
        for item in self.problems.items(node, "a list of at least one fraction"):
            if type(item.value) in (int, float) and 0 < item.value < 1:
                usable.append((item,))
            else:
                self.problems.expected(item, "a number above 0 and below 1")
        rows = self.problems.unrepeated(usable, "repeated fraction")
        return tuple(sorted(float(item.value) for (item,) in rows))


_ADDRESSABLE = 2**63
_UNITS = {"kB": 1000, "MB": 1000**2, "GB": 1000**3, "MiB": 1024**2, "GiB": 1024**3}


def bytes_of(text: Any) -> int | None:
    """``256 MB`` -> 256000000; the units are kB, MB, GB, MiB and GiB.

    None for any other text, and for 2^63 bytes or more, which no machine addresses.
    """
    match = re.fullmatch(rf"(\d+(?:\.\d+)?) *({'|'.join(_UNITS)})", str(text).strip())
    if match is None:
        return None
    number = Decimal(match[1]) * _UNITS[match[2]]  # a float would overflow, and so would its int
    return round(number) if number < _ADDRESSABLE else None
