"""`sweep report`: a page that needs nothing else, and files that hold what is plotted."""

import base64
import csv
import io
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from orchestrator import Results
from orchestrator.cli import app
from orchestrator.errors import QueryError, StoreError, SweepError, UserError
from orchestrator.figures_draw import CHANCE
from orchestrator.report import formats_of, material_of, write
from orchestrator.report_files import replace, require_ours
from orchestrator.report_page import GENERATOR, Section, Table, page
from orchestrator.report_tables import _cut
from orchestrator.rows import Buffer
from spectral import ScalarRow
from tests.measured import (
    CHANCES,
    MATRICES,
    RANK,
    SHARE,
    SINGULAR,
    STEPS,
    entry,
    measured,
    trial,
    trials,
    value,
)
from tests.orchestrator.drawn import heat_in, lines_in, sheets_of
from tests.stores import FakeTrial, build_store

SHEETS = {
    "task_metrics_by_weight_decay",
    "singular_values",
    "rank_heatmap",
    "rank_lines_by_weight_decay",
    "final_rank_by_weight_decay",
    "alignment_diagonal",
    "alignment_scores",
    "alignment_lines_by_weight_decay",
    "agreement",
    "agreement_scores",
    "settling",
    "pruned_loss",
    "update_share_by_weight_decay",
    "update_rank_by_weight_decay",
    "operators_by_weight_decay",
}
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """What a browser would find; every element must be closed in its turn."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.found, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("report") / "small")


@pytest.fixture(scope="module")
def reported(root):
    """The report of a small sweep that measured everything: its folder and its page."""
    path = write(Results.open(root))
    assert path == root / "report" / "index.html"
    return path.parent, path.read_text()


@pytest.fixture(scope="module")
def sheets(root):
    return sheets_of(root)


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


# --- the page -------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_asks_the_network_for_nothing(reported):
    """Neither a browser nor an XML parser finds an element left open, or an address in it."""
    _, text = reported

    found = Page(text)
    ET.fromstring(text)
    words = re.sub(r'"data:image/png;base64,[^"]*"', "", text)
    assert re.findall(r"https?:|//|url\(|@import|<script|<link", words) == []
    for image in found.all("img"):
        head, _, data = image["src"].partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
        assert len(image["alt"]) > 10


def test_everything_that_is_linked_exists_and_every_figure_has_its_files(reported):
    folder, text = reported

    links = [attributes["href"] for attributes in Page(text).all("a")]
    inside = {link[1:] for link in links if link.startswith("#")}
    ids = {attributes["id"] for attributes in Page(text).all("h2")}
    files = {link for link in links if not link.startswith("#")}
    assert inside == ids
    assert ids >= {"what", "final", "trends", "parameters", *SHEETS}
    assert files == {f"figures/{s}.{kind}" for s in SHEETS for kind in ("pdf", "svg", "csv")}
    assert {str(p.relative_to(folder)) for p in folder.rglob("*.*")} == {*files, "index.html"}
    for name in files:
        start = (folder / name).read_bytes()[:5]
        kind = name[-3:]
        assert start == {"pdf": b"%PDF-", "svg": b"<?xml", "csv": b"panel"}[kind]


def test_the_page_says_what_was_run(reported):
    text = " ".join(" ".join(Page(reported[1]).text).split())

    for part in (
        "task modular_addition",
        "configurations 2",
        "seeds 0, 1",
        "trials 4 completed",
        "time of all trials 40 s",
        "weight_decay 0.0, 1.0",
        "width 8",
        "name: small",  # the sweep file
    ):
        assert part in text


def test_final_values_and_trends_are_those_of_the_tables(reported):
    """Mean and half the t interval of two seeds: t(0.975, 1) = 12.706, sd of values 0.01 apart."""
    text = " ".join(" ".join(Page(reported[1]).text).split())

    mean = np.mean([value(RANK, MATRICES[0], 100, 1.0, seed) for seed in (0, 1)])
    half = 12.7062 * 0.01 / np.sqrt(2) / np.sqrt(2)
    assert f"{mean:.3f} ± {half:.3f}" in text
    first = np.mean([value(RANK, MATRICES[0], 0, 1.0, seed) for seed in (0, 1)])
    ends = f"{first:.3g} ± {half:.3g} {mean:.3g} ± {half:.3g} 2"
    assert f"{RANK} {MATRICES[0]} weight_decay = 1.0 {ends}" in text


def test_a_text_of_the_user_cannot_break_the_page():
    """Names, notes and files are text: markup in them is shown, not obeyed."""
    table = Table(("<b>", "a & b"), [("x<y", '"quoted"')], "1 < 2")
    text = page(
        "<i>name</i>\x1b", [Section("one", "<h2>\ufffe", ["a\x00<script>", table], ("f", "a: <b>"))]
    )

    ET.fromstring(text)
    assert "<script>" not in text
    assert "<i>name</i>" not in text
    assert '"quoted"' in "".join(Page(text).text)


# --- the numbers ----------------------------------------------------------------------------


def test_the_csv_of_a_heat_map_holds_what_is_drawn(reported, sheets):
    rows = rows_of(reported[0] / "figures" / "rank_heatmap.csv")

    assert len(rows) == 2 * len(MATRICES) * len(STEPS)
    for row in rows:
        decay = float(row["panel"].removeprefix("weight_decay = "))
        step = int(row["step"])
        truth = np.mean([value(RANK, row["matrix"], step, decay, seed) for seed in (0, 1)])
        assert float(row["value"]) == pytest.approx(truth, rel=1e-12)
        assert row["seeds"] == "0 1"
    drawn = [heat_in(ax).ravel() for ax in sheets["rank_heatmap"].figure.axes[:2]]
    np.testing.assert_array_equal(np.concatenate(drawn), [float(row["value"]) for row in rows])


@pytest.mark.parametrize(
    "name",
    [
        *("singular_values", "task_metrics_by_weight_decay", "settling", "pruned_loss"),
        *("update_rank_by_weight_decay", "operators_by_weight_decay"),
    ],
)
def test_the_csv_of_lines_holds_what_is_drawn(reported, sheets, name):
    """Every value of every line with a name, and nothing else."""
    rows = rows_of(reported[0] / "figures" / f"{name}.csv")

    lines = [values for ax in sheets[name].figure.axes for values in lines_in(ax).values()]
    drawn = sorted(np.concatenate(lines).tolist())
    assert sorted(float(row["value"] or "nan") for row in rows) == pytest.approx(drawn)


def test_lines_are_told_apart_by_trial_and_series(reported):
    rows = rows_of(reported[0] / "figures" / "singular_values.csv")
    mine = [row for row in rows if row["trial_id"] == trial(1.0, 1).trial_id]

    assert len(mine) == SINGULAR * len(STEPS)
    for row in mine:
        truth = entry(int(row["series"]), int(row["step"]), 1.0, 1)
        assert float(row["value"]) == pytest.approx(truth, rel=1e-12)
        assert (row["panel"], row["what"]) == ("weight_decay = 1.0, seed 1", "trial")


def test_shares_of_updates_are_written_with_their_chance_level(reported):
    rows = rows_of(reported[0] / "figures" / "update_share_by_weight_decay.csv")

    chances = [row for row in rows if row["what"] == CHANCE]
    assert {(row["panel"], float(row["value"])) for row in chances} == {
        (matrix, CHANCES[f"{SHARE}_chance"]) for matrix in MATRICES
    }
    seeds = [row for row in rows if row["what"] == "trial"]
    assert len(seeds) == 4 * len(MATRICES) * (len(STEPS) - 1)
    decays = {each.trial_id: each.params["weight_decay"] for each in trials()}
    for row in seeds:
        decay, step, seed = decays[row["trial_id"]], int(row["step"]), int(row["seed"])
        truth = value(SHARE, row["panel"], step, decay, seed)
        assert float(row["value"]) == pytest.approx(truth, rel=1e-12)


def test_operators_stand_beside_the_means_of_the_flattened_weight(reported):
    rows = rows_of(reported[0] / "figures" / "operators_by_weight_decay.csv")

    dotted = [row for row in rows if row["series"] == "flattened weight"]
    assert len(dotted) == 2 * len(MATRICES) * len(STEPS)
    decays = {trial(decay, 0).config_id: decay for decay in (0.0, 1.0)}
    for row in dotted:
        decay, step = decays[row["config_id"]], int(row["step"])
        truth = np.mean([value(RANK, row["panel"], step, decay, seed) for seed in (0, 1)])
        assert float(row["value"]) == pytest.approx(truth, rel=1e-12)
        assert row["what"] == "mean"


def test_shares_of_fewer_directions_are_counted(tmp_path):
    """At step 1 only two of ten leading directions are determined: the chance level is lower."""

    def rows(of):
        buffer = Buffer()
        for step, chance in ((1, 0.01), (10, 0.25)):
            named = {SHARE: 0.5, f"{SHARE}_chance": chance}
            found = [ScalarRow("a", m, v, None, None, "gram64", None) for m, v in named.items()]
            buffer.scalars(of.trial_id, step, found)
        return buffer

    build_store(tmp_path / "few", [trial(1.0, 0)], rows=rows)

    sheet = sheets_of(tmp_path / "few")["update_share"]

    assert sheet.notes == ["1 chance levels of shares of fewer directions, which are lower"]
    assert set(lines_in(sheet.figure.axes[0])[CHANCE]) == {0.25}


def test_final_ranks_are_written_seed_by_seed(reported):
    rows = rows_of(reported[0] / "figures" / "final_rank_by_weight_decay.csv")

    seeds = [row for row in rows if row["what"] == "trial"]
    assert len(seeds) == 4 * len(MATRICES)
    for row in seeds:
        truth = value(RANK, row["panel"], 100, float(row["level"]), int(row["seed"]))
        assert float(row["value"]) == pytest.approx(truth, rel=1e-12)
    assert {row["n"] for row in rows if row["what"] == "mean"} == {"2"}


def test_every_seed_is_drawn_where_it_is_a_curve(sheets):
    for name in ("task_metrics_by_weight_decay", "rank_lines_by_weight_decay"):
        for ax in sheets[name].figure.axes:
            gids = {line.get_gid() for line in ax.lines}
            assert {each.trial_id for each in trials()} <= gids


def test_hidden_numbers_are_counted(tmp_path):
    flags = {(MATRICES[0], 100): "collapsed"}
    root = measured(tmp_path / "flagged", groups=["ranks", "spectrum"], flags=flags)

    made = sheets_of(root)

    counted = "numbers hidden for their flag (collapsed, zero, diverged)"
    assert made["rank_heatmap"].notes == [f"4 {counted}"]
    assert f"4 {counted}" in made["rank_lines_by_weight_decay"].notes
    assert f"4 {counted}" in made["final_rank_by_weight_decay"].notes


# --- which results --------------------------------------------------------------------------


def names_in(root, **options):
    path = write(Results.open(root, **options), formats=())
    return {attributes["id"] for attributes in Page(path.read_text()).all("h2")}, path.read_text()


def test_one_trial_without_a_swept_parameter_has_a_report(tmp_path):
    root = measured(tmp_path / "one", trials((1.0,), (0,)), ["ranks"], axes=())

    names, text = names_in(root)

    assert names >= {"what", "final", "task_metrics", "rank_heatmap", "rank_lines", "trends"}
    assert not names & {"singular_values", "agreement", "pruned_loss"}
    assert "This figure as" not in text  # no files were asked for


def test_missing_running_diverged_and_failed_trials_are_counted(tmp_path):
    chosen = [
        *trials((1.0,), (0,)),
        *trials((1.0,), (1,), status="diverged", steps=(0, 1)),
        *trials((1.0,), (2,), status="running"),
        *trials((1.0,), (3,), status="failed", error="boom"),
    ]
    root = measured(tmp_path / "mixed", chosen, [])

    _, text = names_in(root)

    shown = " ".join(" ".join(Page(text).text).split())
    assert "trials 1 completed, 1 diverged, 2 without a result" in shown
    assert "attempts without a result 1 failed" in shown


def test_trials_that_cannot_be_compared_are_still_shown(tmp_path):
    """Seeds at unequal steps have no mean: the page says so, where it would have stood."""
    chosen = [*trials((1.0,), (0,)), *trials((1.0,), (1,), steps=(0, 1))]
    root = measured(tmp_path / "unequal", chosen, ["ranks"])

    names, text = names_in(root)

    assert "recorded at unequal steps" in text
    assert "so that the first one is shown instead of a mean" in text
    assert "rank_heatmap" in names


def test_of_many_configurations_evenly_spread_ones_get_a_panel(tmp_path):
    root = measured(tmp_path / "many", trials([0.1 * i for i in range(11)], (0,)), [])

    material = material_of(Results.open(root))

    levels = [each.label for each in material.shown]
    assert levels == [f"weight_decay = {0.1 * i}" for i in (0, 2, 4, 6, 8, 10)]
    _, text = names_in(root)
    assert "show 6 of 11 configurations" in text
    assert "5 are left out" in text


RECORDED = [("eval", "a $\\foo$"), ("train", "norm"), ("episode", "alignment"), ("train", RANK)]


def odd_rows(of):
    """A loss and a rank, and what the caller of a Recorder called things."""
    buffer = Buffer()
    named = [("train", "loss", "evaluation"), (MATRICES[0], RANK, "gram64")]
    named += [(split, metric, "recorded") for split, metric in RECORDED]
    for step in (0, 1):
        found = [ScalarRow(s, m, 0.5 + step / 4, None, None, how, None) for s, m, how in named]
        buffer.scalars(of.trial_id, step, found)
    return buffer


def test_a_users_names_and_texts_are_in_the_report(tmp_path):
    """Formulas that are none, long texts, scripts without glyphs, names that are ours too."""
    text = "$\\frac$ " + "long " * 30
    levels = [("漢字", "a"), (text, "b")]
    chosen = [
        FakeTrial(0, {"weight_decay": 0.0, "opt.lr": level, "opt_lr": other})
        for level, other in levels
    ]
    root = tmp_path / "odd"
    build_store(root, chosen, axes=("opt.lr", "opt_lr"), rows=odd_rows)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = write(Results.open(root), formats=("csv",))

    ET.fromstring(path.read_text())
    kinds = ("task_metrics", "rank_lines", "final_rank")
    expected = {f"{kind}_by_opt_lr{end}.csv" for kind in kinds for end in ("", "_2")}
    assert {p.name for p in (path.parent / "figures").iterdir()} == {"rank_heatmap.csv", *expected}
    own = rows_of(path.parent / "figures" / "task_metrics_by_opt_lr.csv")
    assert {row["panel"] for row in own} == {"train loss", *(f"{s} {m}" for s, m in RECORDED)}
    heat = rows_of(path.parent / "figures" / "rank_heatmap.csv")
    assert {row["panel"] for row in heat} == {f"opt.lr = {a}, opt_lr = {b}" for a, b in levels}
    assert {row["matrix"] for row in heat} == {MATRICES[0]}
    trends = " ".join(" ".join(Page(path.read_text()).text).split())
    assert "alignment episode" in trends


def test_a_table_that_is_cut_says_where_the_rest_is():
    table = _cut(("a",), [["x"]] * 61, "Rows.")

    assert len(table.rows) == 60
    assert table.about == (
        "Rows. The first 60 of 61 rows; `sweep track` writes all to trends.parquet."
    )


# --- where it goes --------------------------------------------------------------------------


def test_a_file_where_the_figures_go_is_refused(tmp_path):
    (tmp_path / "figures").write_text("")

    with pytest.raises(UserError) as caught:
        require_ours(tmp_path, own=True)

    assert str(caught.value) == (
        f"{tmp_path}/figures is no folder, where the figures go; move it elsewhere"
    )


def test_a_report_is_replaced_and_other_files_of_the_folder_stay(tmp_path):
    """`sweep run` keeps its plots there. The same results give the same bytes."""
    root = measured(tmp_path / "again", groups=[])
    (root / "report").mkdir()
    (root / "report" / "plot.png").write_bytes(b"png")
    results = Results.open(root)
    write(results)
    before = {p.name: p.read_bytes() for p in (root / "report").rglob("*.*")}
    (root / "report" / "figures" / "stale.csv").write_text("old")

    write(results)

    assert {p.name: p.read_bytes() for p in (root / "report").rglob("*.*")} == before
    assert "plot.png" in before
    assert [p.name for p in root.rglob(".*")] == []


PAYLOADS = {"index.html": GENERATOR.encode(), "figures/a.csv": b"a", "figures/b.pdf": b"b"}


def held(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_stays_where_it_is_with_all_that_is_not_of_a_report(tmp_path, monkeypatch):
    """A link stays a link, a shell in the folder stays in it, and no file of the user's moves."""
    folder = tmp_path / "real"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    replace(tmp_path / "link", PAYLOADS)
    mine = {"plot.png": b"png", "figures/mine.txt": b"text"}
    for name, content in mine.items():
        (folder / name).write_bytes(content)
    inodes = {path: path.stat().st_ino for path in (folder, *map(folder.joinpath, mine))}
    monkeypatch.chdir(folder)

    replace(Path(), {"index.html": b"new", "figures/a.csv": b"new"})

    assert held(Path.cwd()) == {"index.html": b"new", "figures/a.csv": b"new", **mine}
    assert {path: path.stat().st_ino for path in inodes} == inodes
    assert (tmp_path / "link").is_symlink()


