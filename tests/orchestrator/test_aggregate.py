"""Statistics over seeds, against textbook formulas and numbers worked out by hand."""

import math
import statistics

import numpy as np
import pytest
from scipy import stats

from orchestrator.aggregate import (
    OVER_SEEDS,
    Estimate,
    final_table,
    over_seeds,
    t_interval,
    val_metrics,
)
from orchestrator.errors import IncomparableTrialsError
from tests.orchestrator.tables import curve, scalars_table, trials_table


def test_over_seeds_follows_the_textbook():
    """Mean, sd (ddof = 1) and mean -+ t sd / sqrt(n), written out with the standard library."""
    values = [1.0, 2.0, 4.0]
    trials = trials_table(*((f"t{i}", "c", i, "completed") for i in range(3)))
    scalars = scalars_table(*((f"t{i}", 5, "val", "loss", v) for i, v in enumerate(values)))
    half = stats.t.ppf(0.975, 2) * statistics.stdev(values) / math.sqrt(3)

    (row,) = over_seeds(trials, scalars).to_pylist()

    assert row == {
        "config_id": "c",
        "step": 5,
        "subject": "val",
        "metric": "loss",
        "n": 3,
        "mean": pytest.approx(7 / 3, rel=1e-15),
        "sd": pytest.approx(statistics.stdev(values), rel=1e-15),
        "lower": pytest.approx(7 / 3 - half, rel=1e-14),
        "upper": pytest.approx(7 / 3 + half, rel=1e-14),
        "n_flagged": 0,
        "n_diverged": 0,
        "n_pruned": 0,
    }


def test_one_seed_has_a_mean_but_no_spread():
    trials = trials_table(("t0", "c", 0, "completed"))

    (row,) = over_seeds(trials, scalars_table(*curve("t0", [0.5]))).to_pylist()

    assert (row["n"], row["mean"]) == (1, 0.5)
    assert (row["sd"], row["lower"], row["upper"]) == (None, None, None)


def test_nothing_is_pooled_over_configurations_steps_subjects_or_metrics():
    """With one seed, every row of the input is a row of the output with its own value."""
    trials = trials_table(("t0", "c0", 0, "completed"), ("t1", "c1", 0, "completed"))
    keys = [
        (config, step, subject, metric)
        for config in ("c0", "c1")
        for subject in ("layers.0", "layers.1")
        for metric in ("effective_rank", "stable_rank")
        for step in (0, 7)
    ]
    rows = [(f"t{key[0][1]}", *key[1:], float(i)) for i, key in enumerate(keys)]

    table = over_seeds(trials, scalars_table(*reversed(rows)))

    assert table.schema == OVER_SEEDS
    found = [tuple(row[k] for k in ("config_id", "step", "subject", "metric", "mean"))
             for row in table.to_pylist()]  # fmt: skip
    assert found == [(*key, float(i)) for i, key in enumerate(keys)]


def test_the_order_of_the_input_does_not_change_a_bit():
    trials = trials_table(*((f"t{i}", f"c{i // 5}", i % 5, "completed") for i in range(20)))
    values = np.random.default_rng(0).normal(size=(20, 30))
    scalars = scalars_table(*(row for i in range(20) for row in curve(f"t{i}", values[i])))
    shuffled = np.random.default_rng(1).permutation(scalars.num_rows)

    again = over_seeds(trials.take(np.arange(20)[::-1].copy()), scalars.take(shuffled))

    assert over_seeds(trials, scalars).equals(again)


def test_diverged_and_pruned_trials_are_counted_and_left_out():
    """They end early by nature, so their steps may differ without an error."""
    trials = trials_table(
        ("t0", "c", 0, "completed"),
        ("t1", "c", 1, "diverged"),
        ("t2", "c", 2, "pruned"),
        ("t3", "c", 3, "failed"),
        ("t4", "c", 4, "completed"),
    )
    scalars = scalars_table(
        *curve("t0", [1.0, 3.0]),
        *curve("t1", [9.0, 99.0, math.nan]),
        *curve("t2", [9.0]),
        *curve("t3", [9.0]),
        *curve("t4", [2.0, 5.0]),
    )

    table = over_seeds(trials, scalars)

    assert table["mean"].to_pylist() == [1.5, 4.0]
    assert table["n"].to_pylist() == [2, 2]
    assert table["n_diverged"].to_pylist() == [1, 1]
    assert table["n_pruned"].to_pylist() == [1, 1]


def test_flagged_rows_keep_their_value_and_are_counted():
    trials = trials_table(("t0", "c", 0, "completed"), ("t1", "c", 1, "completed"))
    scalars = scalars_table(
        ("t0", 0, "w", "effective_rank", 2.0, "collapsed"),
        ("t1", 0, "w", "effective_rank", 4.0, None),
        ("t0", 1, "w", "effective_rank", 0.0, "zero"),
        ("t1", 1, "w", "effective_rank", 6.0, "collapsed"),
    )

    table = over_seeds(trials, scalars)

    assert table["mean"].to_pylist() == [3.0, 3.0]
    assert table["n_flagged"].to_pylist() == [1, 2]


