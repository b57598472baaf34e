"""The sbatch script of `docs/slurm.md`, run for real but for Slurm itself."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests import clusters
from tests.orchestrator.test_resume import Sandbox

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "slurm" / "sweep.sbatch"
# Two trials that take a second or two each, so that there is time to interrupt them.
SWEEP = """
name: toy
task: {task}:Faulty
base: {{steps: 2000, width: 8, lr: 1e-3}}
grid: {{weight_decay: [0.0, 1.0]}}
snapshots: {{every: 500}}
evaluations: {{every: 50}}
checkpoint_seconds: 0.1
tracking: none
"""
# Without Slurm: the command runs here, and is told to end when srun is. The call is noted down.
SRUN = """\
#!/usr/bin/env bash
echo "$*" >> "$CALLS/srun"
while [[ $1 == --* ]]; do shift; done
"$@" &
trap 'kill -TERM $!' TERM
while ! wait $!; do kill -0 $! 2>/dev/null || break; done
"""
SCONTROL = """\
#!/usr/bin/env bash
echo "$*" >> "$CALLS/scontrol"
"""


class Slurm:
    """What Slurm does for a job: variables, `srun` and `scontrol` on the path, signals.

    Both commands are stand-ins, see above; nodes are raylets on this machine.
    """

    def __init__(self, folder: Path, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.calls = folder / "calls"
        self.log = folder / "job.log"  # of both runs: --open-mode=append
        commands = folder / "bin"
        for path in (self.calls, commands):
            path.mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))}
        self.job = free_job()
        self.environ: Mapping[str, str] = {
            **ours,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(self.calls),
            "FAULTS": str(sandbox.faults),
            "STORE": str(sandbox.root),
            "VENV": str(Path(sys.executable).parents[1]),
            "SLURM_JOB_ID": str(self.job),
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_SUBMIT_DIR": str(sandbox.folder),
        }

    @contextlib.contextmanager
    def started(self, *, nodes: int) -> Iterator[subprocess.Popen[bytes]]:
        """The script as a job; whatever is left of it is ended."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                ["bash", str(SCRIPT), "toy.yaml"],
                env={**self.environ, "SLURM_JOB_NUM_NODES": str(nodes)},
                cwd=self.sandbox.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def called(self, command: str) -> list[str]:
        path = self.calls / command
        return path.read_text().splitlines() if path.exists() else []


def free_job() -> int:
    """A job whose ports nobody else uses on this machine."""
    while True:
        job = 1000 + secrets.randbelow(9000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(10000 + job % 1000 * 20, 10002 + job % 1000 * 20):
                probe = stack.enter_context(socket.socket())
                probe.bind(("", port))
            return job


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_at_its_time_limit_continues_when_it_is_requeued(tmp_path: Path) -> None:
    """USR1: the trials checkpoint, the job is requeued once, and its next run resumes them.

    `srun` and `scontrol` are stand-ins that run the command on this machine and record the call;
    everything else is real, and the tables equal those of an undisturbed run. The second run gets
    one node, so that the script is tried with workers and without.
    """
    undisturbed = Sandbox(tmp_path / "undisturbed", SWEEP)
    done = undisturbed.sweep("run", "toy.yaml", "--in-process")
    assert done.returncode == 0, done.stderr
    sandbox = Sandbox(tmp_path / "s", SWEEP)
    slurm = Slurm(tmp_path, sandbox)

    with slurm.started(nodes=2) as first:
        clusters.wait_until(
            lambda: first.poll() is not None or any(sandbox.root.glob("checkpoints/*/[0-9]*")),
            slurm.log.read_text,
        )
        first.send_signal(signal.SIGUSR1)
        stopped = first.wait(120)
    requeued = slurm.called("scontrol")
    with slurm.started(nodes=1) as second:
        ended = second.wait(120)

    log = slurm.log.read_text()
    assert (stopped, requeued) == (130, [f"requeue {slurm.job}"]), log
    assert ended == 0, log
    assert slurm.called("scontrol") == requeued
    assert max(sandbox.start_steps()) > 0
    assert sandbox.tables() == undisturbed.tables()
    made = re.findall(r"mkdir -m 700 (\S+)", (slurm.calls / "srun").read_text())
    assert [path.rpartition("-")[0] for path in made] == [f"/tmp/ray-{slurm.job}"] * 2
    assert not list(Path("/tmp").glob(f"ray-{slurm.job}*"))


def test_the_page_quotes_the_script() -> None:
    """`docs/slurm.md` shows `slurm/sweep.sbatch` as it is."""
    page = (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")

    assert re.findall(r"^```bash\n(.*?)^```$", page, re.M | re.S) == [SCRIPT.read_text()]
