"""`results.plot`: each figure shows the numbers of the tables, and says what it cannot show."""

import itertools
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from orchestrator import Results
from orchestrator.aggregate import t_interval
from orchestrator.errors import QueryError
from orchestrator.figures_data import (
    chance_levels,
    configurations,
    most_changed,
    scalar_heat,
    visible,
)
from orchestrator.figures_draw import CHANCE, heat_alone, short
from orchestrator.figures_final import Final, draw_finals, finals, finals_table
from orchestrator.figures_sheets import heat_sheet
from orchestrator.figures_text import literal, shorter
from orchestrator.plots import sweep_figures
from tasks.transformer_matrices import transformer_couplings
from tests.measured import (
    CHANCES,
    COUPLING,
    MATRICES,
    OPERATOR_RANK,
    RANK,
    SHARE,
    SINGULAR,
    STEPS,
    UPDATE_RANK,
    entry,
    measured,
    trial,
    trials,
    value,
)
from tests.orchestrator.drawn import heat_in, lines_in
from tests.orchestrator.tables import curve, scalars_table, trials_table


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("figures") / "small")


@pytest.fixture(scope="module")
def results(root):
    return Results.open(root)


# --- heat maps ------------------------------------------------------------------------------


def test_a_rank_heat_map_is_the_mean_over_the_completed_seeds_of_one_configuration(results):
    ax = results.plot.rank_heatmap(configuration={"weight_decay": 1.0})

    truth = [
        [np.mean([value(RANK, m, s, 1.0, seed) for seed in (0, 1)]) for s in STEPS]
        for m in MATRICES
    ]
    np.testing.assert_allclose(heat_in(ax), truth, rtol=1e-12)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(MATRICES)
    assert ax.get_title() == "weight_decay = 1.0, mean of 2 seeds"


def test_a_heat_map_of_one_trial_has_its_numbers(results):
    ax = results.plot.rank_heatmap(trial=trial(1.0, 1).trial_id[:8])

    truth = [[value(RANK, m, s, 1.0, 1) for s in STEPS] for m in MATRICES]
    np.testing.assert_allclose(heat_in(ax), truth, rtol=1e-12)
    assert ax.get_title() == "weight_decay = 1.0, seed 1"


def test_columns_reach_half_way_to_the_neighbouring_steps(results):
    """Geometrically: 0.5 between 0 and 1, the square root of the product between others."""
    [mesh] = results.plot.rank_heatmap().collections

    edges = mesh.get_coordinates()[0, :, 0]
    inner = [0.5, 10**0.5, 1000**0.5]
    np.testing.assert_allclose(edges, [0.0, *inner, 100**2 / inner[-1]], rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [("alignment_diagonal", (COUPLING,)), ("agreement", ("final", MATRICES[0]))],
)
def test_an_entry_that_one_seed_does_not_determine_is_grey_in_the_mean(results, kind, arguments):
    ax = getattr(results.plot, kind)(*arguments, configuration={"weight_decay": 1.0})

    drawn = heat_in(ax)
    truth = np.array(
        [
            [np.mean([entry(i, step, 1.0, seed) for seed in (0, 1)]) for step in STEPS]
            for i in range(1, SINGULAR + 1)
        ]
    )
    truth[2, 2] = np.nan  # of seed 1, see tests/measured.py
    np.testing.assert_allclose(drawn, truth, rtol=1e-12)
    bar = ax.figure.axes[1]
    [dashed] = [line for line in bar.lines if line.get_gid() == CHANCE]
    assert set(dashed.get_ydata()) == {CHANCES[f"{kind.split('_')[0]}/chance"]}


@pytest.mark.parametrize(
    ("kind", "metric", "rows"),
    [
        ("alignment_scores", "alignment", [COUPLING]),
        ("agreement_scores", "agreement/final", MATRICES),
    ],
)
def test_scores_stand_beside_their_chance_level(results, kind, metric, rows):
    ax = getattr(results.plot, kind)(trial=trial(0.0, 0).trial_id)

    truth = [[value(metric, row, step, 0.0, 0) for step in STEPS] for row in rows]
    np.testing.assert_allclose(heat_in(ax), truth, rtol=1e-12)
    chance = CHANCES[f"{metric.split('/')[0]}/chance"]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == [f"{short(row)} ({chance:.2g})" for row in rows]