def test_a_value_that_is_not_finite_shows_in_the_mean():
    trials = trials_table(("t0", "c", 0, "completed"), ("t1", "c", 1, "completed"))
    scalars = scalars_table(*curve("t0", [1.0, math.nan, math.inf]), *curve("t1", [1.0, 1.0, 1.0]))

    table = over_seeds(trials, scalars)

    assert str(table["mean"].to_pylist()) == "[1.0, nan, inf]"
    assert str(table["upper"].to_pylist()) == "[1.0, nan, nan]"


def test_rows_of_trials_that_are_not_asked_for_are_ignored():
    trials = trials_table(("t0", "c", 0, "completed"))

    table = over_seeds(trials, scalars_table(*curve("t0", [1.0]), *curve("stranger", [5.0, 5.0])))

    assert table["mean"].to_pylist() == [1.0]


def test_empty_tables_give_an_empty_table():
    table = over_seeds(trials_table(), scalars_table())

    assert table.num_rows == 0
    assert table.schema == OVER_SEEDS
    assert final_table(trials_table(), scalars_table()) == []


def test_unequal_steps_name_the_trials():
    """A missing step, and a missing metric, are reported for every trial concerned at once."""
    trials = trials_table(
        ("t0", "c", 0, "completed"), ("t1", "c", 1, "completed"), ("t2", "d", 0, "completed")
    )
    scalars = scalars_table(
        *curve("t0", [1.0, 1.0, 1.0]),
        *curve("t1", [1.0]),
        ("t1", 0, "train", "loss", 1.0),
        *curve("t2", [1.0, 1.0]),
    )

    with pytest.raises(IncomparableTrialsError) as caught:
        over_seeds(trials, scalars)

    assert str(caught.value) == (
        "completed trials of one configuration were recorded at unequal steps, so there is no mean"
        " over its seeds:\n"
        "  configuration c, trial t0 (seed 0): lacks train loss at 1 of 1 steps, the first is 0\n"
        "  configuration c, trial t1 (seed 1): lacks val error at 2 of 3 steps, the first is 10\n"
        "Select the trials of one version of the sweep file."
    )


def test_a_long_list_of_unequal_trials_is_cut_and_counted():
    trials = trials_table(*((f"t{i:02}", "c", i, "completed") for i in range(24)))
    scalars = scalars_table(*curve("t00", [1.0]))

    with pytest.raises(IncomparableTrialsError) as caught:
        over_seeds(trials, scalars)

    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 20 + 1 + 1
    assert lines[-2] == "  … and 3 more"


def test_configurations_may_differ_in_their_steps():
    trials = trials_table(("t0", "c", 0, "completed"), ("t1", "d", 0, "completed"))

    table = over_seeds(trials, scalars_table(*curve("t0", [1.0, 2.0]), *curve("t1", [1.0])))

    assert table.num_rows == 3


def test_one_seed_twice_is_no_repetition():
    """Two snapshot schedules make two trials of one configuration and seed: not independent."""
    trials = trials_table(("t0", "c", 0, "completed"), ("t1", "c", 0, "completed"))

    with pytest.raises(IncomparableTrialsError) as caught:
        over_seeds(trials, scalars_table(*curve("t0", [1.0]), *curve("t1", [1.0])))

    assert str(caught.value) == (
        "trials t0 and t1 are the same configuration c with the same seed 0: not two independent"
        " repetitions. Select the trials of one version of the sweep file."
    )


def test_a_row_twice_is_refused():
    trials = trials_table(("t0", "c", 0, "completed"))

    with pytest.raises(IncomparableTrialsError) as caught:
        over_seeds(trials, scalars_table(*curve("t0", [1.0]), *curve("t0", [2.0])))

    assert str(caught.value) == "trial t0 has two rows of val error at step 0"


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_t_interval_covers_the_mean_19_times_in_20(n):
    """20,000 normal samples: the coverage's own standard error is 0.0015, tolerance 4 of them."""
    samples = np.random.default_rng(n).normal(loc=3.0, scale=2.0, size=(20_000, n))
    mean, sd = samples.mean(axis=1), samples.std(axis=1, ddof=1)

    lower, upper = t_interval(mean, sd, np.full(20_000, n))

    assert np.mean((lower <= 3.0) & (3.0 <= upper)) == pytest.approx(0.95, abs=0.0062)


