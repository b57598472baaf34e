"""`sweep run` as a user meets it: results, failures, retries, selections, mistakes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from orchestrator import files
from orchestrator.results import Results
from orchestrator.store import Store
from tests.orchestrator.conftest import Call
from tests.orchestrator.test_resume import SHORT, Sandbox

QUICK = """
name: toy
task: {task}:Faulty
base: {{steps: 200, width: 4, lr: 1e-3}}
grid: {{weight_decay: [0.0, 1.0]}}
seeds: 2
snapshots: {{every: 100}}
tracking: none
"""
DECOYS = ("tasks.py", "spectral.py", "orchestrator.py")


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "s", QUICK)


@pytest.fixture(scope="module")
def once_finished(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Every trial has a result; to be copied."""
    sandbox = Sandbox(tmp_path_factory.mktemp("finished") / "s", QUICK)
    done = sandbox.sweep("run", "toy.yaml", "--in-process")
    assert done.returncode == 0, done.stderr
    assert len(sandbox.start_steps()) == 4
    return sandbox


@pytest.fixture
def finished(tmp_path: Path, once_finished: Sandbox) -> Sandbox:
    return once_finished.copy(tmp_path / "s")


def statuses(sandbox: Sandbox) -> list[str]:
    return sorted(Store.open(sandbox.root).commits()["status"].to_pylist())


def test_a_second_run_of_a_finished_sweep_does_nothing(finished: Sandbox) -> None:
    """Running the same file again is resuming; with every result there, no trial is started."""
    second = finished.sweep("run", "toy.yaml", "--in-process")

    assert second.returncode == 0
    assert len(finished.start_steps()) == 4
    assert "toy: 4 trials, 4 already done" in second.stderr


def test_an_extended_sweep_runs_only_what_is_new(finished: Sandbox) -> None:
    """A seed more costs the trials of that seed; the others keep their ids and results."""
    text = (finished.folder / "toy.yaml").read_text()
    (finished.folder / "toy.yaml").write_text(text.replace("seeds: 2", "seeds: 3"))

    done = finished.sweep("run", "toy.yaml", "--in-process")

    assert done.returncode == 0, done.stderr
    assert len(finished.start_steps()) == 6
    assert Results.open(finished.root).trials().num_rows == 6


@pytest.fixture(scope="module")
def with_ray(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Sandbox, subprocess.CompletedProcess[str]]:
    """A run on this machine's workers: one trial raises, and decoys lie in the working directory.

    Ray starts once for the tests that look at what became of it.
    """
    sandbox = Sandbox(tmp_path_factory.mktemp("ray") / "s", QUICK)
    sandbox.order("raise")
    with (sandbox.folder / "toy.yaml").open("a") as file:
        file.write("data: sets\n")
    for name in DECOYS:
        (sandbox.folder / name).write_text("raise SystemExit('the decoy was imported')\n")
    return sandbox, sandbox.sweep("run", "toy.yaml")


@pytest.mark.ray
def test_a_users_own_module_called_tasks_does_no_harm(
    with_ray: tuple[Sandbox, subprocess.CompletedProcess[str]],
) -> None:
    """Ray would put the working directory first on the workers' path; ours must not be shadowed."""
    sandbox, done = with_ray

    assert "decoy" not in done.stderr
    assert statuses(sandbox).count("completed") >= 3


@pytest.mark.ray
def test_a_worker_looks_for_data_where_the_file_says(
    with_ray: tuple[Sandbox, subprocess.CompletedProcess[str]],
) -> None:
    """In the folder as the user meant it: workers stand elsewhere."""
    sandbox, _ = with_ray

    assert (sandbox.faults / "data-folder").read_text() == str(sandbox.folder / "sets")


