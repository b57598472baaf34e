"""What a driver run would do, found out without doing it: history, source, placement, cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator import checkpoints
from orchestrator.errors import SweepError
from orchestrator.nodes import Problems
from orchestrator.placement import Placement, count_of, place
from orchestrator.store import Store
from orchestrator.sweep import Sweep, Trial

MAX_LOST = {"WorkerLost": 3, "NodeLost": 20}
"""Lost attempts after which a trial has failed. A node goes for reasons of its own (a preemption,
a reboot), a worker seldom does; but a trial that takes its node along must not go on for ever."""


@dataclass
class History:
    """What the commits say of each trial.

    Attributes:
        results: trial_id -> completed, diverged or pruned.
        failed: trial_id -> "failed", of trials whose newest row that is no result says so.
        attempts: trial_id -> number of the last attempt that left a row.
        lost: (trial_id, "WorkerLost" or "NodeLost") -> attempts lost since the last failure.
    """

    results: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    lost: Counter[tuple[str, str]] = field(default_factory=Counter)


def history(store: Store) -> History:
    """Read the commits of a store."""
    found = History()
    outcomes = store.outcomes("all")
    statuses = zip(outcomes["trial_id"].to_pylist(), outcomes["status"].to_pylist(), strict=True)
    found.results.update(statuses)
    commits, fences = store.commits(), store.fences()
    names = ("trial_id", "status", "attempt", "epoch", "error_kind")
    columns = (commits[name].to_pylist() for name in names)
    for trial_id, status, attempt, epoch, kind in zip(*columns, strict=True):
        found.attempts[trial_id] = max(found.attempts[trial_id], attempt or 0)
        if epoch < fences.get(trial_id, 0):
            continue  # run again since: its number is taken, and nothing else of it counts
        if status == "lost":
            found.lost[trial_id, kind] += 1
            found.failed.pop(trial_id, None)
        elif status == "failed":
            found.failed[trial_id] = "failed"
            for cause in MAX_LOST:
                found.lost[trial_id, cause] = 0  # a retry starts a new count
    for trial_id in found.results:
        found.failed.pop(trial_id, None)
    return found


def progress(store: Store) -> tuple[dict[str, int], list[str]]:
    """Trials of the newest file by status, "trials" being all of them, and those that failed."""
    found = history(store)
    named = store.sweeps()[-1].trial_ids if store.sweeps() else ()
    counts: dict[str, int] = {"trials": len(named)}
    for trial_id in named:
        state = found.results.get(trial_id) or found.failed.get(trial_id) or "open"
        counts[state] = counts.get(state, 0) + 1
    return counts, [trial_id for trial_id in named if trial_id in found.failed]


def check_source(
    sweep: Sweep, source_hash: str, *, keep: bool, rerun_changed: bool
) -> frozenset[str]:
    """Compare the task's source with the one that made the results in the store.

    Args:
        sweep: the sweep.
        source_hash: of the task's code as it is now.
        keep: accept results of another source.
        rerun_changed: run those trials again.

    Returns:
        The trials whose results no longer count (with `rerun_changed`), else nothing.

    Raises:
        SweepError: the source differs and the user has not said what to do.
    """
    if keep and rerun_changed:
        raise SweepError("--keep", ["--keep and --rerun changed contradict each other; give one"])
    changed = changed_trials(sweep, source_hash)
    if not changed or keep:
        return frozenset()
    if rerun_changed:
        return changed
    raise SweepError(
        sweep.source,
        [
            f"the code of task {sweep.task_name!r} has changed since {_trials(len(changed))} in "
            f"{sweep.root} ran, and its version is still {sweep.task_class.version}. If its "
            "numbers are the same, add --keep; to run those trials again, add --rerun changed; if "
            "they are a new kind of result, raise the task's version"
        ],
    )


def changed_trials(sweep: Sweep, source_hash: str) -> frozenset[str]:
    """Trials of a sweep with a result or checkpoint of another version of the task's source."""
    if not (sweep.root / "epochs").is_dir():
        return frozenset()
    store = Store.open(sweep.root)
    environments = store.environments()
    own = {trial.trial_id for trial in sweep.trials()}
    outcomes = store.outcomes("all")
    columns = zip(
        outcomes["trial_id"].to_pylist(), outcomes["environment"].to_pylist(), strict=True
    )
    changed = {
        trial_id
        for trial_id, name in columns
        if trial_id in own
        and environments.get(name, {}).get("task_source", source_hash) != source_hash
    }
    folder = sweep.root / "checkpoints"
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    for trial_id in held & own:
        header = checkpoints.newest_header(sweep.root, trial_id)
        if header is not None and header.source_hash != source_hash:
            changed.add(trial_id)
    return frozenset(changed)


def placement(sweep: Sweep, *, limit: int | None = None) -> Placement:
    """Where trials run on this machine.

    Args:
        sweep: the sweep, for its `resources`.
        limit: at most this many trials at once.

    Raises:
        SweepError: one trial asks for more than the machine has.
    """
    from orchestrator.machine import machine_resources

    return place(sweep.resources, [machine_resources()], source=sweep.source, limit=limit)