def test_a_link_to_a_folder_that_is_not_there_yet_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new" / "folder")

    replace(tmp_path / "link", PAYLOADS)

    assert held(tmp_path / "new" / "folder") == PAYLOADS


@pytest.mark.parametrize("moved", range(3))
def test_a_report_that_is_killed_loses_nothing(tmp_path, monkeypatch, moved):
    """After any of its moves: every file is whole, all that the page links to is there."""
    replace(tmp_path, PAYLOADS)
    (tmp_path / "plot.png").write_bytes(b"png")
    new = {"index.html": b"new", "figures/a.csv": b"new", "figures/c.csv": b"new"}
    program = f"""
import itertools, os, sys
from pathlib import Path
from orchestrator import report_files
move, count = Path.replace, itertools.count()
def dying(path, to):
    if next(count) == {moved}:
        os._exit(9)
    return move(path, to)
Path.replace = dying
report_files.replace(Path(sys.argv[1]), {new!r})
"""
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert killed.returncode == 9
    shown = {name: text for name, text in held(tmp_path).items() if "/." not in f"/{name}"}
    assert shown.keys() >= {*PAYLOADS, "plot.png"}
    assert shown["index.html"] == PAYLOADS["index.html"]
    assert all(text in (PAYLOADS.get(name), new.get(name), b"png") for name, text in shown.items())

    replace(tmp_path, new)

    assert held(tmp_path) == {**new, "plot.png": b"png"}


