"""The rows of trends.parquet: what each statistic is of, and which trials it leaves out."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy import stats

from orchestrator.errors import IncomparableTrialsError
from orchestrator.trends import TRENDS, fit
from tests.orchestrator.tables import curve, scalars_table, trials_table


def finals(trials, values):
    """One metric, `loss` of `val`, with these values at step 10 and 0 at step 0."""
    ids = trials["trial_id"].to_pylist()
    return scalars_table(
        *(
            row
            for t, v in zip(ids, values, strict=True)
            for row in curve(t, [0.0, v], "val", "loss")
        )
    )


def sweep_of(*levels, seeds=3, name="weight_decay"):
    """Completed trials t<seed>-<level>, one configuration per level, seed by seed."""
    rows = [
        (f"t{seed}-{level}", f"c{level}", seed, "completed")
        for seed in range(seeds)
        for level in levels
    ]
    return trials_table(*rows, **{name: pa.array(list(levels) * seeds)})


def select(table, **wanted):
    """The rows of a trends table with these labels, as dictionaries."""
    for name, label in wanted.items():
        column = table.column(name)
        table = table.filter(pc.is_null(column) if label is None else pc.equal(column, label))
    return table.to_pylist()


def one(table, **wanted):
    (row,) = select(table, **wanted)
    return row


# along one trajectory


def test_a_trajectory_is_described():
    """Steps 0, 9, 99: log10(step + 1) is 0, 1, 2, so the slope is in values per decade."""
    trials = trials_table(("t0", "c", 0, "completed"))
    rows = [("t0", step, "w", "stable_rank", v) for step, v in [(0, 8.0), (9, 6.0), (99, 4.0)]]
    scalars = scalars_table(*rows[:2], (*rows[2], "collapsed"))

    table = select(fit(trials, scalars, []), kind="trajectory")

    labels = {(r["config_id"], r["trial_id"], r["subject"], r["metric"], r["n"]) for r in table}
    assert labels == {("c", "t0", "w", "stable_rank", 3)}
    assert {(row["lower"], row["upper"]) for row in table} == {(None, None)}
    assert {row["statistic"]: row["value"] for row in table} == {
        "initial": 8.0,
        "final": 4.0,
        "num_flagged": 1.0,
        "largest_drop": 2.0,
        "largest_drop_step": 9.0,
        "slope": -2.0,
        "kendall_tau": pytest.approx(-1.0, rel=1e-15),
    }


def test_points_that_are_not_finite_are_left_out_and_n_says_so():
    trials = trials_table(("t0", "c", 0, "completed"))
    scalars = scalars_table(*curve("t0", [5.0, math.nan, 3.0, math.inf, math.nan]))

    table = fit(trials, scalars, [])

    assert one(table, statistic="initial")["value"] == 5.0
    assert (one(table, statistic="final")["value"], one(table, statistic="final")["n"]) == (None, 5)
    assert one(table, statistic="largest_drop")["value"] == 2.0
    assert one(table, statistic="largest_drop")["n"] == 2
    assert select(table, statistic="final/mean") == []


def test_a_series_without_a_finite_point_has_no_statistics():
    trials = trials_table(("t0", "c", 0, "completed"))

    table = fit(trials, scalars_table(*curve("t0", [math.nan, math.nan])), [])

    slope = one(table, kind="trajectory", statistic="slope")
    assert (slope["value"], slope["n"]) == (None, 0)


def test_series_recorded_at_different_steps_are_fitted_each_on_its_own_grid():
    trials = trials_table(("t0", "c", 0, "completed"), ("t1", "d", 0, "completed"))
    scalars = scalars_table(
        *[("t0", s, "w", "stable_rank", math.log10(s + 1)) for s in (0, 3, 50)],
        *[("t1", s, "w", "stable_rank", 2 * math.log10(s + 1)) for s in (0, 1, 2, 80)],
    )

    slopes = select(fit(trials, scalars, []), kind="trajectory", statistic="slope")

    assert [row["value"] for row in slopes] == pytest.approx([1.0, 2.0], rel=1e-12)


def test_a_long_trajectory_is_thinned_for_pairs_of_points_only():
    """1,000 points: the line is found from 200 of them, and a drop between two is not missed."""
    trials = trials_table(("t0", "c", 0, "completed"))
    values = np.log10(np.arange(1000) + 1.0)
    values[501] -= 50.0
    rows = [("t0", step, "w", "stable_rank", v) for step, v in enumerate(values.tolist())]

    table = fit(trials, scalars_table(*rows), [])

    slope = one(table, kind="trajectory", statistic="slope")
    assert slope["value"] == pytest.approx(1.0, rel=1e-9)
    assert (slope["n"], slope["method"]) == (
        1000,
        "Theil-Sen against log10(step + 1), at most 200 points, evenly thinned",
    )
    assert one(table, statistic="largest_drop_step")["value"] == 501.0


# over seeds


def test_over_seeds_mean_sd_and_interval():
    trials = sweep_of(0.0)
    table = fit(trials, finals(trials, [1.0, 2.0, 6.0]), ["weight_decay"])

    mean, sd = one(table, statistic="final/mean"), one(table, statistic="final/sd")

    half = stats.t.ppf(0.975, 2) * math.sqrt(7.0) / math.sqrt(3)
    assert (mean["kind"], mean["config_id"], mean["n"]) == ("seeds", "c0.0", 3)
    assert mean["value"] == pytest.approx(3.0, rel=1e-15)
    assert (mean["lower"], mean["upper"]) == pytest.approx((3 - half, 3 + half), rel=1e-12)
    assert (sd["value"], sd["lower"], sd["n"]) == (pytest.approx(math.sqrt(7.0)), None, 3)
    assert one(table, statistic="initial/mean")["value"] == 0.0
    slope = one(table, statistic="slope/mean")  # from 0 at step 0 to v at step 10
    assert slope["value"] == pytest.approx(3.0 / math.log10(11), rel=1e-12)


def test_one_seed_has_no_interval():
    trials = sweep_of(0.0, seeds=1)

    row = one(fit(trials, finals(trials, [1.0]), []), statistic="final/mean")

    assert (row["value"], row["lower"], row["upper"], row["n"]) == (1.0, None, None, 1)


def test_diverged_trials_are_counted_and_left_out():
    trials = trials_table(
        ("t0", "c", 0, "completed"), ("t1", "c", 1, "diverged"), ("t2", "c", 2, "pruned"),
        ("t3", "d", 0, "diverged"), ("t4", "d", 1, "failed"),
        weight_decay=[0.0, 0.0, 0.0, 1.0, 1.0],
    )  # fmt: skip

    table = fit(trials, finals(trials, [1.0, 50.0, 50.0, 50.0, 50.0]), ["weight_decay"])

    counts = select(table, statistic="num_diverged")
    assert [(r["config_id"], r["value"], r["n"]) for r in counts] == [("c", 1.0, 3), ("d", 1.0, 1)]
    assert [r["value"] for r in select(table, statistic="num_pruned")] == [1.0, 0.0]
    assert {r["trial_id"] for r in select(table, kind="trajectory")} == {"t0"}
    assert [r["value"] for r in select(table, statistic="final/mean")] == [1.0]
    assert select(table, kind="across") == []  # one level is left


# across configurations


def test_across_configurations_the_table_holds_rho_p_and_the_smallest_p():
    trials = sweep_of(0.0, 0.3, 1.0)
    table = fit(trials, finals(trials, [9.0, 5.0, 2.0] * 3), ["weight_decay"])

    across = {row["statistic"]: row for row in select(table, kind="across")}

    assert {(r["parameter"], r["subject"], r["metric"], r["n"]) for r in across.values()} == {
        ("weight_decay", "val", "loss", 9)
    }
    assert {r["method"] for r in across.values()} == {
        "all permutations inside blocks of equal seed: 216"
    }
    assert across["spearman"]["value"] == pytest.approx(-1.0, rel=1e-12)
    assert across["spearman/p"]["value"] == 2 / 216
    assert across["spearman/smallest_p"]["value"] == 2 / 216


def test_large_sweeps_are_sampled_and_say_so():
    """A perfect order in 5!^3 arrangements: no draw is as extreme, and still p is not 0."""
    trials = sweep_of(0, 1, 2, 3, 4)
    table = fit(trials, finals(trials, [4.0, 3.0, 2.0, 1.0, 0.0] * 3), ["weight_decay"])

    row = one(table, statistic="spearman/p")

    assert row["value"] == 1 / 10_001
    assert row["method"] == (
        "the observed and random permutations inside blocks of equal seed: 10,001"
    )


def test_infinite_finals_are_no_part_of_an_effect():
    """Infinity minus infinity is nothing; the finite pair remains."""
    trials = sweep_of(0.0, 1.0, seeds=2)

    table = fit(trials, finals(trials, [math.inf, math.inf, 1.0, 3.0]), ["weight_decay"])

    row = one(table, kind="paired")
    assert (row["value"], row["n"]) == (2.0, 1)
    assert one(table, statistic="spearman")["n"] == 2


def test_a_constant_outcome_has_no_rho_and_no_p():
    trials = sweep_of(0.0, 1.0)
    table = fit(trials, finals(trials, [1.0] * 6), ["weight_decay"])

    assert [row["value"] for row in select(table, kind="across")] == [None, None, None]


def test_a_metric_that_only_some_trials_have_is_tested_over_these():
    trials = sweep_of(0.0, 0.5, 1.0)
    extra = [
        row
        for seed in range(3)
        for level in (0.0, 0.5)
        for row in curve(f"t{seed}-{level}", [0.0, level + seed], "deep", "loss")
    ]
    base = finals(trials, [1.0, 2.0, 3.0] * 3)

    table = fit(trials, pa.concat_tables([base, scalars_table(*extra)]), ["weight_decay"])

    rho = select(table, statistic="spearman")
    assert {row["subject"]: row["n"] for row in rho} == {"val": 9, "deep": 6}


# effects paired by seed


def test_a_paired_effect_by_hand():
    """Differences 1 - 0 inside the seeds: -1, -2, -6. Their mean is -3 and their sd sqrt(7)."""
    trials = sweep_of(0.0, 1.0)
    table = fit(trials, finals(trials, [10.0, 9.0, 20.0, 18.0, 30.0, 24.0]), ["weight_decay"])

    row = one(table, kind="paired")

    half = stats.t.ppf(0.975, 2) * math.sqrt(7.0) / math.sqrt(3)
    assert row == {
        "kind": "paired",
        "config_id": "c1.0",
        "trial_id": None,
        "parameter": "weight_decay",
        "contrast": "1.0 vs 0.0",
        "subject": "val",
        "metric": "loss",
        "statistic": "final/mean_difference",
        "value": pytest.approx(-3.0, rel=1e-12),
        "lower": pytest.approx(-3.0 - half, rel=1e-12),
        "upper": pytest.approx(-3.0 + half, rel=1e-12),
        "n": 3,
        "method": "pairs of equal seed and other parameters, 95 % Student-t interval",
    }


def test_a_seed_without_its_reference_makes_no_pair():
    """Seed 1 diverged at the reference level; seed 2 at the other."""
    trials = sweep_of(0.0, 1.0)
    status = ["completed", "completed", "diverged", "completed", "completed", "diverged"]
    trials = trials.set_column(3, "status", pa.array(status))

    row = one(fit(trials, finals(trials, [1.0, 4.0, 0, 0, 0, 0]), ["weight_decay"]), kind="paired")

    assert (row["value"], row["lower"], row["n"]) == (3.0, None, 1)


def grid_of_two(seeds=2):
    """weight_decay x lr, values 10 wd + 100 lr + seed-specific effect of wd at lr 2."""
    rows, values, columns = [], [], {"weight_decay": [], "lr": []}
    for seed in range(seeds):
        for wd in (0, 1):
            for lr in (1, 2):
                rows.append((f"t{seed}{wd}{lr}", f"c{wd}{lr}", seed, "completed"))
                columns["weight_decay"].append(wd)
                columns["lr"].append(lr)
                values.append(10.0 * wd + 100.0 * lr + 1000.0 * seed + 3.0 * wd * (lr == 2))
    return trials_table(*rows, **columns), values


def test_pairs_differ_in_one_parameter_alone():
    """With two swept parameters there is one effect per setting of the other, never pooled."""
    trials, values = grid_of_two()

    table = fit(trials, finals(trials, values), ["weight_decay", "lr"])

    found = [
        (row["parameter"], row["config_id"], row["contrast"], row["value"], row["n"])
        for row in select(table, kind="paired")
    ]
    assert found == [
        ("weight_decay", "c11", "1 vs 0", 10.0, 2),
        ("weight_decay", "c12", "1 vs 0", 13.0, 2),
        ("lr", "c02", "2 vs 1", 100.0, 2),
        ("lr", "c12", "2 vs 1", 103.0, 2),
    ]


def test_permutations_keep_the_other_parameters_fixed():
    """Four blocks of two trials: 2^4 arrangements, of which two are as extreme as this one."""
    trials, values = grid_of_two()

    table = fit(trials, finals(trials, values), ["weight_decay", "lr"])

    row = one(table, statistic="spearman/p", parameter="weight_decay")
    assert row["method"] == "all permutations inside blocks of equal seed and other parameters: 16"
    assert row["value"] == 2 / 16


def test_parameters_that_move_together_are_permuted_inside_the_seed():
    """zip: no two trials differ in one of them alone, so there are no pairs."""
    trials = sweep_of(0.0, 0.3, 1.0).append_column("width", pa.array([8, 16, 32] * 3))

    table = fit(trials, finals(trials, [3.0, 2.0, 1.0] * 3), ["weight_decay", "width"])

    assert select(table, kind="paired") == []
    rows = select(table, statistic="spearman/p")
    assert [(row["parameter"], row["value"]) for row in rows] == [
        ("weight_decay", 2 / 216),
        ("width", 2 / 216),
    ]
    assert rows[0]["method"] == "all permutations inside blocks of equal seed: 216"


@pytest.mark.parametrize(
    "column",
    [["a", "b"], [False, True], [[0.9, 0.99], [0.9, 0.98]], [1.0, 1.0], [None, 1.0]],
    ids=["strings", "booleans", "lists", "one level", "one level and none"],
)
def test_parameters_without_two_numeric_levels_are_skipped(column):
    trials = trials_table(
        ("t0", "c", 0, "completed"), ("t1", "d", 0, "completed"),
        other=pa.array(column), weight_decay=[0.0, 1.0],
    )  # fmt: skip

    table = fit(trials, finals(trials, [1.0, 2.0]), ["other", "weight_decay"])

    assert set(table["parameter"].to_pylist()) == {None, "weight_decay"}


def test_a_swept_parameter_left_unnamed_is_an_error():
    """Otherwise two different configurations would pass as repetitions of one level."""
    trials, values = grid_of_two()

    with pytest.raises(IncomparableTrialsError) as caught:
        fit(trials, finals(trials, values), ["weight_decay"])

    assert str(caught.value) == (
        "trials t001 and t002 have the same seed and are equal in weight_decay, yet are different"
        " configurations: name every swept parameter"
    )


def test_an_empty_sweep_has_no_trends():
    table = fit(trials_table(weight_decay=[]), scalars_table(), ["weight_decay"])

    assert table.num_rows == 0
    assert table.schema == TRENDS


def test_trends_survive_parquet(tmp_path):
    """trends.parquet is the projection other programs read: same rows, same types."""
    parquet = pytest.importorskip("pyarrow.parquet")
    trials = sweep_of(0.0, 1.0)
    table = fit(trials, finals(trials, [1.0, 2.0, 3.0, 5.0, 8.0, 13.0]), ["weight_decay"])

    parquet.write_table(table, tmp_path / "trends.parquet")

    assert parquet.read_table(tmp_path / "trends.parquet").equals(table)