def test_collapsed_numbers_are_hidden_and_counted_and_ill_posed_ones_are_shown():
    table = scalars_table(
        *[("t0", s, "a", RANK, 0.5, f) for s, f in ((0, None), (1, "ill_posed"), (2, "collapsed"))],
        *[("t1", s, "a", RANK, 0.7, f) for s, f in ((0, None), (1, "estimated"), (2, None))],
    )
    of = trials_table(("t0", "c0", 0, "completed"), ("t1", "c0", 1, "completed"))

    heat = scalar_heat(visible(table), configurations(of, [])[0])

    np.testing.assert_array_equal(heat.values, [[0.6, 0.6, np.nan]])
    assert (heat.num_hidden, heat.num_undetermined) == (1, 0)


def test_seeds_recorded_at_different_steps_are_not_averaged():
    table = scalars_table(*curve("t0", [0.5, 0.4], "a", RANK), *curve("t1", [0.9], "a", RANK))
    of = trials_table(("t0", "c0", 0, "completed"), ("t1", "c0", 1, "completed"))

    heat = scalar_heat(table, configurations(of, [])[0])

    assert (heat.values.tolist(), heat.seeds, heat.unequal) == ([[0.5, 0.4]], (0,), True)


def test_a_configuration_without_a_completed_trial_shows_its_first_one(tmp_path):
    root = measured(tmp_path / "bad", trials((1.0,), (3, 4), status="diverged"), ["ranks"])

    ax = Results.open(root).plot.rank_heatmap()

    assert ax.get_title() == "seed 3 (diverged)"
    np.testing.assert_allclose(heat_in(ax)[0], [value(RANK, MATRICES[0], s, 1.0, 3) for s in STEPS])


# --- lines ----------------------------------------------------------------------------------


def test_singular_values_are_drawn_index_by_index(results):
    ax = results.plot.singular_values(MATRICES[1], trial(1.0, 0).trial_id)

    drawn = [line.get_ydata() for line in reversed(ax.lines)]
    truth = [[entry(i, s, 1.0, 0) for s in STEPS] for i in range(1, SINGULAR + 1)]
    np.testing.assert_allclose(drawn, truth, rtol=1e-12)
    assert ax.get_title() == f"{MATRICES[1]}, weight_decay = 1.0, seed 0"


def test_without_a_name_the_matrix_that_changed_most_is_shown(results):
    """The second one falls by 0.3 for each unit of weight decay, the first by 0.2."""
    assert results.plot.singular_values().get_title().startswith(MATRICES[1])
    assert most_changed(results.scalars(metric=RANK)) == MATRICES[1]


def test_pruned_losses_draw_every_seed_and_the_mean_of_each_model(results):
    ax = results.plot.pruned_losses("train", configuration={"weight_decay": 1.0})

    models = {
        "full model": ("loss", STEPS),
        "top 50 % kept": ("loss/kept_top_0.5", (0, 100)),
        "bottom 50 % kept": ("loss/kept_bottom_0.5", (0, 100)),
    }
    drawn = lines_in(ax)
    for name, (metric, steps) in models.items():
        by_seed = [[value(metric, "train", s, 1.0, seed) for s in steps] for seed in (0, 1)]
        for seed in (0, 1):
            trial_id = trial(1.0, seed).trial_id
            np.testing.assert_allclose(drawn.pop(f"{trial_id} {name}"), by_seed[seed])
        mean = drawn.pop(f"{trial(1.0, 0).config_id} {name}")
        np.testing.assert_allclose(mean, np.mean(by_seed, axis=0))
    assert drawn == {}


