"""The figures of a sweep: which there are, what is in them, and what their words count."""

import subprocess
import sys

import pyarrow as pa
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from orchestrator.plots import few_of, sweep_figures
from tests.orchestrator.drawn import legend_of, lines_of
from tests.orchestrator.tables import (
    curve,
    scalars_table,
    spectra_table,
    trials_table,
    two_levels,
)

RANK = "effective_rank/normalised"


def small_sweep():
    """Two levels, two seeds, matrices a, b and a head; b changes most."""
    trials, values = two_levels()
    rows = [row for t, v in values.items() for s in ("val", "train") for row in curve(t, v, s)]
    spectra = []
    for t, seed in (("t0", 0), ("t1", 0), ("t2", 1)):
        for subject, last in (("a", 0.8), ("b", 0.3), ("a.query[0]", 0.7)):
            rows += curve(t, [0.9, last], subject, RANK)
            spectra += [(t, step, subject, [2.0 + seed, 1.0]) for step in (0, 10)]
    return trials, scalars_table(*rows), spectra_table(*spectra)


def test_the_figures_of_a_sweep():
    trials, scalars, spectra = small_sweep()

    figures = sweep_figures(trials, scalars, spectra, ["weight_decay"])

    assert list(figures) == [
        "error_by_weight_decay",
        "normalised_rank_by_weight_decay",
        "singular_values_by_weight_decay",
    ]
    titles = {name: [ax.get_title() for ax in figure.axes] for name, figure in figures.items()}
    assert titles["error_by_weight_decay"] == ["train", "val"]
    assert titles["normalised_rank_by_weight_decay"] == ["a", "b", "a.query[0]"]
    assert titles["singular_values_by_weight_decay"][:2] == [
        "weight_decay = 0.0, seed 0",
        "weight_decay = 1.0, seed 0",
    ]
    error = figures["error_by_weight_decay"]
    assert legend_of(error) == ("weight_decay", ["0.0: 2 trials", "1.0: 2 trials, 1 diverged"])
    assert set(lines_of(error.axes[1])) == {"t0", "t1", "t2", "t3", "c0", "c1"}
    spectrum = figures["singular_values_by_weight_decay"]
    assert spectrum.get_suptitle() == "Singular values of b over steps, one trial each"
    assert max(max(line.get_ydata()) for line in spectrum.axes[0].lines) == 2.0  # seed 0's


def test_figures_can_be_written(tmp_path):
    """Warnings are errors in this suite: a layout that does not fit would fail here."""
    for name, figure in sweep_figures(*small_sweep(), ["weight_decay"]).items():
        assert isinstance(figure.canvas, FigureCanvasAgg)
        figure.savefig(tmp_path / f"{name}.png", dpi=50)

        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_each_swept_parameter_gets_its_figures_and_a_fixed_one_does_not():
    trials, scalars, spectra = small_sweep()
    trials = trials.append_column("lr", pa.array([0.1, 0.2, 0.1, 0.2]))
    trials = trials.append_column("width", pa.array([8, 8, 8, 8]))

    figures = sweep_figures(trials, scalars, spectra, ["weight_decay", "lr", "width"])

    assert [name for name in figures if name.startswith("error")] == [
        "error_by_weight_decay",
        "error_by_lr",
    ]
    title = figures["singular_values_by_lr"].axes[1].get_title()
    assert title == "lr = 0.2, weight_decay = 1.0, seed 0"


def test_a_sweep_of_one_configuration_has_figures_without_colours():
    trials, scalars, spectra = small_sweep()

    figures = sweep_figures(trials.slice(0, 1), scalars, spectra, [])

    assert list(figures) == ["error", "normalised_rank", "singular_values"]
    assert figures["error"].legends == []


def test_every_split_has_a_panel_after_train_and_val():
    """A split that was evaluated once has a point."""
    trials = trials_table(("t0", "c0", 0, "completed"))
    rows = [row for s in ("test", "val", "train") for row in curve("t0", [0.5, 0.25], s)]

    figures = sweep_figures(
        trials, scalars_table(*rows, *curve("t0", [0.125], "shifted")), spectra_table(), []
    )

    axes = figures["error"].axes
    assert [ax.get_title() for ax in axes] == ["train", "val", "test", "shifted"]
    assert {line.get_marker() for line in axes[2].lines} == {"None"}
    assert "." in {line.get_marker() for line in axes[3].lines}


def test_a_figure_without_data_is_not_made():
    """A task that measures only a loss, without spectra."""
    trials, values = two_levels()
    rows = [row for t, v in values.items() for row in curve(t, v, "val", "loss")]

    figures = sweep_figures(trials, scalars_table(*rows), spectra_table(), ["weight_decay"])

    assert list(figures) == ["loss_by_weight_decay"]
    empty = trials_table(weight_decay=[])
    assert sweep_figures(empty, scalars_table(), spectra_table(), ["weight_decay"]) == {}


