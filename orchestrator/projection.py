"""What MLflow shows of a store: pure functions from its tables to runs and curves.

One run for the sweep; nested below it a run per trial, and a run per configuration that holds the
mean over its seeds. Everything here is a function of the store alone, so a projection made after
the fact equals one that was made live. What MLflow cannot carry is left out by rule, never by
chance: at most 40 curves of 200 points per run and 2,000 runs of trials per sweep; the store holds
the rest. Points that are not finite are left out: MLflow would store infinity as 1.8e308.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from orchestrator.curves import milliseconds
from orchestrator.expansion import assignment
from orchestrator.schemas import RESULTS
from orchestrator.store import Store, SweepRecord

VERSION = 1
"""Raised when the same rows are to be shown differently: every run is then written anew."""
PREFIX = "spectral_sweeps."
FINGERPRINT = f"{PREFIX}content"
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
MAX_RUNS = 2000
_MOST_ERROR = 7500  # characters of an error kept in a tag; MLflow takes 8,000
_MOST_VALUE = 6000  # characters of a parameter's value

Kind = Literal["sweep", "trial", "summary"]


@dataclass(frozen=True)
class Run:
    """An MLflow run as it should be, its points aside.

    Attributes:
        kind: what it stands for.
        key: the store's, the trial's or the configuration's identity.
        name: as the UI lists it.
        status: MLflow's word: FINISHED, FAILED or KILLED.
        start: milliseconds since 1970, UTC; likewise `end`.
        params: parameters as texts.
        tags: ours, without the fingerprint and the link to the parent.
        source: what its points are computed from.
    """

    kind: Kind
    key: str
    name: str
    status: str
    start: int
    end: int
    params: Mapping[str, str]
    tags: Mapping[str, str]
    source: str = ""

    @property
    def fingerprint(self) -> str:
        """Equal exactly if the run should look the same; makes a second projection cheap."""
        content = [VERSION, *(getattr(self, name) for name in self.__dataclass_fields__)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Plan:
    """Every run of a sweep, and what its curves are read from.

    Attributes:
        sweep: the parent run.
        trials: of trials with a result, and of failed ones, in the file's order.
        summaries: of configurations.
        rows: trial_id -> its row in `table`, of every run in `trials`.
        table: rows of the trials table.
        members: config_id -> rows in `table` of the trials with a result.
        record: the newest sweep file.
        created: when the store was created, in milliseconds since 1970.
    """

    sweep: Run
    trials: tuple[Run, ...]
    summaries: tuple[Run, ...]
    rows: Mapping[str, int]
    table: pa.Table = field(repr=False)
    members: Mapping[str, Sequence[int]] = field(repr=False)
    record: SweepRecord = field(repr=False)
    created: int


def label(params: Mapping[str, Any], axes: Sequence[str], *seed: int) -> str:
    """``weight_decay=1.0 seed=0``, as the command line names a trial; without a seed if none."""
    given = [assignment(axis, params.get(axis)) for axis in axes]
    return " ".join([*given, *(f"seed={s}" for s in seed)])


def params_of(params: Mapping[str, Any], *seed: int) -> dict[str, str]:
    """Parameters (and the seed, if given) as MLflow shows them: strings as they are, else JSON."""
    given = [*params.items(), *(("seed", s) for s in seed)]
    return {k: (v if isinstance(v, str) else json.dumps(v))[:_MOST_VALUE] for k, v in given}


def store_id(store: Store) -> str:
    """Tells stores apart that share an experiment; it survives moving the folder."""
    facts = store.epochs()[0].facts
    told = [facts.get(name) for name in ("host", "pid", "started_at")]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def trial_tags(store: str, trial_id: str, config_id: str) -> dict[str, str]:
    """What is known of a trial's run from its first moment."""
    named = {"store_id": store, "kind": "trial", "trial_id": trial_id, "config_id": config_id}
    return {PREFIX + name: value for name, value in named.items()}


def plan(store: Store) -> Plan:
    """Every run of the newest sweep file of a store that a driver has claimed.

    Trials without a commit, or whose last attempt was lost, have no run: they are still to come.

    Raises:
        DamageError: the store is damaged.
    """
    record, sid, created = store.sweeps()[-1], store_id(store), milliseconds(store.created_at())
    table, statuses = _newest_rows(store, record.trial_ids)
    trials, members = [], defaultdict(list)
    rows: dict[str, int] = {}
    own = set(record.trial_ids[:MAX_RUNS])
    sources: dict[int, str] = {}
    parts = table.to_batches(max_chunksize=1000)  # as Python objects they take much more memory
    for index, row in enumerate(row for part in parts for row in part.to_pylist()):
        sources[index] = json.dumps([[s["path"], s["checksum"]] for s in row["shards"] or ()])
        if row["status"] in RESULTS:
            members[row["config_id"]].append(index)
        if row["trial_id"] in own:
            rows[row["trial_id"]] = index
            trials.append(_trial(row, record, sid, created, sources[index]))
    summaries: list[Run] = []
    for config_id, indices in list(members.items()):
        configuration = table.take(indices).to_pylist()
        hidden = any(row["trial_id"] not in own for row in configuration)
        if (len(configuration) > 1 or hidden) and len(summaries) < MAX_RUNS:
            source = json.dumps([sources[index] for index in indices])
            summaries.append(_summary(config_id, configuration, record, sid, created, source))
    sweep = _sweep(store, record, sid, created, table, statuses, [*trials, *summaries])
    return Plan(sweep, tuple(trials), tuple(summaries), rows, table, members, record, created)