def test_settling_compares_the_first_ten_indices_with_the_last_ten(results):
    """Of twelve entries the last that are not among the first ten: 11 and 12."""
    ax = results.plot.settling(MATRICES[0], configuration={"weight_decay": 1.0})

    drawn, trial_id = lines_in(ax), trial(1.0, 1).trial_id
    for name, indices in (("index 1–10", range(1, 11)), ("index 11–12", (11, 12))):
        truth = [
            np.mean([entry(i, s, 1.0, 1) for i in indices if (i, s) != (3, 10)]) for s in STEPS
        ]
        np.testing.assert_allclose(drawn[f"{trial_id} {name}"], truth)


def lines_of_seeds(decay, metrics):
    """gid -> values of a configuration's lines; `metrics`: name -> (metric, subject, steps)."""
    truth = {}
    for name, (metric, subject, steps) in metrics.items():
        seeds = [[value(metric, subject, s, decay, seed) for s in steps] for seed in (0, 1)]
        truth |= {f"{trial(decay, seed).trial_id} {name}": seeds[seed] for seed in (0, 1)}
        truth[f"{trial(decay, 0).config_id} {name}"] = np.mean(seeds, axis=0)
    return truth


def test_updates_draw_the_share_and_the_rank_of_every_seed_and_the_chance_of_the_share(results):
    """At step 0 there is no update."""
    ax = results.plot.updates(MATRICES[0], configuration={"weight_decay": 1.0})

    drawn = lines_in(ax)
    assert set(drawn.pop(CHANCE)) == {CHANCES[f"{SHARE}_chance"]}
    names = {
        "share in the first 10 directions": (SHARE, MATRICES[0], STEPS[1:]),
        "effective rank / full rank": (UPDATE_RANK, MATRICES[0], STEPS[1:]),
    }
    truth = lines_of_seeds(1.0, names)
    assert drawn.keys() == truth.keys()
    for gid, values in truth.items():
        np.testing.assert_allclose(drawn[gid], values, rtol=1e-12)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(names)
    assert ax.get_title() == f"{MATRICES[0]}, weight_decay = 1.0, seeds 0, 1"


def test_operators_draw_a_convolution_as_operator_beside_its_flattened_weight(results):
    """Without a name the one whose rank as an operator changed most, which is the second."""
    ax = results.plot.operators(configuration={"weight_decay": 1.0})

    names = {
        "linear operator": (OPERATOR_RANK, MATRICES[1], STEPS),
        "flattened weight": (RANK, MATRICES[1], STEPS),
    }
    drawn, truth = lines_in(ax), lines_of_seeds(1.0, names)
    assert drawn.keys() == truth.keys()
    for gid, values in truth.items():
        np.testing.assert_allclose(drawn[gid], values, rtol=1e-12)


def test_an_operator_stands_alone_where_ranks_were_not_measured(tmp_path):
    root = measured(tmp_path / "small", groups=["operator"])

    ax = Results.open(root).plot.operators()

    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["linear operator"]


def test_a_chance_level_is_the_highest_of_each_trial_and_every_level_is_kept_once():
    """t0 has fewer directions at step 0; t1 has the same shapes; t2 is wider."""
    rows = [("t0", 0, 0.01), ("t0", 1, 0.25), ("t1", 0, 0.25), ("t2", 0, 0.125), ("t2", 1, None)]

    table = scalars_table(*[(t, step, "a", "chance", level) for t, step, level in rows])

    assert chance_levels(table) == {"a": [0.125, 0.25]}


def test_an_alignment_score_is_drawn_with_its_chance_level(results):
    ax = results.plot.alignment(COUPLING, "weight_decay")

    drawn = lines_in(ax)
    assert set(drawn.pop(CHANCE)) == {0.25}
    ids = {trial(d, s).trial_id for d in (0.0, 1.0) for s in (0, 1)}
    assert set(drawn) == ids | {trial(d, 0).config_id for d in (0.0, 1.0)}