@dataclass(frozen=True)
class Plan:
    """What `sweep plan` shows.

    Attributes:
        trials: trials in the file.
        configurations: configurations in the file.
        committed: trials that have a result.
        failed: trials that failed and would need --retry failed.
        checkpointed: trials that would continue from a checkpoint.
        unnamed: committed trials that the file no longer names.
        changed: trials of the file with a result or checkpoint of another version of the source.
        workers: trials at once on this machine.
        device: "cpu" or "cuda".
        estimate_seconds: wall time left; None if the probe failed.
        estimate_basis: what the estimate goes by.
        scratch_bytes: singular vectors on disk while a trial runs, of one trial at most; None if
            no model can be built.
        kept_bytes: singular vectors that stay, of one trial at most; None likewise.
        kept_bytes_total: of all trials of the file.
        model_failure: what the first model that cannot be built fails with.
        data: the folder of real data sets, if the file names it.
        missing: what this machine lacks for the trials to run; `run` refuses to launch them here.
    """

    name: str
    task: str
    root: str
    trials: int
    configurations: int
    committed: int
    failed: int
    checkpointed: int
    remaining: int
    unnamed: int
    changed: int
    device: str
    workers: int
    estimate_seconds: float | None
    estimate_basis: str
    scratch_bytes: int | None
    kept_bytes: int | None
    kept_bytes_total: int | None
    model_failure: str = ""
    data: str | None = None
    missing: tuple[str, ...] = ()


def plan(sweep: Sweep, source_hash: str) -> Plan:
    """Find out what a run of this sweep would do on this machine.

    Raises:
        SweepError: a trial asks for more than the machine has, or the models cannot be measured as
            the file asks.
    """
    from orchestrator import preflight  # here: it loads torch, which `progress` does without

    inspection = preflight.refuse(sweep)
    space = inspection.space()
    placed = placement(sweep)
    device, workers = placed.device, placed.workers
    own = [trial.trial_id for trial in sweep.trials()]
    found, seconds, checkpointed = History(), [], 0
    if (sweep.root / "epochs").is_dir():
        store = Store.open(sweep.root)
        found = history(store)
        outcomes = store.outcomes("all")
        seconds = [value for value in outcomes["wall_seconds"].to_pylist() if value is not None]
        folder = sweep.root / "checkpoints"
        held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        checkpointed = len(held & set(own))
    committed = _count(own, found.results)
    failed = _count(own, found.failed)
    done = {**found.results, **found.failed}
    left = [trial for trial in sweep.trials() if trial.trial_id not in done]
    absent = Problems()
    for text, where in preflight.lacking(sweep, left):
        absent.add(where, text)
    estimate, basis = _estimate(sweep, left, seconds, device, workers)
    return Plan(
        name=sweep.name,
        task=sweep.task_name,
        root=str(sweep.root),
        trials=len(own),
        configurations=sweep.num_configurations,
        committed=committed,
        failed=failed,
        checkpointed=checkpointed,
        remaining=len(left),
        unnamed=len(set(found.results) - set(own)),
        changed=len(changed_trials(sweep, source_hash)),
        device=device,
        workers=workers,
        estimate_seconds=estimate,
        estimate_basis=basis,
        scratch_bytes=None if space is None else space.scratch,
        kept_bytes=None if space is None else space.kept,
        kept_bytes_total=None if space is None else space.kept_total,
        model_failure=inspection.failure,
        data=sweep.data,
        missing=tuple(map(str, absent)),
    )


def _estimate(
    sweep: Sweep, left: list[Trial], seconds: list[float], device: str, workers: int
) -> tuple[float | None, str]:
    """Wall seconds left, and what that is based on: finished trials, else a probe of one."""
    if not left:
        return 0.0, "nothing is left to run"
    if seconds:
        mean = sum(seconds) / len(seconds)
        total = max(mean, mean * len(left) / workers)
        return total, f"mean wall time of {_trials(len(seconds))} in this store"
    from orchestrator.probe import probe
    from tasks.data import MissingDataError

    try:
        cost = probe(left[0], threads=sweep.resources.cpus, device=device)
    except MissingDataError:
        return None, f"the data of {left[0].label(sweep.axes)} are missing"
    except Exception as error:  # the task's own code; `sweep run` will show it in full
        return None, f"the probe of a trial failed: {type(error).__name__}: {error}"
    each = [cost.of(trial) for trial in left]
    pruned = f", {1000 * cost.pruned:.3g} ms for pruned models at one step" if cost.pruned else ""
    return max(max(each), sum(each) / workers), (
        f"a probe of {left[0].label(sweep.axes)}: {1000 * cost.step:.3g} ms per step, "
        f"{1000 * cost.snapshot:.3g} ms per snapshot{pruned}; start-up not included"
    )


def _count(own: Iterable[str], known: dict[str, str]) -> int:
    return sum(trial_id in known for trial_id in own)


def _trials(count: int) -> str:
    return count_of(count, "trial")
