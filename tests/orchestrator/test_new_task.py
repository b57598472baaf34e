# ruff: noqa: E501 (the messages stand in full)
"""`sweep new-task`: three files that work as they are, and every name that is refused."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import cli, new_task
from orchestrator.errors import UserError
from orchestrator.results import Results
from orchestrator.sweep import load

CHECKS = 5
"""Tests in the file that is written."""


@pytest.fixture(autouse=True)
def without_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test of this process may have loaded examples/my_task.py, which takes its name."""
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p).name != "examples"])
    monkeypatch.delitem(sys.modules, "my_task", raising=False)


def sweep(*words: str) -> int | None:
    """A command in this process; its exit code."""
    code: int | None = cli.app(list(words), standalone_mode=False)
    return code


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=240
    )


def test_what_is_written_runs_and_passes_its_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands that are printed, in new processes, in the folder where the user stands."""
    monkeypatch.chdir(tmp_path)

    sweep("new-task", "two_waves", "--folder", "mine")

    assert capsys.readouterr().out.splitlines() == [
        "wrote: mine/two_waves.py mine/two_waves.yaml mine/test_two_waves.py",
        "run:   sweep run mine/two_waves.yaml --in-process",
        "check: pytest mine/test_two_waves.py",
        "tell:  sweep tasks mine/two_waves.py:TwoWaves",
    ]
    command = str(Path(sys.executable).with_name("sweep"))
    short = ("--set", "base.steps=3", "--set", "seeds=1")
    trained = run(tmp_path, command, "run", "mine/two_waves.yaml", "--in-process", *short)
    assert trained.returncode == 0, trained.stderr
    trials = Results.open(tmp_path / "results" / "two_waves").trials()
    assert trials["status"].to_pylist() == ["completed"] * 2
    pytest_ = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    checked = run(tmp_path, *pytest_, "mine/test_two_waves.py")
    assert checked.returncode == 0, checked.stdout
    assert f"{CHECKS} passed" in checked.stdout


def test_the_test_that_is_written_can_fail(tmp_path: Path) -> None:
    """Its twin: a task that draws from torch's own generator repeats nothing."""
    path, _, test = new_task.write("careless", tmp_path)
    own = 'streams.normal("noise", which, (points, 1), dtype)'
    text = path.read_text()
    assert own in text
    careless = "torch.randn(len(streams), points, 1, dtype=dtype)"
    path.write_text(text.replace(own, careless))

    spec = importlib.util.spec_from_file_location("test_careless", test)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    checks = [name for name in vars(module) if name.startswith("test_")]
    failed = [name for name in checks if fails(vars(module)[name])]
    assert len(checks) == CHECKS
    assert failed == [
        "test_a_batch_depends_on_its_step_alone",
        "test_a_trial_has_the_same_bits_alone_and_in_company",
        "test_a_resumed_trial_goes_on_with_the_same_bits",
    ]


def fails(check: Callable[[], None]) -> bool:
    try:
        check()
    except AssertionError:
        return True
    return False


def test_the_sweep_file_that_is_written_loads(tmp_path: Path) -> None:
    """Four trials: two decays, two seeds."""
    _, file, _ = new_task.write("x2", tmp_path)

    found = load(file)

    assert (found.name, found.task_name, found.num_trials) == ("x2", "X2", 4)


