"""The figures of a sweep: which there are, what is in them, and what their words count."""

import subprocess
import sys

import pyarrow as pa
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from orchestrator.plots import sweep_figures
from tests.orchestrator.tables import curve, scalars_table, spectra_table, trials_table
from tests.orchestrator.test_lines import legend_of, lines_of, two_levels

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
