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

import fcntl
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator import files
from orchestrator.errors import DamageError, RecordError
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


def make(root: Path, name: str) -> None:
    """The records of a new folder; what a recorder left that died here is written again.

    Args:
        root: the store's folder.
        name: what is trained in it.

    Raises:
        StoreError: the storage refuses.
    """
    for folder in ("sweep", "trials", "scalars", "spectra", "checkpoints", FOLDER):
        with files.storage_errors(root / folder, "make"):
            (root / folder).mkdir(parents=True, exist_ok=True)
    payloads = {"trials": b"", "yaml": TEXT.encode()}
    facts = {
        "recorded": True,
        "name": name,
        "task": name,
        "task_version": 1,
        "overrides": [],
        "source": "",
        "base": str(Path.cwd()),
        "axes": [],
        "parameters": [],
        "accepted_at": datetime.now(UTC).isoformat(),
        "checksums": {suffix: files.checksum(payload) for suffix, payload in payloads.items()},
    }
    # The JSON file is written last: it is what makes the record visible.
    for suffix, payload in (*payloads.items(), ("json", files.seal_json(facts))):
        files.replace(root / "sweep" / f"1.{suffix}", payload)


def publish(root: Path, trial: Announced) -> bool:
    """Announce a trial; one that is announced already is left as it is.

    Returns:
        Whether it was not.

    Raises:
        StoreError: the storage refuses.
    """
    path = path_of(root, trial.trial_id)
    if path.exists():
        return False
    try:
        files.publish(path, files.seal_json(vars(trial)))
    except FileExistsError:  # another recorder of the same trial was faster
        return False
    return True


def hold(root: Path, trial: Announced) -> int:
    """Keep a second recorder of the same trial out for as long as this process lives.

    Raises:
        RecordError: there is one.
    """
    try:
        held = os.open(path_of(root, trial.trial_id), os.O_RDWR)
    except OSError:  # written by another user: the commit decides between the two
        return -1
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise RecordError(
            str(root),
            [
                f"trial {trial.trial_id} ({trial.label}) is being recorded right now, by another "
                "process or another Recorder of this one: end that, or give this one another seed"
            ],
        ) from None
    except OSError:  # a file system without flock: likewise
        pass
    return held


def given_up(trial: Announced, process: int, release: Callable[[], None]) -> None:
    """Let the next recorder of a trial in, whose own one went away without being closed.

    Args:
        trial: which.
        process: that records it: in those forked off it, nothing happens.
        release: lets go of it.
    """
    if process == os.getpid():
        release()
        warnings.warn(
            f"a Recorder of trial {trial.trial_id} ({trial.label}) was opened and never closed: "
            "nothing that it recorded counts. Use it as `with Recorder(...) as recorder:`, or call "
            "its close()",
            stacklevel=2,
        )


def read_one(path: Path) -> Announced:
    """The trial that a file announces.

    Raises:
        DamageError: it cannot be read, or is of another trial than its name.
    """
    found = Announced(**files.unseal_json(path))
    if found.trial_id != path.stem:
        raise DamageError(f"{path} is damaged: it says that it is of trial {found.trial_id}")
    return found


def read(root: Path) -> list[Announced]:
    """Every announced trial, in the order in which they were announced.

    Raises:
        DamageError: an announcement cannot be read; the message names the file.
    """
    paths = (root / FOLDER).glob("[0-9a-f]*.json")
    return sorted(map(read_one, paths), key=lambda trial: (trial.announced_at, trial.trial_id))


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