def _newest_rows(store: Store, named: Sequence[str]) -> tuple[pa.Table, Counter[str]]:
    """The row of each trial that has a result or has failed, in the file's order, and counts."""
    outcomes, commits = store.outcomes(), store.commits()
    done = set(outcomes["trial_id"].to_pylist())
    newest: dict[str, tuple[str, int]] = {}
    columns = (commits["trial_id"].to_pylist(), commits["status"].to_pylist())
    for index, (trial_id, status) in enumerate(zip(*columns, strict=True)):
        newest[trial_id] = (status, index)
    failed = [
        newest[trial_id][1]
        for trial_id in named
        if trial_id not in done and newest.get(trial_id, ("", 0))[0] == "failed"
    ]
    both = pa.concat_tables([outcomes, commits.take(pa.array(failed, pa.int64()))])
    place = {trial_id: i for i, trial_id in enumerate(named)}
    ids = both["trial_id"].to_pylist()
    order = sorted(range(len(ids)), key=lambda i: place[ids[i]])
    counts = Counter(both["status"].to_pylist())
    counts["remaining"] = len(named) - len(ids)
    return both.take(pa.array(order, pa.int64())), counts


def _trial(row: Mapping[str, Any], record: SweepRecord, sid: str, created: int, source: str) -> Run:
    params = json.loads(row["params"])
    tags = trial_tags(sid, row["trial_id"], row["config_id"])
    for name in ("status", "last_step", "attempt", "host", "device", "environment", "error_kind"):
        if row[name] is not None:
            tags[PREFIX + name] = str(row[name])
    if row["error"]:
        cut = len(row["error"]) > _MOST_ERROR  # the end of a traceback says what went wrong
        tags[f"{PREFIX}error"] = ("…" if cut else "") + row["error"][-_MOST_ERROR:]
    if row["status"] == "diverged":
        tags[NOTE] = f"Diverged at step {row['last_step']}: values that are not finite are left out"
    return Run(
        kind="trial",
        key=row["trial_id"],
        name=label(params, record.axes, row["seed"]),
        status={"failed": "FAILED", "pruned": "KILLED"}.get(row["status"], "FINISHED"),
        start=_moment(row, "started_at", created),
        end=_moment(row, "ended_at", created),
        params=params_of(params, row["seed"]),
        tags=tags,
        source=json.dumps([created, source]),
    )


def _moment(row: Mapping[str, Any], name: str, created: int) -> int:
    """A lost worker leaves no start."""
    moment = row[name] or row["ended_at"]
    return milliseconds(moment) if moment else created


def _summary(
    config_id: str,
    rows: Sequence[Mapping[str, Any]],
    record: SweepRecord,
    sid: str,
    created: int,
    source: str,
) -> Run:
    params = json.loads(rows[0]["params"])
    counts = Counter(row["status"] for row in rows)
    end = max(_moment(row, "ended_at", created) for row in rows)
    seeds = f"mean of {counts['completed']}"
    tags = {
        f"{PREFIX}store_id": sid,
        f"{PREFIX}kind": "summary",
        f"{PREFIX}config_id": config_id,
        f"{PREFIX}num_seeds": str(counts["completed"]),
        **{f"{PREFIX}num_{s}": str(counts[s]) for s in ("diverged", "pruned") if counts[s]},
        NOTE: "Mean over the seeds of one configuration, completed trials only. Sections that end "
        "in `_lower` and `_upper` hold the ends of the mean's 95 % Student-t interval.",
    }
    return Run(
        kind="summary",
        key=config_id,
        name=f"{label(params, record.axes)} {seeds}".strip(),
        status="FINISHED",
        start=end,  # the UI lists what started last first: summaries above their trials
        end=end,
        params=params_of(params),
        tags=tags,
        source=json.dumps([created, source]),
    )


def _sweep(
    store: Store,
    record: SweepRecord,
    sid: str,
    created: int,
    table: pa.Table,
    statuses: Counter[str],
    children: Sequence[Run],
) -> Run:
    told = {
        "store_id": sid,
        "kind": "sweep",
        "sweep": record.name,
        "task": record.task,
        "store": str(store.root),
        "axes": ", ".join(record.axes),
        "trials": str(len(record.trial_ids)),
        **{status: str(statuses[status]) for status in (*RESULTS, "failed", "remaining")},
    }
    if len(record.trial_ids) > MAX_RUNS:
        told["left_out"] = (
            f"only the first {MAX_RUNS:,} of {len(record.trial_ids):,} trials have a run of their "
            "own; the store holds all of them"
        )
    finished = "FAILED" if statuses["failed"] else "FINISHED"
    ended = [moment for moment in table["ended_at"].to_pylist() if moment is not None]
    return Run(
        kind="sweep",
        key=sid,
        name=record.name,
        status="KILLED" if statuses["remaining"] else finished,  # stopped; it can be resumed
        start=created,
        end=milliseconds(max(ended)) if ended else created,
        params={},
        tags={PREFIX + name: value for name, value in told.items()},
        source=json.dumps([record.text, record.overrides, [c.fingerprint for c in children]]),
    )
