# ruff: noqa: E501 (the messages stand in full)
"""Where real data sets lie: from the sweep file to the trial, and what is said when they do not."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tasks.data
from orchestrator import cli, node, options, parse, planning, run_sweep, site, staging
from orchestrator.driver import Options
from orchestrator.errors import Problem, SweepError
from orchestrator.results import Results
from orchestrator.session import Session
from orchestrator.store import Store
from orchestrator.sweep import Sweep
from orchestrator.trial import Assignment, Context, run_group
from tests.orchestrator.contexts import context

TASK = '''
from typing import Annotated, Literal

import torch
from pydantic import Field

from tasks import FullBatchConfig, Task, data, initialise_
from tasks.models.mlp import MLP


class ReaderConfig(FullBatchConfig):
    streams = ("init",)
    data: Literal["made", "mnist", "cifar10"] = "made"
    width: Annotated[int, Field(ge=1)] = 2


class Reader(Task):
    """Its loss, at step 0 and ever after, is the mean of the column `label`, or 7."""

    Config = ReaderConfig

    @classmethod
    def missing(cls, config):
        return [] if config.data == "made" else data.missing(config.data)

    def build(self, streams):
        return initialise_(MLP([1, self.config.width, 1]), streams)

    def eval_data(self, streams, split):
        values = [7.0]
        if self.config.data != "made":
            values = [float(row["label"]) for row in data.open_split(self.config.data, "train")]
        return {"y": torch.tensor(values)[None].expand(len(streams), -1)}

    def batch(self, streams, step, micro):
        return streams.remember("all", lambda: self.eval_data(streams, "train"))

    def loss(self, forward, batch):
        nothing = 0 * forward(batch["y"][:, None]).sum()
        return batch["y"].sum() + nothing, torch.tensor(batch["y"].shape[0])

    def evaluate(self, forward, data):
        return {"loss": self.loss(forward, data)}
'''
FILE = """
name: reader
task: reader.py:Reader
base: {steps: 1}
grid: {data: [made, mnist, cifar10]}
tracking: none
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the task, an empty home and nothing in the environment."""
    folder = tmp_path / "w"
    folder.mkdir()
    (folder / "reader.py").write_text(TASK)
    (folder / "reader.yaml").write_text(FILE)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(tasks.data.ENVIRONMENT, raising=False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    yield folder
    tasks.data.use(None)


def put(folder: Path, name: str, labels: list[int]) -> None:
    """A data set as it is downloaded: one Parquet file."""
    (folder / name).mkdir(parents=True)
    pq.write_table(pa.table({"label": labels}), folder / name / "train-00000-of-00001.parquet")


def sweep(text: str = FILE, *overrides: str) -> Sweep:
    return parse(text, source="reader.yaml", base=Path.cwd(), overrides=overrides)


def absent(name: str, folder: Path) -> str:
    """What `tasks.data` says of a data set that is not there."""
    known = tasks.data.SETS[name]
    size = {"mnist": "18 MB", "cifar10": "144 MB"}[name]
    return f"data set {name} is not on this machine: looked in {folder / name}. Download it there (about {size}) with: {known.command(folder / name)}. Or name the folder that holds a folder {name!r} in the sweep file's `data:` or in $SPECTRAL_SWEEPS_DATA."


def losses(found: Results) -> list[tuple[str, float]]:
    rows = found.sql(
        "SELECT DISTINCT data, value FROM trials JOIN scalars USING (trial_id)"
        " WHERE metric = 'loss' ORDER BY data"
    )
    return [(row["data"], row["value"]) for row in rows.to_pylist()]


# --- the field ------------------------------------------------------------------------------


def test_the_folder_starts_from_the_working_directory(here: Path, tmp_path: Path) -> None:
    """Like storage: relative to where the user stands, ~ is the home folder, file:// is a path."""
    assert sweep().data is None
    assert sweep(f"{FILE}data: sets\n").data == str(here / "sets")
    assert sweep(f"{FILE}data: ~/sets\n").data == str(tmp_path / "home" / "sets")
    assert sweep(f"{FILE}data: file://{tmp_path}/a%20b\n").data == str(tmp_path / "a b")
    assert sweep(FILE, "data=/shared/sets").data == "/shared/sets"


