# ruff: noqa: E501 (the messages stand in full)
"""What is wrong between a sweep's models and what is to be measured, said before anything runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from orchestrator import cli, planning, preflight
from orchestrator.driver import Options, run_sweep
from orchestrator.errors import SweepError
from orchestrator.factors import num_bytes
from orchestrator.sweep import Sweep, parse
from tasks.batch_norm import reestimate
from tasks.training import make_streams, start

TASK = """
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from spectral.views import Coupling, CouplingEnd, MatrixView, discover
from tasks import FullBatchConfig, Task
from tasks.random import initialise_

BUILT = []


class Net(nn.Module):
    def __init__(self, width, kind):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.fc = nn.Linear(width, 2)
        self.kind = kind
        if kind == "batch norm":
            self.norm = nn.BatchNorm2d(width)
        if kind == "batch norm without statistics":
            self.norm = nn.BatchNorm2d(width, track_running_stats=False)
        if kind == "too wide":
            self.wide = nn.Linear(2049, 3000)
        if kind == "unused":
            self.spare = nn.Conv2d(1, 3, 3)

    def forward(self, x):
        h = self.conv(x)
        if self.kind == "two grids":
            h = h[..., 1:, 1:] + self.conv(x[..., 1:, 1:])
        return self.fc(h.mean((-1, -2)))


class ToyConfig(FullBatchConfig):
    width: Annotated[int, Field(ge=1)] = 4
    kind: Literal["plain", "linear", "unused", "two grids", "no couplings", "residual",
                  "complex", "broken", "real numbers", "wrong view", "bad tap", "bad views",
                  "only with numbers", "batch norm", "batch norm without statistics",
                  "too wide", "heads", "heads only", "heads or residual", "unmet"] = "plain"
    scale: float = 1.0


class Toy(Task):
    Config = ToyConfig

    @property
    def splits(self):
        return ("all",) if "batch norm" in self.config.kind else ("train", "val")

    def build(self, streams):
        c = self.config
        BUILT.append(c.width)
        if c.kind == "broken":
            raise RuntimeError("no model today")
        if c.kind == "linear":
            return initialise_(nn.Linear(3, c.width), streams)
        net = initialise_(Net(c.width, c.kind), streams)
        if c.kind == "real numbers":
            assert float(net.fc.weight.abs().sum()) > 0  # which a model without numbers cannot say
        if c.kind == "complex":
            net.phase = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
        return net

    def batch(self, streams, step, micro):
        return self.eval_data(streams, "train")

    def eval_data(self, streams, split):
        return {"x": streams.normal("split", 0, (6, 1, 5, 5))}

    def loss(self, forward, batch):
        out = forward(batch["x"])
        return out.square().sum(), torch.tensor(out.shape[0])

    def evaluate(self, forward, data):
        return {"loss": self.loss(forward, data)}

    def views(self, model):
        if self.config.kind == "wrong view":
            return [MatrixView("a", "no.such"), MatrixView("b", "fc.weight", rows=(0, 99))]
        if self.config.kind == "bad views":
            raise ValueError("no views today")
        if "heads" in self.config.kind or self.config.kind == "unmet":
            return [*discover(model),
                    MatrixView("conv[0]", "conv.weight", rows=(0, 2), layout="conv"),
                    MatrixView("fc[0]", "fc.weight", columns=(0, 2), on_demand=True)]
        return discover(model)

    def couplings(self, model):
        c = self.config
        if c.kind in ("no couplings", "linear"):
            return []
        left, right = CouplingEnd("conv", "left"), CouplingEnd("fc", "right")
        if c.kind == "bad tap":
            right = CouplingEnd("conv", "right", reshape=(1, 3, 3), tap=(3, 1))
        if c.kind == "only with numbers" and model.fc.weight.is_meta:
            raise ValueError("this is for a model with numbers in it")
        if "heads" in c.kind:
            of_head = Coupling(CouplingEnd("conv[0]", "left"), CouplingEnd("fc[0]", "right"), 2,
                               per_head=True)
            others = {"heads": [Coupling(left, right, c.width)], "heads only": [],
                      "heads or residual": [Coupling(left, right, c.width, residual=True)]}
            return [*others[c.kind], of_head]
        if c.kind == "residual":
            return [Coupling(left, right, c.width, residual=True)]
        if c.kind == "unused":
            return [Coupling(left, CouplingEnd("fcc", "right"), c.width),
                    Coupling(left, CouplingEnd("fc", "left"), c.width, name="odd")]
        return [Coupling(left, right, c.width)]