def test_a_folder_with_other_things_is_not_touched(tmp_path, root):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("text")

    with pytest.raises(UserError) as caught:
        write(Results.open(root), out)

    assert str(caught.value) == (
        f"{out} is not empty and holds no report; give a folder that does not exist yet"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(
        UserError, match=r"thesis\.tex is a file; give a folder that does not exist"
    ):
        write(Results.open(root), out / "thesis.tex")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    root = measured(tmp_path / "small", trials((1.0,), (0,)), [])
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError) as caught:
        write(Results.open(root), tmp_path / "file" / "report", ())

    assert str(caught.value).startswith(f"cannot write {tmp_path}/file/report: Not a directory.")


def test_no_result_yet_is_an_error(tmp_path):
    root = measured(tmp_path / "none", committed=False)

    with pytest.raises(QueryError) as caught:
        write(Results.open(root))

    assert str(caught.value) == (
        f"no trial of {root} has a result yet: `sweep status {root}` counts them"
    )
    assert not (root / "report").exists()


def test_a_format_that_there_is_not_is_refused_before_anything_is_drawn(root):
    with pytest.raises(SweepError) as caught:
        write(Results.open(root), formats=("svg", "bmp"))

    assert str(caught.value) == "formats: 1 problem\n  expected pdf, svg, csv; got 'bmp'"


def test_unknown_formats_are_refused_together():
    assert formats_of("csv, pdf") == ("pdf", "csv")
    with pytest.raises(SweepError) as caught:
        formats_of("png,svg,jpg")

    assert str(caught.value) == (
        "--formats: 2 problems\n  expected pdf, svg, csv; got 'png'\n"
        "  expected pdf, svg, csv; got 'jpg'"
    )


def test_the_command_writes_the_page_and_prints_where(tmp_path, capsys):
    root = measured(tmp_path / "small", trials((1.0,), (0,)), [])

    app(
        ["report", str(root), "--out", str(tmp_path / "out"), "--formats", "csv"],
        standalone_mode=False,
    )

    assert capsys.readouterr().out == f"report: {tmp_path}/out/index.html\n"
    assert [p.name for p in (tmp_path / "out" / "figures").iterdir()] == ["task_metrics.csv"]


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(StoreError) as caught:
        app(["report", str(tmp_path)], standalone_mode=False)

    assert str(caught.value) == (
        f"{tmp_path} is not a results folder: it holds no epochs/ folder. Give the folder that "
        "`sweep run` printed, for example results/grokking."
    )