def test_where_data_lie_is_no_part_of_a_trial() -> None:
    """Moving a folder makes no trial a new one; the parameter `data` is another matter."""
    plain, moved = sweep(), sweep(f"{FILE}data: sets\n")

    assert [t.trial_id for t in plain.trials()] == [t.trial_id for t in moved.trials()]
    assert len({t.trial_id for t in plain.trials()}) == 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("3", "expected a folder, got 3; put it in quotes  @ line 7, column 7, $.data"),
        ("[a]", "expected a folder, got a list  @ line 7, column 7, $.data"),
        ("s3://bucket/sets", "object storage is not available yet; use a folder, got 's3://bucket/sets'  @ line 7, column 7, $.data"),
        ("mnist", "'mnist' is a data set, not the folder that holds it: write base: {data: mnist}  @ line 7, column 7, $.data"),
    ],
)  # fmt: skip
def test_what_is_no_folder_is_refused(value: str, message: str) -> None:
    """With its place, and with what may have been meant."""
    with pytest.raises(SweepError) as caught:
        sweep(f"{FILE}data: {value}\n")

    assert str(caught.value) == f"reader.yaml: 1 problem\n  {message}"


def test_a_submitted_sweep_keeps_its_folder(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the head the working directory is another one; what the user wrote stays on record."""
    given = sweep(f"{FILE}data: sets\n", "base.steps=2")
    origin = {
        "source": "reader.yaml",
        "base": str(here),
        "overrides": list(given.overrides),
        "storage": given.storage,
        "data": given.data,
        "task": "reader.py:Reader",
    }
    head = tmp_path / "head"
    (head / staging.ORIGIN).parent.mkdir(parents=True)
    (head / staging.ORIGIN).with_name("sweep.yaml").write_text(given.text)
    (head / "reader.py").write_text(TASK)
    monkeypatch.chdir(head)

    there = staging.load(origin)

    assert (there.data, there.storage) == (str(here / "sets"), str(here / "results"))
    assert (there.text, there.overrides) == (given.text, ("base.steps=2",))


# --- what is missing ------------------------------------------------------------------------


def test_missing_data_are_refused_with_all_other_problems(here: Path) -> None:
    """Before the launch, each once, at the value that chose them; no folder appears."""
    text = FILE.replace("grid: {", "seeds: 2\ngrid: {width: [2, 3], ")
    with pytest.raises(SweepError) as caught:
        run_sweep(sweep(f"{text}measure: {{views: [nothing]}}\ndata: sets\n"))

    assert str(caught.value).split("\n") == [
        "reader.yaml: 3 problems",
        f"  {absent('mnist', here / 'sets')}  @ line 6, column 36, $.grid.data[1]",
        f"  {absent('cifar10', here / 'sets')}  @ line 6, column 43, $.grid.data[2]",
        "  views: 'nothing' matches no matrix; there are: layers.0, layers.1  @ line 8, column 19, $.measure.views[0]",
    ]
    assert not (here / "results").exists()


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("grid: {data: [made, mnist, cifar10]}", "grid: {lr: [0.1, 0.2]}", "line 3, column 7, $.task"),
        ("base: {steps: 1}", "base: {steps: 1, width: 2}", "line 5, column 28, $.grid.data[2]"),
        ("grid: {data: [made, mnist, cifar10]}", "zip: {data: [made, cifar10], width: [3, 4]}", "line 5, column 20, $.zip.data[1]"),
    ],
    ids=["default", "grid", "zip"],
)  # fmt: skip
def test_the_place_is_where_the_data_were_chosen(
    here: Path, old: str, new: str, place: str
) -> None:
    """A default stands nowhere: then it is the task's."""
    code = TASK.replace('] = "made"', '] = "cifar10"') if "lr" in new else TASK
    (here / "reader.py").write_text(code)
    put(here / "sets", "mnist", [1])

    with pytest.raises(SweepError) as caught:
        run_sweep(sweep(f"{FILE.replace(old, new)}data: sets\n"), Options(in_process=True))

    assert [str(problem) for problem in caught.value.problems] == [
        f"{absent('cifar10', here / 'sets')}  @ {place}"
    ]


def test_a_task_that_cannot_tell_is_refused(here: Path) -> None:
    """An exception of its own code is named, not shown as ours."""
    (here / "reader.py").write_text(TASK.replace('== "made"', "== 1 / 0"))

    with pytest.raises(SweepError) as caught:
        run_sweep(sweep())

    assert [str(problem) for problem in caught.value.problems] == [
        "task Reader cannot tell whether its data are here: ZeroDivisionError('division by zero')  @ line 5, column 15, $.grid.data[0]"
    ]


def test_a_plan_names_what_is_missing_and_counts_all_the_same(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a laptop without the data one still wants to know how many trials there are."""
    monkeypatch.setattr(options.out, "_width", 300)  # so that no line is broken
    arguments = ["plan", "reader.yaml", "--set", "data=sets"]

    assert cli.app(arguments, standalone_mode=False) is None
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    cifar = f"{absent('cifar10', here / 'sets')}  @ line 5, column 28, $.grid.data[2]"
    mnist = f"{absent('mnist', here / 'sets')}  @ line 5, column 21, $.grid.data[1]"
    assert any(line.split() == ["trials", "3"] for line in lines)
    assert any(line.split() == ["data", "sets", str(here / "sets")] for line in lines)
    assert lines[-2:] == [f"missing: {mnist}", f"missing: {cifar}"]

    cli.app([*arguments, "--set", "grid.data=[cifar10]", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert (found["data"], found["trials"]) == (str(here / "sets"), 1)
    assert found["missing"] == [f"{absent('cifar10', here / 'sets')}  @ --set grid.data=[cifar10]"]
    assert (found["estimate_seconds"], found["estimate_basis"]) == (
        None,
        "the data of data=cifar10 seed=0 are missing",
    )


# --- what is there --------------------------------------------------------------------------


def test_trials_read_the_folder_that_the_file_names(here: Path) -> None:
    """Only the trials that are launched need their data: cifar10 is left out, and missing."""
    put(here / "sets", "mnist", [1, 2, 6])
    given = sweep(f"{FILE}data: sets\n")
    chosen = [trial for trial in given.trials() if trial.params["data"] != "cifar10"]

    outcome = run_sweep(given, Options(in_process=True, only=chosen))

    assert outcome.statuses == {"completed": 2}
    assert losses(Results.open(given.root)) == [("made", 7.0), ("mnist", 3.0)]


def test_without_the_field_the_environment_decides(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative folder is the driver's: workers, who stand elsewhere, are told it in full."""
    put(here / "mine", "mnist", [4])
    monkeypatch.setenv(tasks.data.ENVIRONMENT, "mine")
    given = sweep(FILE, "grid.data=[mnist]")
    told: list[Context] = []

    def executor(context: Context, count: int) -> None:
        told.append(context)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(given, executor=executor)  # type: ignore[arg-type]
    outcome = run_sweep(given, Options(in_process=True))

    assert told[0].data == str(here / "mine")
    assert outcome.statuses == {"completed": 1}
    assert losses(Results.open(given.root)) == [("mnist", 4.0)]


def test_data_that_are_gone_fail_their_trial_with_a_text(here: Path) -> None:
    """As on a node that lacks them: no traceback, and nothing for an executor to raise."""
    given = sweep(f"{FILE}data: sets\n", "grid.data=[mnist]")
    assignment = Assignment((next(given.trials()),), (1,))
    with Session.claim(given) as session:
        result = run_group(assignment, context(given, session))
        session.commit(result.rows)

    assert result.error is None
    [row] = Store.open(given.root).commits().to_pylist()
    assert (row["status"], row["error_kind"]) == ("failed", "MissingDataError")
    assert row["error"] == absent("mnist", here / "sets")


def test_finished_trials_need_their_data_no_more(here: Path) -> None:
    """Neither for a plan nor for a run: only trials that would be launched ask for theirs."""

    def planned(given: Sweep) -> tuple[int, tuple[str, ...]]:
        plan = planning.plan(given, tasks.source_hash(given.task_class))
        return plan.remaining, plan.missing

    put(here / "sets", "mnist", [1])
    text, in_process = f"{FILE}data: sets\n", Options(in_process=True)
    finished, more = (sweep(text, "grid.data=[made, mnist]", f"seeds={n}") for n in (1, 2))
    made = [trial for trial in more.trials() if trial.params["data"] == "made"]
    of_mnist = [trial for trial in finished.trials() if trial.params["data"] == "mnist"]
    assert run_sweep(finished, in_process).exit_code == 0
    (here / "sets").rename(here / "elsewhere")

    assert planned(finished) == (0, ())
    assert run_sweep(finished, in_process).statuses == {"completed": 2}
    rerun = Options(in_process=True, rerun=of_mnist)
    for asked, asked_of in ((finished, rerun), (more, in_process)):
        with pytest.raises(SweepError) as caught:
            run_sweep(asked, asked_of)
        assert absent("mnist", here / "sets") in str(caught.value)

    # one that needs nothing runs, and the plan counts the one that cannot
    assert run_sweep(more, Options(in_process=True, only=made)).statuses == {"completed": 2}
    place = "--set grid.data=[made, mnist]"
    assert planned(more) == (1, (f"{absent('mnist', here / 'sets')}  @ {place}",))


# --- nodes of a cluster ---------------------------------------------------------------------


def test_a_node_says_what_it_lacks(here: Path, tmp_path: Path) -> None:
    """Of its own folder, by the index of the configuration; a task it cannot import is no answer."""
    put(tmp_path / "node", "mnist", [1])
    given = sweep(f"{FILE}data: {tmp_path}/node\n")
    question = site.about_data(given, given.task)
    elsewhere = node.Question(task="nowhere.py:Task", configurations=question.configurations)

    assert site.about_data(given, given.task, []) == node.Question(data=given.data)
    assert node.inspect(question)["data"] == {absent("cifar10", tmp_path / "node"): 2}
    assert node.inspect(node.Question())["data"] is None
    facts = node.inspect(elsewhere)
    assert facts["data"] is None
    assert [line.partition(":")[0] for line in facts["errors"]] == ["data"]


def test_data_that_no_node_has_are_refused_and_others_announced(here: Path) -> None:
    """A head without CPUs for trials does not count, nor does a node that could not be asked."""
    given = sweep()
    both, one = {"no mnist": 1, "no cifar10": 2}, {"no cifar10": 2}

    def facts(host: str, lacks: dict[str, int] | None) -> dict[str, object]:
        return {"host": host, "ip": None, "node_id": host, "data": lacks}

    nodes = [facts("head", {}), facts("a", both), facts("b", one), facts("c", None)]
    room = {"head": 0.0, "a": 2.0, "b": 1.0, "c": 1.0}

    problems, notes = site.lacking(nodes, given, lambda found: room[found["node_id"]] >= 1)

    assert problems == [
        Problem("a, b: no cifar10", "$.grid.data[2]", 5, 28),
    ]
    assert notes == ["trials fail on a, where something is missing: no mnist"]


# --- the list -------------------------------------------------------------------------------


def test_the_list_says_what_is_here_and_how_to_get_the_rest(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line per data set; the command is the one that puts it where it is looked for."""
    put(here / "sets", "mnist", [1])

    cli.app(["data", "--folder", "sets"], standalone_mode=False)

    lines = capsys.readouterr().out.splitlines()
    file = here / "sets" / "mnist" / "train-00000-of-00001.parquet"
    assert lines[:2] == [
        f"looked in {here}/sets and in the cache of `datasets`",
        "(another folder: --folder here, `data:` in a sweep file, or $SPECTRAL_SWEEPS_DATA)",
    ]
    assert [line.split()[:2] for line in lines[2:]] == [
        [name, "here" if name == "mnist" else "missing"] for name in tasks.data.SETS
    ]
    assert f"mnist        here     {file.stat().st_size} bytes {here}/sets/mnist" in lines
    command = f"hf download uoft-cs/cifar10 --repo-type dataset --local-dir {here}/sets/cifar10"
    assert f"cifar10      missing  144 MB   {command}" in lines


def test_one_data_set_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For programs: also why it cannot be opened."""
    cli.app(["data", "cifar10", "--folder", "my sets", "--json"], standalone_mode=False)

    [found] = json.loads(capsys.readouterr().out)
    place = here / "my sets" / "cifar10"
    assert found == {
        "name": "cifar10",
        "here": False,
        "place": str(place),
        "num_bytes": 144_000_000,
        "command": f"hf download uoft-cs/cifar10 --repo-type dataset --local-dir {shlex.quote(str(place))}",
        "problem": absent("cifar10", here / "my sets"),
    }


def test_an_unknown_data_set_is_refused() -> None:
    """With the nearest, and all there are."""
    with pytest.raises(Exception, match=r"^no data set 'cifar'") as caught:
        cli.app(["data", "cifar"], standalone_mode=False)

    assert str(caught.value) == (
        "no data set 'cifar' (did you mean cifar10?): there are cifar10, cifar100, mnist, librispeech, wikitext103"
    )
