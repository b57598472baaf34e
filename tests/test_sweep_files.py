"""The files in `sweeps/`: the paper's experiments in full, and small twins that run here."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import Results
from orchestrator.driver import Options, run_sweep
from orchestrator.sweep import load

SWEEPS = Path(__file__).parents[1] / "sweeps"
FILES = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
SMALL = [name for name in FILES if name.endswith("_small")]

# Trials, and snapshots of each, of the paper: by its text, its code and its numbers of steps.
PAPER = {
    "modular_addition_grokking": (3, 401),
    "modular_addition_decay": (9, 401),
    "modular_addition_slingshot": (3, 1001),
    "modular_addition_most_data": (3, 401),
    "image_classification": (3, 169),
    "image_classification_decay": (21, 169),
    "random_labels": (24, 305),
    "image_generation": (3, 105),
    "image_generation_decay": (21, 105),
    "speech_recognition": (3, 55),
    "speech_recognition_decay": (21, 55),
    "language_modeling": (3, 15),
    "language_modeling_decay": (21, 15),
}
DECAYS = [0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]

# One twin of each task, in which every group of measurements is on; the rest differ in parameters.
CUT_DOWN = {
    "modular_addition_grokking_small": [],
    "image_classification_small": ["base.milestones=[2]"],
    "image_generation_small": ["base.train_examples=40"],
    "speech_recognition_small": ["base.num_utterances=40", "base.schedule_every=1"],
    "language_modeling_small": ["base.warmup=1", "base.train_examples=20"],
}


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_valid_and_named_for_its_sweep(name: str) -> None:
    assert load(SWEEPS / f"{name}.yaml").name == name


@pytest.mark.parametrize("name", PAPER)
def test_an_experiment_of_the_paper_has_its_trials_and_snapshots(name: str) -> None:
    """Steps at which pruned models are evaluated are among them, so that they add none."""
    sweep = load(SWEEPS / f"{name}.yaml")
    trials = list(sweep.trials())

    assert (len(trials), {len(trial.snapshots) for trial in trials}) == (
        PAPER[name][0],
        {PAPER[name][1]},
    )
    if name.endswith("_decay") and name != "modular_addition_decay":
        assert sorted({trial.params["weight_decay"] for trial in trials}) == DECAYS


@pytest.mark.parametrize("name", PAPER)
def test_every_experiment_has_a_small_twin_that_needs_no_download(name: str) -> None:
    """Of the same task, over at least five seeds, and on what it needs nothing for."""
    full, twin = load(SWEEPS / f"{name}.yaml"), load(SWEEPS / f"{name}_small.yaml")

    assert twin.task_name == full.task_name
    assert len(twin.seeds) >= 5
    assert set(twin.axes) <= set(full.axes) | {"weight_decay"}
    for trial in twin.trials():
        config = twin.task_class.Config.model_validate(dict(trial.params), strict=False)
        assert twin.task_class.missing(config) == []


@pytest.fixture(params=CUT_DOWN)
def cut_down(request: pytest.FixtureRequest, tmp_path: Path) -> Results:
    """A twin with one seed, three steps and three snapshots, run as `--in-process` does."""
    overrides = [
        "seeds=1",
        "base.steps=3",
        "snapshots={at: [1]}",
        "measure.pruned={at: [3]}",
        "tracking=none",
        f"storage={tmp_path}",
        *CUT_DOWN[request.param],
    ]
    overrides += ["evaluations={at: [2]}"] if request.param.startswith("modular") else []
    sweep = load(SWEEPS / f"{request.param}.yaml", overrides)
    outcome = run_sweep(sweep, Options(in_process=True))
    assert outcome.exit_code == 0
    return Results.open(sweep.root)


def test_a_cut_down_twin_measures_what_the_paper_plots(cut_down: Results) -> None:
    """Ranks, singular values, alignment, agreement and pruned losses at every stage of the way."""
    metrics = set(cut_down.scalars()["metric"].to_pylist())
    quantities = set(cut_down.spectra()["quantity"].to_pylist())

    assert cut_down.trials()["status"].to_pylist() == ["completed"]
    assert {
        "loss",
        "loss/kept_top_0.5",
        "loss/kept_bottom_0.5",
        "effective_rank/normalised",
        "alignment",
        "agreement/initial",
        "agreement/final",
    } <= metrics
    assert {"singular_values", "alignment/diagonal", "agreement/final"} <= quantities
    assert sorted(set(cut_down.scalars(metric="effective_rank")["step"].to_pylist())) == [0, 1, 3]
