"""What is drawn is what is in the table: lines are read back from the axes, never from pixels."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from orchestrator.lines import metric_over_steps, singular_values
from tests.orchestrator.drawn import legend_of, lines_of
from tests.orchestrator.tables import (
    curve,
    scalars_table,
    spectra_table,
    trials_table,
    two_levels,
)

RANK = "effective_rank/normalised"


def colours_of(ax):
    return {line.get_gid(): to_hex(line.get_color()) for line in ax.lines}


def test_every_seed_is_drawn_and_so_is_the_mean_of_completed_ones():
    trials, values = two_levels()
    scalars = scalars_table(*(row for t, v in values.items() for row in reversed(curve(t, v))))

    ax = metric_over_steps(trials, scalars, "val", "error", "weight_decay")

    lines = lines_of(ax)
    assert str(lines.pop("t3")) == "([0, 10], [0.7, nan])"
    assert lines == {
        "t0": ([0, 10], [1.0, 0.8]),
        "t1": ([0, 10], [1.0, 0.1]),
        "t2": ([0, 10], [0.9, 0.6]),
        "c0": ([0, 10], [pytest.approx(0.95), pytest.approx(0.7)]),
        "c1": ([0, 10], [1.0, 0.1]),
    }
    widths = {line.get_gid(): line.get_linewidth() for line in ax.lines}
    assert max(widths[t] for t in values) < min(widths[c] for c in ("c0", "c1"))


def test_a_level_has_one_colour_and_a_place_in_the_legend():
    trials, values = two_levels()
    scalars = scalars_table(*(row for t, v in values.items() for row in curve(t, v)))

    ax = metric_over_steps(trials, scalars, "val", "error", "weight_decay")

    colours = colours_of(ax)
    assert len({colours[g] for g in ("t0", "t2", "c0")}) == 1
    assert len({colours[g] for g in ("t1", "t3", "c1")}) == 1
    assert colours["c0"] != colours["c1"]
    handles = ax.get_legend().legend_handles
    assert [to_hex(h.get_color()) for h in handles] == [colours["c0"], colours["c1"]]
    assert legend_of(ax) == ("weight_decay", ["0.0: 2 trials", "1.0: 2 trials, 1 diverged"])


def test_the_axes_are_labelled_and_step_zero_has_a_place():
    trials, values = two_levels()
    scalars = scalars_table(*(row for t, v in values.items() for row in curve(t, v)))

    ax = metric_over_steps(trials, scalars, "val", "error", "weight_decay")

    assert ax.get_xlabel() == "optimiser step (linear to 1, then logarithmic)"
    assert ax.get_ylabel() == "error (fraction of examples)"
    assert ax.get_title() == "val: error over steps"
    assert ax.get_xscale() == "symlog"
    assert ax.get_xlim() == pytest.approx((0.0, 10.0))


def test_a_diverged_trial_is_dashed_and_marked_where_it_ends():
    trials, values = two_levels()
    scalars = scalars_table(*(row for t, v in values.items() for row in curve(t, v)))

    lines = {line.get_gid(): line for line in
             metric_over_steps(trials, scalars, "val", "error", "weight_decay").lines}  # fmt: skip

    assert (lines["t3"].get_linestyle(), lines["t3"].get_markevery()) == ("--", [0])
    assert (lines["t0"].get_linestyle(), lines["t0"].get_marker()) == ("-", "None")


def test_flagged_points_are_hidden_and_so_is_a_mean_over_them():
    trials = trials_table(("t0", "c", 0, "completed"), ("t1", "c", 1, "completed"))
    scalars = scalars_table(
        ("t0", 0, "w", RANK, 0.5), ("t0", 5, "w", RANK, 0.1, "collapsed"),
        ("t1", 0, "w", RANK, 0.7), ("t1", 5, "w", RANK, 0.6),
    )  # fmt: skip

    lines = lines_of(metric_over_steps(trials, scalars, "w", RANK))

    assert str(lines["t0"]) == "([0, 5], [0.5, nan])"
    assert lines["t1"] == ([0, 5], [0.7, 0.6])
    assert str(lines["c"]) == "([0, 5], [0.6, nan])"


def test_without_a_parameter_there_is_one_colour_and_no_legend():
    trials, values = two_levels()
    scalars = scalars_table(*(row for t, v in values.items() for row in curve(t, v)))

    ax = metric_over_steps(trials, scalars, "val", "error")

    assert len(set(colours_of(ax).values())) == 1
    assert ax.get_legend() is None


def test_configurations_that_share_a_level_are_not_averaged():
    trials = trials_table(
        ("t0", "c0", 0, "completed"), ("t1", "c1", 0, "completed"),
        weight_decay=[0.0, 0.0], lr=[0.1, 0.2],
    )  # fmt: skip
    scalars = scalars_table(*curve("t0", [1.0, 0.0]), *curve("t1", [1.0, 1.0]))

    lines = lines_of(metric_over_steps(trials, scalars, "val", "error", "weight_decay"))

    assert (lines["c0"][1], lines["c1"][1]) == ([1.0, 0.0], [1.0, 1.0])


def test_running_trials_are_drawn_without_a_mean():
    trials = trials_table(("t0", "c", 0, "running"), weight_decay=[1])

    ax = metric_over_steps(trials, scalars_table(*curve("t0", [1.0, 0.5])), "val", "error",
                           "weight_decay")  # fmt: skip

    assert lines_of(ax) == {"t0": ([0, 10], [1.0, 0.5])}
    assert legend_of(ax)[1] == ["1: 1 trial, 1 running"]


def test_twenty_levels_keep_their_colours_but_share_a_short_legend():
    trials = trials_table(
        *((f"t{i}", f"c{i}", 0, "completed") for i in range(20)), lr=[float(i) for i in range(20)]
    )
    scalars = scalars_table(*(row for i in range(20) for row in curve(f"t{i}", [float(i)])))

    ax = metric_over_steps(trials, scalars, "val", "error", "lr")

    assert len(set(colours_of(ax).values())) == 20
    labels = legend_of(ax)[1]
    assert (len(labels), labels[0], labels[-1]) == (12, "0.0: 1 trial", "19.0: 1 trial")


def test_levels_may_be_words_lists_or_nothing():
    trials = trials_table(
        *((f"t{i}", f"c{i}", 0, "completed") for i in range(3)),
        optimizer=["sgd", None, "adamw"], betas=[[0.9, 0.99], [0.9, 0.98], None],
    )  # fmt: skip
    scalars = scalars_table(*(row for i in range(3) for row in curve(f"t{i}", [0.5])))

    words = metric_over_steps(trials, scalars, "val", "error", "optimizer")
    lists = metric_over_steps(trials, scalars, "val", "error", "betas")

    assert legend_of(words)[1] == ["None: 1 trial", "adamw: 1 trial", "sgd: 1 trial"]
    assert legend_of(lists)[1] == ["None: 1 trial", "[0.9, 0.98]: 1 trial", "[0.9, 0.99]: 1 trial"]


def test_a_loss_is_logarithmic_unless_it_reaches_zero():
    trials = trials_table(("t0", "c", 0, "completed"))

    positive = metric_over_steps(
        trials, scalars_table(*curve("t0", [1.0, 1e-5], metric="loss")), "val", "loss"
    )
    zero = metric_over_steps(
        trials, scalars_table(*curve("t0", [1.0, 0.0], metric="loss")), "val", "loss"
    )

    assert (positive.get_yscale(), zero.get_yscale()) == ("log", "linear")


def test_plots_go_where_they_are_told():
    trials, values = two_levels()
    scalars = scalars_table(*(row for t, v in values.items() for row in curve(t, v)))
    figure = Figure()
    left, right = figure.subplots(1, 2)

    assert metric_over_steps(trials, scalars, "val", "error", ax=left) is left
    spectra = spectra_table(("t0", 0, "w", [2.0, 1.0]))
    assert singular_values(spectra, "t0", "w", ax=right) is right


def test_every_singular_value_is_drawn_in_order_of_its_steps():
    spectra = spectra_table(
        ("t0", 10, "w", [3.0, 0.5, 0.25]),
        ("t0", 0, "w", [2.0, 1.0, 0.5]),
        ("t1", 0, "w", [9.0, 9.0, 9.0]),
        ("t0", 0, "other", [9.0, 9.0, 9.0]),
    )

    ax = singular_values(spectra, "t0", "w")

    drawn = sorted(list(line.get_ydata()) for line in ax.lines)
    assert drawn == [[0.5, 0.25], [1.0, 0.5], [2.0, 3.0]]
    assert {tuple(line.get_xdata()) for line in ax.lines} == {(0, 10)}
    assert len({to_hex(line.get_color()) for line in ax.lines}) == 3
    assert (ax.get_xscale(), ax.get_yscale()) == ("symlog", "log")
    assert ax.get_ylabel() == "singular value (weight units)"
    assert ax.get_title() == "w, trial t0"


def test_the_colour_bar_tells_the_colour_of_each_index():
    """The colour of the line of index i is the colour bar's colour at i, to one of 256 shades."""
    spectra = spectra_table(("t0", 0, "w", [4.0, 3.0, 2.0, 1.0]), ("t0", 1, "w", [4.0, 3, 2, 1]))

    ax = singular_values(spectra, "t0", "w")

    (bar_axes,) = [other for other in ax.figure.axes if other is not ax]
    bar = bar_axes._colorbar
    assert bar_axes.get_ylabel() == "index of the singular value (1 = largest)"
    for line in ax.lines:
        index = 5 - line.get_ydata()[0]
        expected = bar.cmap(bar.norm(index))
        assert np.allclose(line.get_color(), expected, atol=0.02)


