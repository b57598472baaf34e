"""`sweep doctor`: looks at what goes wrong in practice, before a sweep meets it.

What is known is said as soon as it is known: a check that waits, or that fails altogether, comes
after those that do not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import doctor_checks as checks
from orchestrator import doctor_local as local
from orchestrator.doctor_checks import Finding
from orchestrator.errors import SweepError
from orchestrator.node import Question, answering, inspect, where
from orchestrator.node_storage import confirm, marked
from orchestrator.options import out, print_json

if TYPE_CHECKING:
    from orchestrator.sweep import Sweep

_STYLES = {"ok": "", "warning": "yellow", "problem": "red"}
_SENT = ("__init__.py", "node.py", "node_gpus.py", "node_storage.py")


def examine(target: str | None, address: str | None) -> Iterator[Finding]:
    """Look at this machine, at a sweep's storage and tracking, and at a cluster.

    Args:
        target: a sweep file or a results folder; None leaves storage and tracking out.
        address: of a running cluster; None leaves it out.

    Raises:
        UserError: the target has problems; the address does not answer or refuses.
    """
    here = inspect(Question(torch=True))
    packages = local.packages(here["packages"], Path.cwd())
    yield from packages
    yield from local.requirements()
    yield from local.determinism(local.this_shell(), _processor())
    yield from checks.machine(here)
    yield from checks.gpus(here)
    yield from local.token(os.environ, Path.home())
    subject, ours = None, all(finding.level != "problem" for finding in packages)
    if target is not None and not ours:
        what = f"{target} was not looked at: first our packages must be found"
        yield Finding("warning", "storage", what)
    elif target is not None:
        subject = _subject(target)
    sweep = None if subject is None else subject.sweep
    if ours:
        yield from local.data(sweep)
    if address is not None:
        for finding in _cluster(address, subject):
            yield replace(finding, where=finding.where or "cluster")
    elif subject is not None:
        yield from _storage(subject)
        if sweep is not None:
            yield from local.needed(sweep)
    if subject is not None and subject.uri is not None:
        yield from local.tracking(subject.uri)


def report(target: str | None, address: str | None, *, as_json: bool) -> int:
    """Print what `examine` finds, as it finds it; as JSON at the end.

    Returns:
        The exit code: 1 if there is a problem.

    Raises:
        UserError: see `examine`; what was found before is printed.
    """
    found = []
    for finding in examine(target, address):
        found.append(finding)
        if not as_json:
            place = f", {finding.where}" if finding.where else ""
            line = f"{finding.level:<8} {finding.subject}{place}: {finding.what}"
            out.print(line, markup=False, style=_STYLES[finding.level])
            if finding.fix:
                out.print(f"         fix: {finding.fix}", markup=False)
    problems = sum(finding.level == "problem" for finding in found)
    if as_json:
        print_json({"problems": problems, "findings": [asdict(finding) for finding in found]})
    return 1 if problems else 0


@dataclass(frozen=True)
class _Subject:
    """What is known of the sweep in question.

    Attributes:
        folder: of its results.
        tracked: MLflow is to be written, as far as that is known.
        uri: of tracking; None: a database in the results folder.
        sweep: of a sweep file; None: a results folder was named.
    """

    folder: Path
    tracked: bool
    uri: str | None
    sweep: Sweep | None = None

    @property
    def embedded(self) -> bool:
        """MLflow's database is to lie in the results folder."""
        return self.tracked and self.uri is None


def _subject(target: str) -> _Subject:
    from orchestrator import loading

    path = Path(target)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        sweep = loading.load_sweep(target, ())
        return _Subject(sweep.root, sweep.tracking.enabled, sweep.tracking.uri, sweep)
    store = loading.open_store(target)
    uri, _ = loading.tracking(store)
    return _Subject(store.root, uri is not None, uri)


def _storage(subject: _Subject) -> Iterator[Finding]:
    folder = subject.folder
    try:
        with marked(folder) as (marker, token):
            here = inspect(Question((), str(folder), marker, token))
    except OSError as error:
        yield _unwritable(folder, error)
        return
    yield from checks.storage([here], str(folder), shared=False, embedded=subject.embedded)


def _cluster(address: str, subject: _Subject | None) -> Iterator[Finding]:
    from orchestrator import connection

    folder = None if subject is None else subject.folder

    requirements = tuple((name, "") for name in checks.WORKER)
    with contextlib.ExitStack() as stack:
        code = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sweep-doctor-")))
        _send(code)
        cluster = stack.enter_context(
            connection.join(address, runtime_env={"working_dir": str(code)})
        )
        question = Question(requirements, torch=True)
        if folder is not None:
            try:
                marker, token = stack.enter_context(marked(folder))
            except OSError as error:
                yield _unwritable(folder, error)
                folder = None
            else:
                question = Question(requirements, str(folder), marker, token, torch=True)
        offered = {found.node_id: found.resources.get("GPU", 0.0) for found in cluster.nodes()}
        asked = cluster.ask(question)
        if folder is not None:
            confirm(folder, asked)
        here = inspect(question)
        # Again, with workers that are there already: the shorter the way, the surer the clock.
        timed = answering(cluster.ask(Question()))
    nodes = answering(asked)
    for facts in asked:
        if "silent" in facts:
            fix = "Look at Ray's logs there (`session_latest/logs` in its temporary folder), and "
            fix += "start Ray on it again."
            yield Finding("problem", "nodes", f"no answer: {facts['silent']}", fix, where(facts))
    yield Finding("ok", "nodes", f"{len(nodes)} of {len(asked)} at {address} answer")
    yield from _guarded()
    yield from checks.versions(nodes, here)
    if subject is not None:
        yield from _database(subject, len(asked))
        if folder is not None:
            yield from checks.storage(
                [here, *nodes], str(folder), shared=True, embedded=subject.embedded
            )
    found: list[tuple[dict[str, Any], Finding]] = []
    for facts in nodes:
        results = [*checks.machine(facts), *checks.gpus(facts, offered.get(facts["node_id"]))]
        found += [(facts, finding) for finding in results]
    for facts in timed:
        found += [(facts, f) for f in checks.clock(facts, facts["sent"], facts["received"])]
    yield from checks.merged(found)


def _database(subject: _Subject, nodes: int) -> Iterator[Finding]:
    from orchestrator.mlflow_access import refuse_local_database

    try:
        if subject.tracked:
            refuse_local_database("", subject.uri, nodes)
    except SweepError as error:
        yield Finding("problem", "tracking", error.problems[0].message)


def _guarded() -> Iterator[Finding]:
    """Joining has switched the token on if the cluster wants one."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        yield Finding("ok", "Ray token", "it was sent, and the cluster has not refused it")
        return
    what = "the cluster wants none: whoever reaches its ports can run code on it"
    fix = (
        "ray get-auth-token --generate; copy ~/.ray/auth_token to every machine; there, set "
        "RAY_AUTH_MODE=token and start Ray again."
    )
    yield Finding("warning", "Ray token", what, fix)


def _send(folder: Path) -> None:
    """What the nodes need in order to answer: this project may not be installed there."""
    (folder / "orchestrator").mkdir()
    for name in _SENT:
        shutil.copy(Path(__file__).with_name(name), folder / "orchestrator" / name)


def _unwritable(folder: Path, error: OSError) -> Finding:
    what = f"{folder} cannot be written here: {error.strerror or error}"
    fix = "Change its permissions, or choose another folder with `storage:` in the file."
    return Finding("problem", "storage", what, fix)


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