def test_final_ranks_are_a_point_per_seed_and_a_mean_with_its_interval(results):
    ax = results.plot.final_rank_by("weight_decay", MATRICES[0])

    ends = {d: [value(RANK, MATRICES[0], 100, d, s) for s in (0, 1)] for d in (0.0, 1.0)}
    drawn = lines_in(ax)
    for decay, values in ends.items():
        assert drawn[trial(decay, 0).config_id] == pytest.approx(values)
    intervals = [segments for c in ax.containers for segments in c.lines[2][0].get_segments()]
    for segment, values in zip(intervals, ends.values(), strict=True):
        sd = np.array([np.std(values, ddof=1)])
        low, high = t_interval(np.array([np.mean(values)]), sd, np.array([2]))
        np.testing.assert_allclose(sorted(segment[:, 1]), [low[0], high[0]])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.0\nn = 2", "1.0\nn = 2"]


def test_a_metric_is_drawn_on_axes_of_the_callers(results):
    ax = Figure().add_subplot()

    assert results.plot.metric("error", "val", "weight_decay", ax=ax) is ax
    assert len(lines_in(ax)) == 6  # four trials, two means


# --- what a user may call things ------------------------------------------------------------

ODD = ("n", "value", "lower", "upper", "what", "panel", "configuration", "parameter", "level")


@pytest.mark.parametrize("parameter", ODD)
def test_a_parameter_may_be_called_as_a_column_of_the_numbers(parameter):
    of = trials_table(("t0", "c0", 0, "completed"), ("t1", "c1", 0, "completed"))
    of = of.append_column(parameter, pa.array(["low", "high"]))
    rows = scalars_table(*curve("t0", [0.5, 0.25]), *curve("t1", [0.75, 1.0]))

    table = finals_table(finals(of, rows, parameter, [parameter]), parameter)

    assert len(set(table.column_names)) == table.num_columns
    seeds = [row for row in table.to_pylist() if row["what"] == "trial"]
    assert [(r["parameter"], r["level"], r["value"]) for r in seeds] == [
        (parameter, "high", 1.0),
        (parameter, "low", 0.25),
    ]


def test_heat_maps_of_other_matrices_have_names_of_their_own():
    """Configurations of 1, 3 and 1 layers: names where they are not those at their left."""
    of = trials_table(*[(f"t{i}", f"c{i}", 0, "completed") for i in range(3)])
    names = [["layers.0"], ["layers.0", "layers.1", "layers.2"], ["layers.0"]]
    rows = [(f"t{i}", 0, name, RANK, 0.5) for i in range(3) for name in names[i]]
    known = configurations(of, [])
    heats = [scalar_heat(scalars_table(*rows), each) for each in known]

    def shown(chosen):
        sheet = heat_sheet("n", "title", "how", [heats[i] for i in chosen], "rank", row="matrix")
        panels = sheet.figure.axes[: len(chosen)]
        texts = ([label.get_text() for label in ax.get_yticklabels()] for ax in panels)
        return [list(filter(None, each)) for each in texts]

    assert shown((0, 1, 2)) == names
    assert shown((0, 1, 1)) == [*names[:2], names[1]]
    assert shown((0, 2, 1)) == [names[0], [], names[1]]


def test_as_many_rows_as_the_longest_have_room():
    """The same height whichever comes first."""
    of = trials_table(("t0", "c0", 0, "completed"), ("t1", "c1", 0, "completed"))
    rows = [("t0", 0, "a", RANK, 0.5), *(("t1", 0, f"b{i}", RANK, 0.5) for i in range(40))]
    heats = [scalar_heat(scalars_table(*rows), each) for each in configurations(of, [])]

    heights = {
        heat_sheet("n", "t", "h", chosen, "rank", row="matrix").figure.get_figheight()
        for chosen in (heats, heats[::-1])
    }

    assert len(heights) == 1
    assert min(heights) > 40 * 0.16  # inches


@pytest.mark.parametrize("text", ["$\\frac$", "cost in $", "\\$5", "$a$ and $b", "a\\b"])
def test_a_text_is_drawn_as_it_stands(text):
    """As matplotlib itself draws it where no formula is looked for."""
    drawn = []
    for shown, options in ((literal(text), {}), (text, {"parse_math": False})):
        figure = Figure(figsize=(2, 1), dpi=50)
        figure.text(0.1, 0.5, shown, **options)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn.append(np.asarray(canvas.buffer_rgba()))

    np.testing.assert_array_equal(*drawn)