"""
TOP = "name: toy\ntask: toy.py:Toy\ntracking: none\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sweep(measure: str, *, kind: str = "plain", more: str = "") -> Sweep:
    return parse(f"{TOP}base: {{kind: {kind}, steps: 2}}\nmeasure: {measure}\n{more}")


def built(loaded: Sweep) -> list[int]:
    """Widths of the models that the task's module has made, in order."""
    found: list[int] = sys.modules[loaded.task_class.__module__].BUILT
    return found


EVERYTHING = "[ranks, spectrum, alignment, agreement, pruned, update, operator]"


@pytest.mark.parametrize(
    ("kind", "measure", "problems"),
    [
        ("plain", EVERYTHING, []),
        ("real numbers", EVERYTHING, []),
        ("plain", "{groups: [agreement], views: ['c*', fc], vectors: 4}", []),
        (
            "plain",
            "{groups: [agreement], views: [con, 'fc.*'], vectors: 5}",
            [
                "views: 'con' matches no matrix (did you mean conv?)",
                "views: 'fc.*' matches no matrix (did you mean fc?); there are: conv, fc",
            ],
        ),
        (
            "plain",
            "{groups: [agreement], vectors: 500}",
            ["vectors: 500 exceeds the largest rank, 4 (conv, 4 x 9)"],
        ),
        (
            "plain",
            "{groups: [agreement], views: [fc], vectors: 3}",
            ["vectors: 3 exceeds the largest rank, 2 (fc, 2 x 4)"],
        ),
        (
            "plain",
            "{groups: [alignment], views: [fc]}",
            [
                "alignment: views leaves no coupling both of its matrices; couplings are between conv and fc"
            ],
        ),
        (
            "plain",
            "{groups: [alignment, operator, pruned], views: [dense]}",
            ["views: 'dense' matches no matrix; there are: conv, fc"],
        ),
        (
            "plain",
            "{groups: [alignment, operator], views: [dense, fc]}",
            [
                "views: 'dense' matches no matrix; there are: conv, fc",
                "alignment: views leaves no coupling both of its matrices; couplings are between conv and fc",
                "operator: there is no convolution among the matrices of the views chosen",
            ],
        ),
        ("bad tap", "[agreement]", []),
        (
            "bad tap",
            "[alignment]",
            [
                "alignment: coupling end 'conv': tap must index the axes (3, 3) of reshape, got (3, 1)"
            ],
        ),
        ("bad views", "[alignment, agreement]", ["views: no views today"]),
        ("bad views", "{groups: [agreement], views: [conv]}", ["views: no views today"]),
        ("only with numbers", "[alignment]", []),
        (
            "batch norm",
            "[pruned]",
            [
                "pruned: task Toy has no split 'train' to re-estimate BatchNorm's statistics over; it has all"
            ],
        ),
        ("batch norm", "[ranks, agreement]", []),
        ("batch norm without statistics", "[pruned]", []),
        (
            "too wide",
            "{groups: [pruned], pruned: {last: included}}",
            [
                "pruned: wide (3000 x 2049) has more than 2048 singular directions, of which only the leading ones are computed"
            ],
        ),
        ("too wide", "[pruned]", []),
        (
            "plain",
            "{groups: [alignment], residual: true}",
            [
                "residual: true has no effect: task 'Toy' declares no couplings across residual streams"
            ],
        ),
        ("residual", "{groups: [alignment], residual: true}", []),
        (
            "residual",
            "[alignment]",
            ["alignment: all couplings are across residual streams: add residual: true"],
        ),
        (
            "plain",
            "{groups: [alignment], heads: true}",
            ["heads: true has no effect: task 'Toy' declares no couplings of single heads"],
        ),
        ("heads", "{groups: [alignment], heads: true}", []),
        ("heads", "[alignment]", []),
        ("heads", "{groups: [alignment], heads: true, views: ['conv[0]', 'fc[0]']}", []),
        (
            "heads",
            "{groups: [alignment], heads: true, views: [conv, fc]}",
            [
                "heads: true has no effect: views leaves no coupling of single heads both of its matrices, such as conv[0] and fc[0]"
            ],
        ),
        (
            "heads",
            "{groups: [alignment], views: [conv, fc, 'fc[?]']}",
            [
                "views: 'fc[?]' matches only matrices that are measured for their couplings: add heads: true"
            ],
        ),
        ("heads", "{groups: [alignment], views: [conv, 'fc*']}", []),
        (
            "heads",
            "{groups: [alignment], views: ['fc[0]']}",
            [
                "views: 'fc[0]' matches only matrices that are measured for their couplings: add heads: true"
            ],
        ),
        (
            "heads",
            "{groups: [ranks], views: ['fc[0]', fcc]}",
            [
                "views: 'fc[0]' matches only matrices that are measured for their couplings: add alignment to groups and heads: true",
                "views: 'fcc' matches no matrix (did you mean fc?); there are: conv, fc, conv[0]",
            ],
        ),
        (
            "heads",
            "{groups: [alignment], heads: true, views: ['fc[0]']}",
            [
                "views: 'fc[0]' matches only matrices that are measured for their couplings: choose conv[0] too"
            ],
        ),
        (
            "unmet",
            "{groups: [ranks], views: ['fc[0]']}",
            [
                "views: 'fc[0]' matches only matrices that are measured for their couplings: the task declares none of them"
            ],
        ),
        (
            "heads only",
            "[alignment]",
            ["alignment: all couplings are of single heads: add heads: true"],
        ),
        (
            "heads or residual",
            "[alignment]",
            [
                "alignment: all couplings are across residual streams or of single heads: add residual: true or heads: true"
            ],
        ),
        ("heads or residual", "{groups: [alignment], residual: true}", []),
        (
            "no couplings",
            "[alignment]",
            ["alignment: task 'Toy' declares no couplings of its matrices"],
        ),
        ("no couplings", "[agreement]", []),
        (
            "unused",
            "[alignment, operator]",
            [
                "coupling 'conv->fcc': there is no matrix view 'fcc'; similar: fc",
                "coupling 'odd': the left vectors of 'conv' (4 x 9) have 4 entries, its rows, but the left vectors of 'fc' (2 x 4) have 2 entries, its rows; both must have equally many",
                "operator: no spatial size is known for 'spare.weight' (view 'spare'): no torch.nn convolution with these weights was reached by a forward pass",
            ],
        ),
        ("unused", "{groups: [operator], views: [conv]}", []),
        (
            "linear",
            "[operator, pruned]",
            [
                "operator: there is no convolution among the matrices of the model",
                "pruned: there is no matrix to cut; the last one is exempt unless pruned: {last: included}",
            ],
        ),
        ("linear", "{groups: [pruned], pruned: {last: included}}", []),
        (
            "plain",
            "{groups: [operator], views: [fc]}",
            ["operator: there is no convolution among the matrices of the views chosen"],
        ),
        (
            "complex",
            "[agreement]",
            [
                "matrix view 'phase': expected real floating-point weights, 'phase' is torch.complex64"
            ],
        ),
        ("complex", "{groups: [agreement], views: [fc]}", []),
        (
            "wrong view",
            "[agreement]",
            [
                "matrix view 'a': there is no parameter 'no.such'; there are conv.bias, conv.weight, fc.bias, fc.weight",
                "matrix view 'b': rows (0, 99) reach beyond the 2 rows of 'fc.weight'",
            ],
        ),
    ],
)
def test_every_problem_is_found(kind: str, measure: str, problems: list[str]) -> None:
    """All of a model's at once; the kinds without any are the twins of those with."""
    assert preflight.check_measure(sweep(measure, kind=kind)) == problems