@pytest.mark.ray
def test_an_exception_in_task_code_fails_its_trial_alone(
    with_ray: tuple[Sandbox, subprocess.CompletedProcess[str]],
) -> None:
    """The others finish; the message has the cause and the command that re-runs it alone."""
    sandbox, done = with_ray

    assert done.returncode == 1
    assert statuses(sandbox) == ["completed", "completed", "completed", "failed"]
    [row] = [
        row for row in Store.open(sandbox.root).commits().to_pylist() if row["status"] == "failed"
    ]
    assert row["error_kind"] == "ValueError"
    assert 'faulty_task.py", line' in row["error"]
    assert row["error"].endswith("ValueError: the fault [/that/was ordered], at step 100\n")
    assert f"({row['trial_id']}): ValueError: the fault [/that/was ordered], at step 100" in (
        done.stderr
    )
    command = f"sweep run toy.yaml --only {row['trial_id']} --retry failed --in-process"
    assert "[4/4] " in done.stderr
    assert f"  again, alone: {command}\n" in done.stderr

    # A failed trial is not run again unless asked to, and then it alone is.
    again = sandbox.sweep("run", "toy.yaml", "--in-process")
    assert again.returncode == 1
    assert again.stderr.startswith(
        "toy: 4 trials, 3 already done, 1 failed before (--retry failed runs them again)\n"
    )
    assert len(sandbox.start_steps()) == 4
    retried = sandbox.sweep(*command.split()[1:])
    assert retried.returncode == 0, retried.stderr
    assert statuses(sandbox) == ["completed"] * 4 + ["failed"]
    assert sandbox.sweep("run", "toy.yaml", "--in-process").returncode == 0


def test_in_process_exceptions_arrive_unwrapped(sandbox: Sandbox) -> None:
    """With --in-process the exception itself ends the run, after its row was committed."""
    sandbox.order("raise")

    done = sandbox.sweep("run", "toy.yaml", "--in-process")

    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: the fault [/that/was ordered], at step 100")
    assert "Traceback (most recent call last)" in done.stderr
    assert statuses(sandbox) == ["failed"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_that_kills_its_workers_is_failed_after_three(tmp_path: Path) -> None:
    """Lost attempts are counted in the store, so that the limit survives the driver."""
    sandbox = Sandbox(tmp_path / "s", QUICK.replace("seeds: 2", "seeds: 1"))
    code = (sandbox.folder / "faulty_task.py").read_text()
    (sandbox.folder / "faulty_task.py").write_text(
        code.replace("        faults = os", "        os.kill(os.getpid(), 9)\n        faults = os")
    )

    done = sandbox.sweep("run", "toy.yaml", "--only", "weight_decay=1.0")

    assert done.returncode == 1
    assert statuses(sandbox) == ["failed", "lost", "lost", "lost"]
    assert "the worker died 3 times under this trial, the last time: " in done.stderr


def test_divergence_is_a_result_with_its_rows_kept(tmp_path: Path) -> None:
    """Exit 0, status diverged, the first bad step named, the rows before it there."""
    sandbox = Sandbox(
        tmp_path / "s", QUICK.replace("lr: 1e-3", "lr: 1e-3, explode: true, optimizer: sgd")
    )

    done = sandbox.sweep("run", "toy.yaml", "--in-process")

    assert done.returncode == 0, done.stderr
    trials = Results.open(sandbox.root).trials()
    assert set(trials["status"].to_pylist()) == {"diverged"}
    assert all(0 <= step <= 100 for step in trials["last_step"].to_pylist())
    assert Results.open(sandbox.root).scalars(step=0).num_rows > 0


@pytest.mark.parametrize(
    ("expression", "count"), [("weight_decay=1.0,seed=0", 1), ("seed=1", 2), ("weight_decay=0", 2)]
)
def test_only_runs_what_it_names(sandbox: Sandbox, expression: str, count: int) -> None:
    """--only by assignments; the rest of the sweep stays open."""
    done = sandbox.sweep("run", "toy.yaml", "--in-process", "--only", expression)

    assert done.returncode == 0, done.stderr
    assert Results.open(sandbox.root).trials().num_rows == count


def test_set_is_stored_with_the_file(sandbox: Sandbox) -> None:
    """What --set changed is part of the accepted version."""
    done = sandbox.sweep("run", "toy.yaml", "--in-process", "--set", "base.steps=50")

    assert done.returncode == 0, done.stderr
    [record] = Store.open(sandbox.root).sweeps()
    assert record.overrides == ("base.steps=50",)
    assert record.text == (sandbox.folder / "toy.yaml").read_text()
    assert set(Results.open(sandbox.root).trials()["last_step"].to_pylist()) == {50}


def test_changed_task_code_is_noticed(finished: Sandbox) -> None:
    """The user decides: keep the results, or run them again; comments change nothing."""
    sandbox = finished
    path = sandbox.folder / "faulty_task.py"
    path.write_text("# a comment more\n" + path.read_text())
    assert sandbox.sweep("run", "toy.yaml", "--in-process").returncode == 0

    path.write_text(path.read_text().replace("** 2).sum()", "** 4).sum()"))
    refused = sandbox.sweep("run", "toy.yaml", "--in-process")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: toy.yaml: 1 problem\n"
        f"  the code of task 'Faulty' has changed since 4 trials in {sandbox.root} ran, and its "
        "version is still 1. If its numbers are the same, add --keep; to run those trials again, "
        "add --rerun changed; if they are a new kind of result, raise the task's version\n"
    )
    plan = json.loads(sandbox.sweep("plan", "toy.yaml", "--json").stdout)
    assert plan["changed"] == 4

    before = sandbox.tables()
    kept = sandbox.sweep("run", "toy.yaml", "--in-process", "--keep")
    assert kept.returncode == 0, kept.stderr
    assert sandbox.tables() == before
    rerun = sandbox.sweep("run", "toy.yaml", "--in-process", "--rerun", "changed")
    assert rerun.returncode == 0, rerun.stderr
    assert len(sandbox.start_steps()) == 8
    assert sandbox.tables()["trials"] == before["trials"]
    assert sandbox.tables()["scalars"] != before["scalars"]