def test_heads_are_left_out_when_there_are_many_and_the_title_counts():
    trials = trials_table(("t0", "c", 0, "completed"))
    subjects = [f"layer{i}" for i in range(8)] + [f"layer0.query[{h}]" for h in range(8)]
    scalars = scalars_table(*(row for s in subjects for row in curve("t0", [0.9, 0.8], s, RANK)))

    figure = sweep_figures(trials, scalars, spectra_table(), [])["normalised_rank"]

    assert [ax.get_title() for ax in figure.axes] == [f"layer{i}" for i in range(8)]
    assert figure.get_suptitle().splitlines()[0] == (
        "Effective rank / full rank over steps (8 of 16 matrices)"
    )


def many(num_configs, num_seeds, num_levels):
    """Trials t<configuration>-<seed>, the last seed first; level i has every i-th configuration."""
    keys = [(c, s) for s in reversed(range(num_seeds)) for c in range(num_configs)]
    rows = [(f"t{c}-{s}", f"c{c:03}", s, "completed") for c, s in keys]
    return trials_table(*rows, lr=[float(c % num_levels) for c, _ in keys])


def test_of_many_trials_the_first_seeds_are_drawn_with_the_mean_over_all():
    """Ten configurations of 30 seeds: 20 of each make 200. The value is the seed."""
    trials = many(10, 30, 5)
    ids, seeds = (trials[name].to_pylist() for name in ("trial_id", "seed"))
    scalars = scalars_table(
        *(row for i, s in zip(ids, seeds, strict=True) for row in curve(i, [s / 100, s / 100]))
    )

    (figure,) = sweep_figures(trials, scalars, spectra_table(), ["lr"]).values()

    lines = lines_of(figure.axes[0])
    configs = {f"c{c:03}": lines.pop(f"c{c:03}") for c in range(10)}
    assert set(lines) == {f"t{c}-{s}" for c in range(10) for s in range(20)}
    assert configs["c000"][1] == pytest.approx([0.145, 0.145])  # (0 + ... + 29) / 30 / 100
    assert figure.get_suptitle() == (
        "Error over steps (200 of 300 trials drawn)\n"
        "thin: one trial (dashed: diverged or pruned), thick: mean over all seeds"
    )
    assert legend_of(figure)[1][0] == "0.0: 60 trials"


def test_two_hundred_trials_are_all_drawn():
    """The twin of the test above: one trial fewer than too many."""
    trials = many(20, 10, 5)
    scalars = scalars_table(*(row for i in trials["trial_id"].to_pylist() for row in curve(i, [1])))

    (figure,) = sweep_figures(trials, scalars, spectra_table(), ["lr"]).values()

    assert len(lines_of(figure.axes[0])) == 200 + 20
    assert figure.get_suptitle().splitlines()[0] == "Error over steps"


@pytest.mark.parametrize(
    ("num_configs", "num_seeds", "num_levels"),
    [(10, 30, 5), (199, 3, 7), (201, 2, 3), (300, 1, 150), (1000, 1, 1000)],
)
def test_no_level_is_missing_among_the_trials_that_are_drawn(num_configs, num_seeds, num_levels):
    trials = many(num_configs, num_seeds, num_levels)

    few = few_of(trials, "lr")

    assert 100 < few.num_rows <= 200
    assert len(set(few["lr"].to_pylist())) == min(num_levels, 200)
    assert len(set(few["config_id"].to_pylist())) >= min(num_configs, 150)
    seeds = {}
    for row in few.to_pylist():
        seeds.setdefault(row["config_id"], set()).add(row["seed"])
    assert all(found == set(range(len(found))) for found in seeds.values()), "the first seeds"
    assert max(map(len, seeds.values())) - min(map(len, seeds.values())) <= 1
    by_id = trials.sort_by("trial_id")
    assert set(few_of(by_id, "lr")["trial_id"].to_pylist()) == set(few["trial_id"].to_pylist())
    assert {few_of(trials, None).num_rows, few_of(few, "lr").num_rows} == {200, few.num_rows}


def test_panels_of_unequal_length_share_the_longest_step_axis():
    """The last panel drawn is the short one: its end must not cut the others."""
    trials = trials_table(
        ("t0", "c0", 0, "completed"), ("t1", "c1", 0, "completed"), weight_decay=[0.0, 1.0]
    )
    spectra = spectra_table(
        *(("t0", step, "w", [1.0]) for step in (0, 100)),
        *(("t1", step, "w", [1.0]) for step in (0, 10)),
    )

    (figure,) = sweep_figures(trials, scalars_table(), spectra, ["weight_decay"]).values()

    assert [ax.get_xlim()[1] for ax in figure.axes[:2]] == pytest.approx([100.0, 100.0])


def test_plotting_never_touches_pyplot():
    """pyplot keeps figures alive and may want a display. Importing it shows the check can fail."""
    program = """
import sys, orchestrator.plots
print("matplotlib.pyplot" in sys.modules)
import matplotlib.pyplot
print("matplotlib.pyplot" in sys.modules)
"""

    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )

    assert done.stdout.split() == ["False", "True"]