def test_a_convolution_on_two_grids_is_no_single_operator() -> None:
    [problem] = preflight.check_measure(sweep("[operator]", kind="two grids"))

    assert problem.startswith("operator: a convolution is one linear operator only on one grid")
    assert "'conv.weight' is applied on more than one grid: (5, 5)" in problem


# --- which models are built -----------------------------------------------------------------


def test_the_default_builds_no_model() -> None:
    """Nothing of it depends on the model, and a sweep starts as fast as before; the twin builds."""
    loaded = sweep("[ranks, spectrum]")
    assert preflight.check_measure(loaded) == []
    assert built(loaded) == []

    assert preflight.check_measure(sweep("[agreement]")) == []
    assert built(loaded) == [4]


def test_each_structure_is_built_once_and_the_eight_smallest_of_many() -> None:
    """Seeds and parameters that trials of a group may differ in make no other model."""
    more = "grid: {width: [9, 2, 30], lr: [0.1, 0.2]}\nseeds: 5\n"
    few = sweep("[agreement]", more=more)
    preflight.check_measure(few)
    assert built(few) == [2, 9, 30]

    built(few).clear()
    preflight.check_measure(sweep("[agreement]", more=f"grid: {{width: {[*range(20, 0, -1)]}}}\n"))
    assert built(few) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_problem_of_some_configurations_names_the_first() -> None:
    """One line for each problem, not for each model."""
    loaded = sweep("{groups: [agreement], vectors: 3}", more="grid: {width: [2, 3, 8]}\n")

    assert preflight.check_measure(loaded) == [
        "vectors: 3 exceeds the largest rank, 2 (conv, 2 x 9) (at width=2)"
    ]


