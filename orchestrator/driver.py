"""run_sweep(): propose -> place -> collect -> commit -> project; resumes by reading the store.

The driver is the only one that commits. Running the same file again is resuming: trials that have
a result are skipped, those with a checkpoint continue from it, lost ones are dispatched again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tasks
from orchestrator import environment, planning, preflight, site
from orchestrator.dispatch import Dispatch, Observer, Outcome, Projector
from orchestrator.errors import SweepError
from orchestrator.execution import Event, Executor, InProcess
from orchestrator.placement import Placement
from orchestrator.session import Session, check_owner
from orchestrator.shipping import Shipment
from orchestrator.store import Store
from orchestrator.sweep import Sweep, Trial
from orchestrator.trial import Context
from tasks import data

__all__ = ["Observer", "Options", "Outcome", "Projector", "run_sweep"]


@dataclass(frozen=True)
class Options:
    """What the command line adds to a sweep file.

    Attributes:
        only: run these trials and no others.
        retry_failed: dispatch failed trials again.
        keep: accept results and checkpoints of another version of the task's source.
        rerun: run these trials again; their results so far no longer count.
        rerun_changed: likewise every trial whose result another version of that source made.
        in_process: no Ray; one trial after another in this process, exceptions unwrapped.
        workers: upper limit of trials at once; None: as many as fit the machine or the cluster.
        address: of a running cluster to join, see `connection.join`; None: this machine.
        shipment: this process is a job of that cluster and runs this code; None: send it there.
        git: commit and changes of the folder that the sweep comes from; None: look there.
    """

    only: Sequence[Trial] | None = None
    retry_failed: bool = False
    keep: bool = False
    rerun: Sequence[Trial] = ()
    rerun_changed: bool = False
    in_process: bool = False
    workers: int | None = None
    address: str | None = None
    shipment: Shipment | None = None
    git: Mapping[str, Any] | None = None


def run_sweep(
    sweep: Sweep,
    options: Options | None = None,
    *,
    observer: Observer | None = None,
    projector: Callable[[Store], Projector] | None = None,
    executor: Callable[[Context, int], Executor] | None = None,
) -> Outcome:
    """Run every trial of a sweep that has no result yet.

    Args:
        sweep: a validated sweep file.
        options: see `Options`.
        observer: is told what happens; None: nobody.
        projector: makes the tracker's projector once the store is open; None: no tracking.
        executor: makes the executor from the context and the number of trials to run; None: Ray,
            or this process with `options.in_process`.

    Returns:
        Counts, failures, and how it ended.

    Raises:
        UserError: something is wrong before the launch; nothing was launched.
        StoreError: the storage refused midway; what was committed is kept.
        ClusterError: Ray refused; what was committed is kept.
    """
    options = options or Options()
    observer = observer or _Nobody()
    check_owner(sweep)
    source_hash = tasks.source_hash(sweep.task_class)
    rerun = _rerun(sweep, options, source_hash)
    launch = preflight.to_launch(sweep, options.only, rerun, retry_failed=options.retry_failed)
    preflight.refuse(sweep, launch=launch, here=options.address is None)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        place = None
        if options.address is not None:
            place = stack.enter_context(
                site.enter(
                    sweep,
                    options.address,
                    limit=min(options.workers or sweep.num_trials, sweep.num_trials),
                    tracked=projector is not None,
                    launch=launch,
                    shipment=options.shipment,
                    message=observer.message,
                )
            )
            placement = place.placement
        else:
            placement = planning.placement(sweep, limit=options.workers)
        session = stack.enter_context(Session.claim(sweep, rerun=rerun))
        git = environment.git_facts(sweep.base) if options.git is None else options.git
        context = Context(
            root=str(session.store.root),
            epoch=session.epoch,
            threads=placement.cpus,
            device=placement.device,
            checkpoint_seconds=sweep.checkpoint_seconds,
            source_hash=source_hash,
            keep=options.keep,
            live=projector is not None,
            facts=json.dumps({**git, "task_source": source_hash}, sort_keys=True),
            task=place.task if place else sweep.task,
            # Said in full to workers on this machine, which work in another folder; those of a
            # cluster know best where their data lie.
            data=(sweep.data or "") if place else str(data.folder().absolute()),
        )
        run = Dispatch(
            sweep, session, observer, only=options.only, retry_failed=options.retry_failed
        )
        tracker = projector(session.store) if projector else None
        run.tracker = tracker
        try:
            pool: Executor | None = None
            if run.remaining:
                count = min(placement.workers, run.remaining)
                most = min(placement.most, run.remaining)
                fitted = dataclasses.replace(placement, workers=count, most=most)
                if executor is not None:
                    pool = executor(context, count)
                elif options.in_process:
                    pool = InProcess(context)
                else:
                    pool = _ray_pool(place, context, fitted, observer)
            if tracker is not None:
                tracker.start()  # not before: while Ray starts, the working directory is another
            if pool is not None:
                try:
                    run.drive(pool)
                finally:
                    run.flush_quietly()  # first: Ray may take its time
                    pool.shutdown()
            if not run.outcome.interrupted:
                run.summarise()
        finally:
            run.flush_quietly()
            if tracker is not None:
                closed = tracker.close()
                run.outcome.tracking = "" if closed.complete else closed.message
        run.outcome.seconds = time.monotonic() - began
        return run.outcome


def _rerun(sweep: Sweep, options: Options, source_hash: str) -> frozenset[str]:
    """The trials whose results so far no longer count.

    Raises:
        SweepError: the task's source has changed, or --only leaves out what is to be run again.
    """
    rerun = planning.check_source(
        sweep, source_hash, keep=options.keep, rerun_changed=options.rerun_changed
    )
    rerun |= {trial.trial_id for trial in options.rerun}
    if options.only is None:
        return rerun
    named = {trial.trial_id for trial in options.only}
    if {trial.trial_id for trial in options.rerun} - named:
        raise SweepError("--rerun", ["it names trials that --only leaves out"])
    return rerun & named


def _ray_pool(
    place: site.Site | None, context: Context, placement: Placement, observer: Observer
) -> Executor:
    from orchestrator.cluster import RayPool
    from orchestrator.connection import start_embedded

    if place is None:
        connection = start_embedded(
            placement.cpus * placement.workers, placement.gpus * placement.workers
        )
        try:
            return RayPool(connection, context, placement, message=observer.message)
        except BaseException:
            connection.close()
            raise
    return RayPool(
        place.connection,
        context,
        placement,
        runtime_env=place.runtime_env,
        message=observer.message,
    )


class _Nobody:
    """An observer that looks away."""

    def begin(self, total: int, done: int, failed: int) -> None:
        pass

    def event(self, event: Event) -> None:
        pass

    def message(self, text: str) -> None:
        pass