def test_the_final_table_counts_and_estimates():
    """Two configurations: one generalises in 1 of 3 trials with 1 diverged, one in 1 of 1."""
    trials = trials_table(
        ("t0", "c0", 0, "completed"),
        ("t1", "c0", 1, "completed"),
        ("t2", "c0", 2, "diverged"),
        ("t3", "c1", 0, "completed"),
        weight_decay=[10.0, 10.0, 10.0, 2.0],
    )
    rank = "effective_rank/normalised"
    scalars = scalars_table(
        *curve("t0", [1.0, 0.5, 0.01]),
        *curve("t1", [1.0, 0.5, 0.31]),
        *curve("t2", [1.0]),
        *curve("t3", [1.0, 0.0, 0.04]),
        *curve("t0", [0.9, 0.2], "w", rank),
        *curve("t1", [0.9, 0.4], "w", rank),
        *curve("t3", [0.9, 0.6], "w", rank),
    )

    first, second = final_table(trials, scalars, ["weight_decay"])

    assert (first.config_id, first.parameters) == ("c1", {"weight_decay": 2.0})
    assert (first.n_completed, first.n_diverged, first.n_pruned) == (1, 0, 0)
    assert (first.n_generalised, first.n_judged) == (1, 1)
    assert first.val == {"error": Estimate(1, 0.04, None, None, None)}
    assert first.ranks == {"w": Estimate(1, 0.6, None, None, None)}
    assert (second.config_id, second.parameters) == ("c0", {"weight_decay": 10.0})
    assert (second.n_completed, second.n_diverged, second.n_pruned) == (2, 1, 0)
    assert (second.n_generalised, second.n_judged) == (1, 3)
    half = stats.t.ppf(0.975, 1) * 0.15  # sd / sqrt(2) of two values 0.3 apart
    error = second.val["error"]
    assert error.mean == pytest.approx(0.16, rel=1e-12)
    assert error.lower == pytest.approx(0.16 - half, rel=1e-12)
    assert error.upper == pytest.approx(0.16 + half, rel=1e-12)
    assert second.ranks["w"].mean == pytest.approx(0.3, rel=1e-12)


@pytest.mark.parametrize(
    ("errors", "generalised"),
    [
        ([0.0] * 9 + [1.0, 1.0], 0),  # low at steps 0 … 80 of 100: too early
        ([1.0] * 9 + [0.04, 1.0], 1),  # step 90 is the first of the last tenth
        ([1.0] * 10 + [0.05], 0),  # the threshold itself is not below the threshold
        ([1.0] * 10 + [math.nan], 0),
    ],
    ids=["early", "last tenth", "at the threshold", "not a number"],
)
def test_generalising_is_judged_over_the_last_tenth_of_the_steps(errors, generalised):
    trials = trials_table(("t0", "c", 0, "completed"))

    (row,) = final_table(trials, scalars_table(*curve("t0", errors)))

    assert (row.n_generalised, row.n_judged) == (generalised, 1)


def test_the_threshold_is_the_callers():
    trials = trials_table(("t0", "c", 0, "completed"))

    (row,) = final_table(trials, scalars_table(*curve("t0", [1.0, 0.3])), threshold=0.31)

    assert row.n_generalised == 1


def test_without_a_threshold_errors_are_not_judged():
    """They are shown all the same."""
    trials = trials_table(("t0", "c", 0, "completed"))

    (row,) = final_table(trials, scalars_table(*curve("t0", [1.0, 0.0])), threshold=None)

    assert (row.n_generalised, row.n_judged) == (None, None)
    assert row.val == {"error": Estimate(1, 0.0, None, None, None)}


def test_every_metric_on_val_is_there_but_those_of_pruned_models():
    """Whatever its name; nothing is judged without one called error."""
    trials = trials_table(("t0", "c", 0, "completed"))
    metrics = {"loss": 2.0, "wer": 0.5, "acc/top1": 0.25, "loss/kept_top_0.5": 9.0}
    rows = [row for name, value in metrics.items() for row in curve("t0", [value], "val", name)]

    (row,) = final_table(trials, scalars_table(*rows, *curve("t0", [1.0], "train", "loss")))

    assert (row.n_generalised, row.n_judged, row.ranks) == (None, None, {})
    assert {name: end.mean for name, end in row.val.items()} == {
        "loss": 2.0, "wer": 0.5, "acc/top1": 0.25,
    }  # fmt: skip
    assert val_metrics([row]) == ["acc/top1", "wer", "loss"]


def test_a_configuration_that_only_diverged_is_listed():
    trials = trials_table(("t0", "c", 0, "diverged"), ("t1", "d", 0, "failed"))

    (row,) = final_table(trials, scalars_table(*curve("t0", [0.01])))

    assert (row.config_id, row.n_completed, row.n_diverged) == ("c", 0, 1)
    assert (row.n_generalised, row.n_judged, row.val) == (0, 1, {})