def test_a_pattern_may_be_for_some_of_the_models() -> None:
    """One that is for none of them is a mistake; a model for which there is none, likewise."""
    both = "grid: {kind: [plain, unused]}\n"

    def problems(views: str) -> list[str]:
        text = f"{TOP}base: {{steps: 2}}\nmeasure: {{groups: [ranks], views: {views}}}\n{both}"
        return preflight.check_measure(parse(text))

    assert problems("[conv, spare]") == []
    assert problems("[spare]") == ["views: no matrix of the model is chosen (at kind=plain)"]
    assert problems("[conv, sparse]") == [
        "views: 'sparse' matches no matrix (did you mean spare?); there are: conv, fc, spare"
    ]


def test_where_not_every_model_is_built_a_pattern_gets_the_benefit_of_the_doubt() -> None:
    """It may be for one of the others."""
    more = f"grid: {{width: {[*range(1, 10)]}}}\n"
    measure = "{groups: [ranks], views: [conv, later]}"

    assert preflight.check_measure(sweep(measure, more=more)) == []
    assert preflight.check_measure(sweep(measure)) != []


def test_a_model_that_cannot_be_built_is_left_to_its_trials() -> None:
    """They fail with a traceback, which says more than a line here could."""
    loaded = sweep("[agreement]", kind="broken")

    assert preflight.check_measure(loaded) == []
    found = preflight.Inspection(loaded)
    assert found.space() is None
    assert found.failure == "RuntimeError: no model today"
    assert preflight.Inspection(sweep("[agreement]")).failure == ""


def test_a_plan_passes_on_why_a_model_cannot_be_built() -> None:
    plan = planning.plan(sweep("[agreement]", kind="broken"), "0" * 16)

    assert (plan.scratch_bytes, plan.model_failure) == (None, "RuntimeError: no model today")


def test_looking_at_a_model_draws_no_random_numbers() -> None:
    before = torch.random.get_rng_state()
    preflight.check_measure(sweep(EVERYTHING, kind="real numbers"))

    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_views_that_are_chosen_take_the_space() -> None:
    """So many bytes per snapshot as a file of these matrices has."""
    loaded = sweep("{groups: [agreement], views: [fc], vectors: 1, keep: final}", more="seeds: 3\n")
    space = preflight.Inspection(loaded).space()

    assert space is not None
    assert space.kept == num_bytes({"fc": (2, 4)}, loaded.measure)
    assert space.kept_total == 3 * space.kept


def test_views_on_demand_take_space_only_with_their_couplings() -> None:
    """Vectors of the columns that a head is read by are kept with `heads: true`, and not without."""
    matrices = {"conv": (4, 9), "fc": (2, 4), "conv[0]": (2, 9)}
    for heads, shapes in (("false", matrices), ("true", {**matrices, "fc[0]": (2, 2)})):
        loaded = sweep(f"{{groups: [alignment], keep: final, heads: {heads}}}", kind="heads")
        space = preflight.Inspection(loaded).space()

        assert space is not None
        assert space.kept == num_bytes(shapes, loaded.measure)


