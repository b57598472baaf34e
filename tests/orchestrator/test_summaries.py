"""The table that a run ends with: the task's own metrics on val, whatever they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import Results, load, run_sweep
from orchestrator.aggregate import Estimate
from orchestrator.driver import Options
from orchestrator.rows import Buffer
from orchestrator.summaries import estimate, final_table
from spectral import ScalarRow
from tests.stores import FakeTrial, build_store


def table_of(root: Path, **metrics: float) -> list[list[str]]:
    """Of two seeds whose metrics on val are 0.1 apart."""

    def rows(trial: FakeTrial) -> Buffer:
        buffer = Buffer()
        for step in trial.steps:
            found = [
                ScalarRow("val", name, value + 0.1 * trial.seed, None, None, "evaluation", None)
                for name, value in metrics.items()
            ]
            buffer.scalars(trial.trial_id, step, found)
        return buffer

    trials = [FakeTrial(seed, {"weight_decay": 0.0}) for seed in (0, 1)]
    found = final_table(Results(build_store(root, trials, rows=rows)))
    assert found is not None
    return found[2]


def test_every_metric_on_val_has_a_line_the_loss_last(tmp_path: Path) -> None:
    """t(0.975, 1) = 12.706 times the sd of two values 0.1 apart over sqrt(2) is 0.635."""
    assert table_of(tmp_path / "s", loss=2.0, cer=0.2, wer=0.5) == [
        ["completed", "2"],
        ["validation cer", "0.250 ± 0.635"],
        ["validation wer", "0.550 ± 0.635"],
        ["validation loss", "2.050 ± 0.635"],
    ]


def test_a_task_with_a_loss_alone_ends_with_its_loss(tmp_path: Path) -> None:
    assert table_of(tmp_path / "s", loss=2.0) == [
        ["completed", "2"],
        ["validation loss", "2.050 ± 0.635"],
    ]


def test_where_errors_are_judged_the_count_stands_instead_of_the_loss(tmp_path: Path) -> None:
    """One of two errors, 0 and 0.1, is below 0.05."""
    assert table_of(tmp_path / "s", loss=2.0, error=0.0) == [
        ["completed", "2"],
        ["generalised", "1/2"],
        ["validation error", "0.050 ± 0.635"],
    ]


def test_a_task_may_say_that_its_errors_are_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the tokens wrong is no failure of a language model; the store says so by itself."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "text.yaml"
    file.write_text(
        "name: text\ntask: language_modeling\nbase: {steps: 1, layers: 1, width: 8, heads: 1, "
        "feed_forward: 8, context: 16, batch_size: 2, train_examples: 8, warmup: 0}\n"
        "measure: [ranks]\ntracking: none\n"
    )
    run_sweep(load(file), Options(in_process=True))

    results = Results.open(tmp_path / "results" / "text")

    assert results.generalises_below is None
    found = final_table(results)
    assert found is not None
    title, _, rows = found
    assert "generalised" not in title
    assert [row[0] for row in rows][:4] == [
        "completed",
        "validation error",
        "validation loss",
        "normalised effective rank",
    ]


@pytest.mark.parametrize(
    ("mean", "half", "said"),
    [
        (0.0, 0.0, "0.000 ± 0.000"),
        (3e-5, 6e-6, "3.0e-05 ± 6.0e-06"),
        (0.25, 0.001, "0.250 ± 0.001"),
    ],
)
def test_a_small_loss_is_told_from_none(mean: float, half: float, said: str) -> None:
    assert estimate(Estimate(2, mean, 1.0, mean - half, mean + half), small=True) == said