def test_figures_of_a_run_take_any_name_and_no_file_twice():
    names = ("opt.lr", "opt_lr", "$\\frac$")
    of = trials_table(("t0", "c0", 0, "completed"), ("t1", "c1", 0, "completed"))
    for name in names:
        of = of.append_column(name, pa.array(["$\\frac$", "x" * 99]))
    rows = scalars_table(*curve("t0", [0.5, 0.25]), *curve("t1", [0.75, 1.0]))
    spectra = pa.table({"subject": pa.array([], pa.string())})

    figures = sweep_figures(of, rows, spectra, names)

    assert list(figures) == ["error_by_opt_lr", "error_by_opt_lr_2", "error_by___frac_"]
    [legend] = figures["error_by_opt_lr"].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "\\$\\frac\\$: 1 trial",
        f"{'x' * 24}…{'x' * 15}: 1 trial",
    ]
    figures["error_by___frac_"].draw_without_rendering()


def test_a_long_level_keeps_its_beginning_and_its_end():
    assert shorter("a" * 40) == "a" * 40
    assert shorter("You are\n a " + "b" * 90 + " end") == f"You are a {'b' * 14}…{'b' * 11} end"
    assert len(shorter("x" * 99, 8)) == 8
    of = trials_table(("t0", "c0", 0, "completed"), ("t1", "c1", 0, "completed"))
    found = configurations(of.append_column("p", pa.array(["x" * 99, "y"])), ["p"])
    assert [each.label for each in found] == ["p = " + "x" * 99, "p = y"]
    assert [each.shown for each in found] == [f"p = {'x' * 24}…{'x' * 15}", "p = y"]


def test_of_a_thousand_levels_twelve_are_named_and_all_are_drawn():
    """One line of points per configuration, and one call for all their intervals."""
    of = trials_table(*[(f"t{i}", f"c{i}", 0, "completed") for i in range(1000)])
    ends = [
        Final(each, i, {f"t{i}": 0.5}, None, 0) for i, each in enumerate(configurations(of, []))
    ]
    ax = Figure().add_subplot()

    draw_finals(ax, ends, "p", RANK)

    assert len(ax.lines) == 1000
    assert [*ax.get_xticks()[[0, -1]], len(ax.get_xticks())] == [0, 999, 12]