# --- nothing is launched --------------------------------------------------------------------


def test_a_run_with_problems_launches_nothing(folder: Path) -> None:
    """No results folder is made either."""
    with pytest.raises(SweepError) as refused:
        run_sweep(sweep("{groups: [agreement], vectors: 5}"), Options(in_process=True))

    assert str(refused.value) == (
        "<string>: 1 problem\n  vectors: 5 exceeds the largest rank, 4 (conv, 4 x 9)  @ line "
        "5, column 41, $.measure.vectors"
    )
    assert not (folder / "results").exists()


@pytest.mark.parametrize(
    "command", [["plan"], ["run", "--in-process"], ["submit", "--address", "http://127.0.0.1:9"]]
)
def test_commands_end_with_exit_code_2(
    command: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "s.yaml").write_text(f"{TOP}base: {{steps: 2}}\nmeasure: {{views: [cnv]}}\n")
    monkeypatch.setattr(sys, "argv", ["sweep", *command, "s.yaml"])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert (ended.value.code, capsys.readouterr().err) == (
        2,
        "error: s.yaml: 1 problem\n"
        "  views: 'cnv' matches no matrix (did you mean conv?); there are: conv, fc  "
        "@ line 5, column 19, $.measure.views[0]\n",
    )


def test_each_problem_stands_at_its_option() -> None:
    """In file order, like the problems of every other field."""
    with pytest.raises(SweepError) as refused:
        preflight.refuse(
            sweep(
                "{views: [fc, dense, no], vectors: 9,\n  groups: [pruned, operator, alignment]}",
                kind="batch norm",
            )
        )

    assert [(p.path, p.line, p.message.partition(":")[0]) for p in refused.value.problems] == [
        ("$.measure.views[1]", 5, "views"),
        ("$.measure.views[2]", 5, "views"),
        ("$.measure.vectors", 5, "vectors"),
        ("$.measure.groups[0]", 6, "pruned"),
        ("$.measure.groups[1]", 6, "operator"),
        ("$.measure.groups[2]", 6, "alignment"),
    ]
    with pytest.raises(SweepError) as refused:
        preflight.refuse(sweep("[ranks, alignment]", kind="unused"))
    assert {problem.path for problem in refused.value.problems} == {"$.measure[1]"}
    with pytest.raises(SweepError) as refused:
        preflight.refuse(sweep("[agreement]", kind="wrong view"))
    assert {problem.path for problem in refused.value.problems} == {"$.measure"}


def test_the_refusal_of_batch_norm_is_the_one_of_the_trial() -> None:
    """In its words: who meets both knows that they are about the same thing."""
    loaded = sweep("[pruned]", kind="batch norm")
    [trial] = loaded.trials()
    task = loaded.task_class([loaded.task_class.Config(kind="batch norm", steps=2)])
    streams = make_streams(task.configs, [trial.seed])
    model, state = start(task, streams)
    with pytest.raises(ValueError, match="BatchNorm") as refused:
        reestimate(task, model, state, streams, state.parameters)

    assert preflight.check_measure(loaded) == [f"pruned: {refused.value}"]


def test_of_many_couplings_ten_are_listed(folder: Path) -> None:
    many = """        return [Coupling(CouplingEnd(f"m{i}", "left"), CouplingEnd("fc", "left"), 2)
                for i in range(12)]
"""
    text = TASK.replace("        return [Coupling(left, right, c.width)]\n", many)
    (folder / "toy.py").write_text(text.replace("discover(model)", """[
            *discover(model), *(MatrixView(f"m{i}", "fc.weight") for i in range(12))
        ]"""))  # fmt: skip
    listed = ", ".join(f"m{i} and fc" for i in range(10))

    assert preflight.check_measure(sweep("{groups: [alignment], views: [conv]}")) == [
        "alignment: views leaves no coupling both of its matrices; couplings are between "
        f"{listed} and 2 more"
    ]