def test_code_edited_while_the_sweep_runs_is_not_mixed_in(sandbox: Sandbox) -> None:
    """The trial under way keeps its code; the next one stops the sweep instead of using the new."""
    sandbox.order("edit")

    done = sandbox.sweep("run", "toy.yaml", "--in-process")

    assert done.returncode == 3
    assert (
        "error: the code of task 'Faulty' was edited while the sweep ran; nothing that the new "
        "code made was kept. Run the same command again to decide about it.\n"
    ) in done.stderr
    assert statuses(sandbox) == ["completed"]


def test_rerun_runs_a_trial_again_whatever_became_of_it(sandbox: Sandbox, call: Call) -> None:
    """Failed, then completed, then run again: its result is replaced, the others stay."""
    one = "weight_decay=0.0,seed=0"
    sandbox.order("raise")
    sandbox.sweep("run", "toy.yaml", "--in-process", "--only", one)
    sandbox.sweep("run", "toy.yaml", "--in-process", "--retry", "failed")
    before = sandbox.tables()

    two = "weight_decay=1.0,seed=0"
    outside = call(sandbox.folder, "run", "toy.yaml", "--only", one, "--rerun", two)
    both = call(sandbox.folder, "run", "toy.yaml", "--keep", "--rerun", "changed")
    again = sandbox.sweep("run", "toy.yaml", "--in-process", "--rerun", one)

    assert (outside.returncode, both.returncode) == (2, 2)
    assert "  it names trials that --only leaves out\n" in outside.stderr
    assert "  --keep and --rerun changed contradict each other; give one\n" in both.stderr
    assert again.returncode == 0, again.stderr
    assert "toy: 4 trials, 3 already done\n" in again.stderr
    assert statuses(sandbox) == ["completed"] * 5 + ["failed"]
    assert sandbox.tables() == before


def test_a_second_driver_is_refused(finished: Sandbox) -> None:
    """Exit 2 and nothing launched, while another driver holds the store."""
    text = (finished.folder / "toy.yaml").read_text()
    (finished.folder / "toy.yaml").write_text(text.replace("seeds: 2", "seeds: 3"))
    lock = files.DriverLock(finished.root / "epochs" / "driver.lock")
    lock.acquire()
    try:
        done = finished.sweep("run", "toy.yaml", "--in-process")
    finally:
        lock.release()

    assert done.returncode == 2
    assert f"error: {finished.root / 'epochs'} is in use by another driver: process " in done.stderr
    assert len(finished.start_steps()) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("tracking: none", "tracking: none\nresources: {{cpus: 4096}}"),
            "  resources.cpus: a trial asks for 4096 CPUs, this machine has ",
        ),
        (
            ("tracking: none", "tracking: none\nresources: {{gpus: 64}}"),
            "  resources.gpus: a trial asks for 64 GPUs, this machine has ",
        ),
        (("{task}:Faulty", "nowhere.py:Faulty"), "nowhere.py"),
        (
            ("tracking: none", "tracking: none\nstorage: toy.yaml/inside"),
            "toy.yaml/inside/toy: Not a directory; choose another storage folder\n",
        ),
    ],
    ids=["cpus", "gpus", "task", "storage"],
)
def test_what_cannot_run_is_refused_before_the_launch(
    tmp_path: Path, call: Call, change: tuple[str, str], message: str
) -> None:
    """Exit 2, the message says how many there are, and no folder appears."""
    sandbox = Sandbox(tmp_path / "s", QUICK.replace(*change))

    done = call(sandbox.folder, "run", "toy.yaml")

    assert done.returncode == 2
    assert done.stderr.startswith("error: toy.yaml: 1 problem\n")
    assert message in done.stderr
    assert not sandbox.root.exists()