def test_nothing_of_the_template_is_left_in_the_names(tmp_path: Path) -> None:
    """Neither `my_task` nor `MyTask`; each file is what its template is, but for the names."""
    for path in new_task.write("other", tmp_path):
        text = path.read_text()
        assert "my_task" not in text
        assert "MyTask" not in text
        if path.suffix == ".py":
            ast.parse(text)


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    """All that are in the way are named, and those that are not are not written either."""
    (tmp_path / "mine.py").write_text("mine")
    (tmp_path / "test_mine.py").symlink_to("nowhere")

    with pytest.raises(UserError) as caught:
        new_task.write("mine", tmp_path)

    assert str(caught.value) == (
        f"{tmp_path}/mine.py, {tmp_path}/test_mine.py are there already, and nothing is overwritten; choose another name, or another folder with --folder"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py", "test_mine.py"]
    assert (tmp_path / "mine.py").read_text() == "mine"


def test_a_second_time_is_refused(tmp_path: Path) -> None:
    """With the reason that counts: the files are there, not that `mine` is a module by now."""
    new_task.write("mine", tmp_path)
    (tmp_path / "mine.yaml").unlink()
    (tmp_path / "test_mine.py").unlink()

    with pytest.raises(UserError) as caught:
        new_task.write("mine", tmp_path)

    assert str(caught.value) == (
        f"{tmp_path}/mine.py is there already, and nothing is overwritten; choose another name, or another folder with --folder"
    )


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """With the system's own reason."""
    (tmp_path / "file").write_text("")

    with pytest.raises(UserError) as caught:
        new_task.write("mine", tmp_path / "file")

    assert str(caught.value) == (
        f"{tmp_path}/file cannot be written: File exists; choose another folder with --folder"
    )


def test_what_was_written_is_removed_if_a_later_file_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the folders that were made for it. The full disk is the one thing that is made up."""
    (tmp_path / "there").mkdir()
    opened = Path.open

    def refusing(path: Path, *words: object, **more: object) -> object:
        if path.name == "test_mine.py":
            raise OSError(28, "No space left on device", str(path))
        return opened(path, *words, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refusing)
    for folder in (tmp_path / "there", tmp_path / "new" / "deep"):
        with pytest.raises(UserError) as caught:
            new_task.write("mine", folder)

        assert str(caught.value) == (
            f"{folder}/test_mine.py cannot be written: No space left on device; choose another folder with --folder"
        )
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


@pytest.mark.parametrize(
    ("name", "reason", "other"),
    [
        ("my-net", "expected a-z, 0-9 and _, a letter first", "my_net"),
        ("MyNet", "expected a-z, 0-9 and _, a letter first", "my_net"),
        ("2d", "expected a-z, 0-9 and _, a letter first", "my_2d"),
        ("", "expected a-z, 0-9 and _, a letter first", "my_task"),
        ("../up", "expected a-z, 0-9 and _, a letter first", "up"),
        ("élan", "expected a-z, 0-9 and _, a letter first", "lan"),
        ("x" * 61, "it has 61 characters, at most 60", "x" * 57),
        ("class", "it is a word of the Python language", "my_class"),
        ("match", "it is a word of the Python language", "my_match"),
        ("test_net", "pytest would look for tests in test_net.py", "net"),
        ("net_test", "pytest would look for tests in net_test.py", "net"),
        ("modular_addition", "a task of this name is registered already (see `sweep tasks`)", "my_modular_addition"),
        ("json", "json.py would hide the module json from programs started beside it", "my_json"),
        ("torch", "torch.py would hide the module torch from programs started beside it", "my_torch"),
        ("tasks", "tasks.py would hide the module tasks from programs started beside it", "my_tasks"),
        ("tensor", "its class would be called Tensor, as something else in its files", "my_tensor"),
        ("config", "its class would be called Config, as something else in its files", "my_config"),
        ("group", "its class would be called Group, as something else in its files", "my_group"),
        ("t_w_o", "its class would be called TWO, as something else in its files", "my_t_w_o"),
        ("full_batch", "its class would be called FullBatchConfig, as something else in its files", "my_full_batch"),
        ("true", "its class would be called True, a word of the Python language", "my_true"),
        ("none", "its class would be called None, a word of the Python language", "my_none"),
        ("null", "in a sweep file it is no text", "my_null"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_bad_name_is_refused_with_a_better_one(
    tmp_path: Path, name: str, reason: str, other: str
) -> None:
    """The suggestion is accepted, and nothing is written."""
    with pytest.raises(UserError) as caught:
        new_task.write(name, tmp_path)

    assert str(caught.value) == f"{name!r} cannot be the name of a task: {reason}; try {other}"
    assert not any(tmp_path.iterdir())
    assert new_task.objection(other, tmp_path) == ""
