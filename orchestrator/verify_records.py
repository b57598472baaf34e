"""Check the records of a store: its epochs, and the versions of its sweep file.

Each carries a checksum of itself. What they should say besides follows from one another: epochs are
numbered without a gap and name the sweep version they ran and the commit segments they had seen.
See `orchestrator.verify`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator import recorded
from orchestrator.errors import DamageError, StoreError
from orchestrator.files import read_checked, unseal_json
from orchestrator.schemas import FORMAT_VERSION, unseal

UNREAD = "No result of this store is read until it is restored from a backup."


def epochs_of(root: Path, damage: list[str]) -> dict[int, dict[str, Any]]:
    """Epoch number -> its record, of those that can be read; what is wrong is added to `damage`."""
    folder = root / "epochs"
    epochs: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob("[0-9]*.json")):
        try:
            facts = unseal_json(path)
            if path.name != f"{facts['epoch']:06d}.json":
                raise DamageError(f"{path} is damaged: it says that it is epoch {facts['epoch']}")
            if facts["format"] != FORMAT_VERSION:
                raise DamageError(
                    f"{path} is damaged: it says that its format is {facts['format']}"
                )
            facts["seen"] = {int(epoch): int(last) for epoch, last in facts["seen"].items()}
            epochs[int(facts["epoch"])] = facts
        except DamageError as error:
            damage.append(f"{error}. {UNREAD}")
    on_disk = {int(path.stem) for path in folder.glob("[0-9]*.json") if path.stem.isdigit()}
    named = {earlier for facts in epochs.values() for earlier in facts["seen"]}
    named |= {int(path.name[:6]) for path in (root / "trials").glob("[0-9]*.arrow")}
    for n in sorted({*range(1, max(on_disk | named, default=1) + 1)} - on_disk):
        damage.append(
            f"{folder / f'{n:06d}.json'} is missing: the commits of epoch {n} do not count without "
            "it. Restore it from a backup."
        )
    for n in sorted(epochs):
        later = {m: facts["seen"].get(n) for m, facts in epochs.items() if m > n}
        if len(set(later.values())) > 1 or None in later.values():
            said = ", ".join(f"epoch {m} says {last}" for m, last in sorted(later.items()))
            damage.append(
                f"{folder} is damaged: later epochs disagree on the last commit segment of epoch "
                f"{n} ({said}). Restore the folder from a backup."
            )
    return epochs


def sweeps_of(
    root: Path, epochs: Mapping[int, Mapping[str, Any]], damage: list[str]
) -> tuple[set[str], str]:
    """Trials that any version of the sweep file names, and how the newest one is run again.

    What is wrong with a version that counts, or with what recorders announced, is added to
    `damage`.
    """
    folder = root / "sweep"
    numbers = {int(path.stem) for path in folder.glob("[0-9]*.*") if path.stem.isdigit()}
    numbers |= {int(facts["sweep"]) for facts in epochs.values()}
    trial_ids: set[str] = set()
    again = "run the trial again: sweep run FILE --rerun"
    for n in range(1, max(numbers, default=0) + 1):
        path = folder / f"{n}.json"
        accepted = any(facts["sweep"] == n for facts in epochs.values()) or n < max(numbers)
        if not path.exists() and not accepted:
            continue  # a driver died while it accepted this version; the next one writes it again
        try:
            if not path.exists():
                raise DamageError(f"{path} is missing")
            facts = unseal_json(path)
            again = f"run the trial again: sweep run {facts['source']} --rerun"
            read_checked(folder / f"{n}.yaml", facts["checksums"]["yaml"])
            listed = read_checked(folder / f"{n}.trials", facts["checksums"]["trials"])
            trial_ids.update(listed.split())
            if facts.get("recorded"):
                again = "record it again, with again=True: trial"
                announced = _announced(root, damage)
                trial_ids |= announced
                _without_announcement(root, announced, damage)
        except DamageError as error:
            damage.append(f"{error}. {UNREAD}")
    return trial_ids, again


def _announced(root: Path, damage: list[str]) -> set[str]:
    """Trials that recorders announced."""
    paths = sorted((root / recorded.FOLDER).glob("[0-9a-f]*.json"))
    for path in paths:
        try:
            recorded.read_one(path)
        except DamageError as error:
            damage.append(f"{error}. {UNREAD}")
    return {path.stem for path in paths}


def _without_announcement(root: Path, announced: set[str], damage: list[str]) -> None:
    """Add trials that recorders have committed and none has announced: readers pass them over."""
    committed: set[str] = set()
    for path in (root / "trials").glob("[0-9]*.arrow"):
        with contextlib.suppress(StoreError, OSError):  # segments are checked by the caller
            committed.update(unseal(path.read_bytes(), str(path))["trial_id"].to_pylist())
    for trial_id in sorted(committed - announced):
        path = recorded.path_of(root, trial_id)
        damage.append(
            f"{path} is missing, although trial {trial_id} was committed: no result of that trial "
            "is read until it is restored from a backup, or written again by opening a Recorder "
            "with the same name, parameters and seed."
        )