def test_flagged_snapshots_and_zeros_are_hidden():
    spectra = spectra_table(
        ("t0", 0, "w", [2.0, 1.0]),
        ("t0", 1, "w", [1.0, 0.0], [0.0, 0.0]),
        ("t0", 2, "w", [0.5, 0.1], [1e-9] * 2, "collapsed"),
    )

    ax = singular_values(spectra, "t0", "w")

    drawn = sorted(str(line.get_ydata().tolist()) for line in ax.lines)
    assert drawn == ["[1.0, nan, nan]", "[2.0, 1.0, nan]"]


def test_the_numerical_bound_is_drawn_where_values_lie_below_it():
    """Bounds are read back as float32: powers of two are exact."""
    clean = spectra_table(("t0", 0, "w", [2.0, 1.0], [0.25, 0.5]))
    buried = spectra_table(
        ("t0", 0, "w", [2.0, 1.0], [0.25, 0.5]), ("t0", 1, "w", [2.0, 0.25], [0.25, 0.5])
    )

    assert len(singular_values(clean, "t0", "w").lines) == 2
    ax = singular_values(buried, "t0", "w")
    floor = ax.lines[-1]
    assert (floor.get_label(), list(floor.get_ydata())) == ("largest numerical bound", [0.5, 0.5])


def test_a_matrix_that_was_not_measured_is_an_error():
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole message is compared
        singular_values(spectra_table(), "t0", "layers.0")

    assert str(caught.value) == "no singular values of 'layers.0' in trial t0"