# --- what is not there ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "arguments", "kind", "name", "group"),
    [
        ("singular_values", (), "quantity", "singular_values", "spectrum"),
        ("rank_heatmap", (), "metric", RANK, "ranks"),
        ("rank_heatmap", ("update_stable_rank",), "metric", "update_stable_rank", "update"),
        ("alignment_diagonal", (), "quantity", "alignment/diagonal", "alignment"),
        ("alignment_scores", (), "metric", "alignment", "alignment"),
        ("agreement", ("initial",), "quantity", "agreement/initial", "agreement"),
        ("agreement_scores", (), "metric", "agreement/final", "agreement"),
        ("settling", (), "quantity", "agreement/final", "agreement"),
        ("pruned_losses", (), "metric", "loss/kept_top_0.5", "pruned"),
        ("final_rank_by", ("weight_decay",), "metric", RANK, "ranks"),
        ("updates", (), "metric", UPDATE_RANK, "update"),
        ("operators", (), "metric", OPERATOR_RANK, "operator"),
    ],
)
def test_what_was_not_measured_is_an_error_that_names_the_measurement(
    method, arguments, kind, name, group, bare
):
    with pytest.raises(QueryError) as caught:
        getattr(bare.plot, method)(*arguments)

    assert str(caught.value) == (
        f"{bare.root} holds no {kind} {name!r}: measure: [{group}] measures it, in the sweep file "
        "or given to a Recorder"
    )


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Results with losses and nothing else."""
    return Results.open(measured(tmp_path_factory.mktemp("bare") / "bare", groups=()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: p.singular_values("layers.0.c"),
            "there is no matrix 'layers.0.c' (did you mean layers.0.a or layers.0.b?); "
            "there are: layers.0.a, layers.0.b",
        ),
        (
            lambda p: p.agreement("last"),
            "there is no reference 'last'; there are: final, initial, previous",
        ),
        (
            lambda p: p.pruned_losses("vals"),
            "there is no split 'vals' (did you mean val?); there are: train, val",
        ),
        (
            lambda p: p.rank_heatmap(configuration={"weight_decay": 2.0}),
            "no configuration has weight_decay = 2.0; there are: weight_decay = 0.0; "
            "weight_decay = 1.0",
        ),
        (
            lambda p: p.rank_heatmap(configuration={}),
            "2 configurations have no value given; name one of: weight_decay = 0.0; "
            "weight_decay = 1.0",
        ),
        (
            lambda p: p.rank_heatmap(trial="x", configuration="y"),
            "give a trial or a configuration, not both",
        ),
        (
            lambda p: p.final_rank_by("decay"),
            "there is no parameter 'decay'; there are: weight_decay",
        ),
        (
            lambda p: p.final_rank_by("seed"),
            "there is no parameter 'seed'; there are: weight_decay",
        ),
        (
            lambda p: p.metric("loss", "val", by="status"),
            "there is no parameter 'status'; there are: weight_decay",
        ),
    ],
)
def test_a_name_that_is_not_there_is_an_error_with_those_that_are(results, call, message):
    with pytest.raises(QueryError) as caught:
        call(results.plot)

    assert str(caught.value) == message


def test_no_result_yet_is_an_error(tmp_path):
    root = measured(tmp_path / "empty", committed=False)

    with pytest.raises(QueryError) as caught:
        Results.open(root).plot.rank_heatmap()

    assert str(caught.value) == (
        f"no trial of {root} has a result yet: `sweep status {root}` counts them"
    )


def test_reading_results_loads_no_figures():
    """matplotlib takes most of a second: only who plots pays for it."""
    code = (
        "import sys; from orchestrator import Results; Results; print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("embedding", "embedding"),
        ("layers.0.a.value->layers.0.a.out", "layers.0.a.value → out"),
        ("layers.0.linear2->decoder", "layers.0.linear2 → decoder"),
        ("encoder." * 8 + "x", "…" + ("encoder." * 8 + "x")[-39:]),
    ],
)
def test_long_names_are_shortened_at_their_beginning(name, shown):
    assert short(name) == shown


def test_shortened_names_of_couplings_stay_apart():
    """Value and output whole, and the mean over heads, which a heat map has beside each other."""
    names = {c.group or c.name for c in transformer_couplings(12, 8, 2, 8)}

    assert len({short(name) for name in names}) == len(names)


@pytest.mark.parametrize(("count", "every"), [(70, 1), (71, 2), (140, 2), (141, 3)])
def test_of_more_rows_than_have_room_for_names_every_nth_has_its_own(count, every):
    """No number stands where a name would be."""
    names = [f"layers.{i}.linear" for i in range(count)]
    of = trials_table(("t0", "c0", 0, "completed"))
    rows = [curve("t0", [0.5, 0.25], name, RANK) for name in names]
    table = scalars_table(*itertools.chain.from_iterable(rows))

    ax = heat_alone(None, scalar_heat(table, configurations(of, [])[0]), "rank")

    places = [round(place) for place in ax.get_yticks()]
    shown = dict(zip(places, (label.get_text() for label in ax.get_yticklabels()), strict=True))
    assert shown == {i + 1: names[i] for i in range(0, count, every)}


def test_configurations_come_in_the_order_of_their_parameters_with_what_varies():
    of = trials_table(
        *[(f"t{i}", f"c{i}", 0, "completed") for i in range(3)],
        weight_decay=pa.array([10.0, 0.0, 2.0]),
        width=pa.array([8, 8, 8]),
    )

    found = configurations(of, ["weight_decay", "width"])

    assert [each.label for each in found] == [f"weight_decay = {d}" for d in (0.0, 2.0, 10.0)]
