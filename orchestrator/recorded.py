"""Trials that a `Recorder` has announced: what a recorded folder has instead of a sweep file.

One small file per trial, published once under recorded/ when it is first recorded. So any number
of recorders can add trials to one folder at the same time, and none has to change what another
one wrote. Readers need neither torch nor the code that recorded.

The identity of a recorded trial is made as that of a sweep's trial (see `orchestrator.expansion`),
from what is known of it before it begins::

    {"format":1,"method":1,"params":{"lr":0.003},"parents":[],"recorded":"name","seed":0}

Numbers agree if they are equal: 1 and 1.0 are the same parameter. What is measured, and when, is no
part of it: the same parameters and seed are the same trial.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import files
from orchestrator.expansion import FORMAT, assignment, canonical
from orchestrator.nodes import comparable

FOLDER = "recorded"
TEXT = "# Recorded in training loops by orchestrator.Recorder: there is no sweep file.\n"
"""What stands where a sweep file's text would."""


@dataclass(frozen=True)
class Announced:
    """One trial as its recorder announced it.

    Attributes:
        trial_id: 16 hex characters; likewise `config_id`.
        params: JSON types only.
        announced_at: ISO 8601, UTC.
    """

    trial_id: str
    config_id: str
    seed: int
    params: Mapping[str, Any]
    announced_at: str

    @property
    def label(self) -> str:
        """``weight_decay=0.1 seed=0``."""
        given = [assignment(name, value) for name, value in self.params.items()]
        return " ".join([*given, f"seed={self.seed}"])

    @property
    def identity(self) -> dict[str, Any]:
        """The columns of the trials table that say which trial it is."""
        return {
            "trial_id": self.trial_id,
            "config_id": self.config_id,
            "seed": self.seed,
            "params": json.dumps(dict(self.params), sort_keys=True),
        }


def announcement(
    name: str, params: Mapping[str, Any], seed: int, *, method: int, at: str
) -> Announced:
    """The trial of these parameters and this seed.

    Args:
        name: of what is trained, the same for all trials of a folder.
        params: JSON types only.
        seed: >= 0.
        method: `spectral.METHOD_VERSION`.
        at: ISO 8601, UTC.
    """
    content = {
        "format": FORMAT,
        "method": method,
        "params": {key: _plain(value) for key, value in params.items()},
        "parents": [],
        "recorded": name,
    }
    return Announced(_hash({**content, "seed": seed}), _hash(content), seed, dict(params), at)


def path_of(root: Path, trial_id: str) -> Path:
    """Where a trial's announcement lies."""
    return root / FOLDER / f"{trial_id}.json"


def publish(root: Path, trial: Announced) -> None:
    """Announce a trial; one that is announced already is left as it is.

    Raises:
        StoreError: the storage refuses.
    """
    path = path_of(root, trial.trial_id)
    if not path.exists():
        try:
            files.publish(path, files.seal_json(vars(trial)))
        except FileExistsError:  # another recorder of the same trial was faster
            return


def read(root: Path) -> list[Announced]:
    """Every announced trial, in the order in which they were announced.

    Raises:
        DamageError: an announcement cannot be read; the message names the file.
    """
    paths = (root / FOLDER).glob("[0-9a-f]*.json")
    found = [Announced(**files.unseal_json(path)) for path in paths]
    return sorted(found, key=lambda trial: (trial.announced_at, trial.trial_id))


def axes(trials: Sequence[Announced]) -> tuple[str, ...]:
    """The parameters that differ between trials, in the order in which they were given."""
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    values = {name: {_value(trial.params, name) for trial in trials} for name in names}
    return tuple(name for name in names if len(values[name]) > 1)


def _value(params: Mapping[str, Any], name: str) -> Any:
    return comparable(params[name]) if name in params else "absent"


def _plain(value: Any) -> Any:
    """A stand-in that is the same text for equal numbers: 1.0 becomes 1."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:16]