def test_a_folder_of_another_task_is_refused(finished: Sandbox) -> None:
    """One results folder, one task."""
    sandbox = finished
    code = (sandbox.folder / "faulty_task.py").read_text()
    (sandbox.folder / "faulty_task.py").write_text(code.replace("class Faulty", "class Other"))
    text = (sandbox.folder / "toy.yaml").read_text()
    (sandbox.folder / "toy.yaml").write_text(text.replace(":Faulty", ":Other"))

    done = sandbox.sweep("run", "toy.yaml", "--in-process")

    assert done.returncode == 2
    assert done.stderr == (
        f"error: toy.yaml: 1 problem\n  {sandbox.root} belongs to a sweep of task 'Faulty', this "
        "file's task is 'Other'; choose another name\n"
    )


def test_a_folder_that_is_not_ours_is_refused(sandbox: Sandbox, call: Call) -> None:
    """Somebody's files are never mixed with results."""
    sandbox.root.mkdir(parents=True)
    (sandbox.root / "thesis.tex").write_text("")

    done = call(sandbox.folder, "run", "toy.yaml", "--in-process")

    assert done.returncode == 2
    assert done.stderr == (
        f"error: toy.yaml: 1 problem\n  {sandbox.root} exists and is not a results folder; choose "
        "another name or storage\n"
    )


def test_a_tracking_folder_is_refused_by_plan_and_run_alike(tmp_path: Path, call: Call) -> None:
    """MLflow's file store is gone; the message is part of the file's problems."""
    sandbox = Sandbox(tmp_path / "s", QUICK.replace("tracking: none", "tracking: {{uri: ./runs}}"))

    for command in ("plan", "run"):
        done = call(sandbox.folder, command, "toy.yaml")
        assert done.returncode == 2
        assert done.stderr.startswith("error: toy.yaml: 1 problem\n  ")
        assert done.stderr.endswith("  @ $.tracking.uri\n")
    assert not sandbox.root.exists()


def test_a_full_disk_stops_the_sweep_and_loses_nothing(tmp_path: Path) -> None:
    """Exit 3, the message says what to do; with room again the same command finishes it."""
    sandbox = Sandbox(tmp_path / "s", SHORT)  # of test_resume: checkpoints and many rows
    volume = sandbox.folder / "results"
    volume.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(volume)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        full = sandbox.sweep("run", "toy.yaml", "--in-process")
        command = ["mount", "-o", "remount,size=100m", str(volume)]
        subprocess.run(command, check=True, capture_output=True)
        again = sandbox.sweep("run", "toy.yaml", "--in-process")
        tables = sandbox.tables()
    finally:
        subprocess.run(["umount", str(volume)], check=True, capture_output=True)

    assert full.returncode == 3, full.stderr
    assert "No space left on device. The disk is full: free some space, then run the same" in (
        full.stderr
    )
    assert "to resume: sweep run toy.yaml --in-process\n" in full.stderr
    assert "Traceback" not in full.stderr
    assert again.returncode == 0, again.stderr
    assert len(tables["trials"]) == 2
    assert len(tables["scalars"]) == 2 * (121 * 2 + 13 * 2 * 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run",), "error: Missing argument 'FILE'.\nSee: sweep run --help\n"),
        (("run", "toy.yaml", "--retry", "all"), "expected 'failed', got 'all'"),
        (("frobnicate",), "error: No such command 'frobnicate'.\nSee: sweep --help\n"),
        (("query", "nowhere", "SELECT 1"), "nowhere is not a results folder: it does not exist."),
    ],
    ids=["no file", "bad choice", "no such command", "no store"],
)
def test_command_line_mistakes_have_no_traceback(
    sandbox: Sandbox, arguments: tuple[str, ...], message: str
) -> None:
    """One message, a non-zero exit code."""
    done = sandbox.sweep(*arguments)

    assert done.returncode in (2, 3)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
