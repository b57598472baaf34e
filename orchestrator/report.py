"""`sweep report`: a page with the paper's figure types, and each figure as PDF, SVG and CSV.

write(Results.open("results/grokking"))        # results/grokking/report/index.html
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG

from orchestrator import report_tables
from orchestrator.aggregate import NORMALISED_RANK
from orchestrator.columns import only
from orchestrator.errors import IncomparableTrialsError, SweepError
from orchestrator.figures_choice import group_of, own_rows, require_results
from orchestrator.figures_data import Configuration, configurations, most_changed, visible
from orchestrator.figures_kinds import makers
from orchestrator.figures_panels import Material, Sheet, shown_of
from orchestrator.figures_text import untaken, without_glyph_warnings
from orchestrator.lines import OPERATOR_RANK, UPDATE_RANK, UPDATE_SHARE
from orchestrator.report_files import FIGURES, PAGE, replace, require_ours
from orchestrator.report_page import Image, Section, Table, page
from orchestrator.results import Results
from orchestrator.schemas import SCALARS, SPECTRA
from orchestrator.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("pdf", "svg", "csv")
DPI = 110
FINE = 220
"""Of what vector files hold as pixels: heat maps of many cells, lines by the hundred."""
_AT_ONCE = 64  # trials whose rows are read at once
_QUANTITIES = ("singular_values", "alignment/diagonal", "agreement/final")
_METRICS = (
    NORMALISED_RANK,
    *("alignment", "alignment/chance", "agreement/final", "agreement/chance"),
    *(UPDATE_SHARE, f"{UPDATE_SHARE}_chance", UPDATE_RANK, OPERATOR_RANK),
)

_CANVASES = {"png": FigureCanvasAgg, "pdf": FigureCanvasPdf, "svg": FigureCanvasSVG}
_DATES = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}
"""What a file would say of when and by what it was made: nothing."""

Progress = Callable[[int, int], None]
"""Called with how many steps are done, of how many."""


def formats_of(text: str) -> tuple[str, ...]:
    """The formats that a comma-separated list names.

    Raises:
        SweepError: with every one that there is not.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    return _known(names, "--formats")


def _known(names: Sequence[str], where: str) -> tuple[str, ...]:
    if unknown := [name for name in names if name not in FORMATS]:
        expected = ", ".join(FORMATS)
        raise SweepError(where, [f"expected {expected}; got {name!r}" for name in unknown])
    return tuple(name for name in FORMATS if name in names)


def write(
    results: Results,
    out: Path | None = None,
    formats: Sequence[str] = FORMATS,
    progress: Progress | None = None,
) -> Path:
    """Write the page and its figures to a folder; an older report is replaced.

    Nothing is written before everything is drawn; see `report_files.replace`. Other files in the
    folder stay.

    Args:
        results: with at least one result.
        out: a new or empty folder, or one that holds a report; None: `report` in the results.
        formats: of the files beside the page, some of `FORMATS`.
        progress: see `Progress`.

    Returns:
        The page.

    Raises:
        QueryError: no trial has a result yet.
        SweepError: there is no such format.
        UserError: `out` is something else.
        DamageError: a file of the store is damaged.
        StoreError: the storage refuses.
    """
    require_results(results)
    own = results.root / "report"
    formats = _known(formats, "formats")
    folder = own if out is None else Path(out).expanduser().absolute()
    require_ours(folder, own=folder == own)
    material = material_of(results)
    jobs = makers(material)
    sections, payloads, names = [], {}, set[str]()
    for done, make in enumerate(jobs):
        if progress is not None:
            progress(done, len(jobs))
        try:
            sheet = make()
        except IncomparableTrialsError as error:
            text = f"This figure needs trials that can be compared: {error}"
            sections.append(Section(f"figure-{done}", f"Figure {done + 1}", [text]))
            continue
        if sheet is None:
            continue
        sheet = dataclasses.replace(sheet, name=untaken(sheet.name, names))
        png = _saved(sheet.figure, "png")
        sheet.figure.set_layout_engine("none")  # it was laid out once; each time costs a second
        made = _files(sheet, formats)
        payloads.update(made)
        image = _image(sheet, png, [Path(name).suffix[1:] for name in made])
        sections.append(Section(sheet.name, sheet.title, [image]))
    if progress is not None:
        progress(len(jobs), len(jobs))
    text = page(f"Report of the sweep {results.name}", _sections(results, material, sections))
    payloads[PAGE] = text.encode()
    replace(folder, payloads)
    return folder / PAGE


def material_of(results: Results) -> Material:
    """Read what the figures need, a part of the trials at a time."""
    trials = results.trials()
    parts, own_parts = [SCALARS.empty_table()], [SCALARS.empty_table()]
    for start in range(0, trials.num_rows, _AT_ONCE):
        table = results.scan("scalars", trials.slice(start, _AT_ONCE))
        of_task = own_rows(table)
        own_parts.append(table.filter(of_task))
        table = table.filter(pc.invert(of_task))
        names = table["metric"].unique().to_pylist()
        parts.append(
            only(table, "metric", [n for n in names if n in _METRICS or group_of(n) == "pruned"])
        )
    scalars, own = (visible(pa.concat_tables(each)) for each in (parts, own_parts))
    everything = configurations(trials, results.parameters)
    shown = shown_of(everything)
    of_shown = only(trials, "config_id", _ids(shown))
    matrix, coupling = _subjects(results, of_shown, scalars)
    chosen = [subject for subject in (matrix, coupling) if subject is not None]
    spectra = []
    for start in range(0, of_shown.num_rows, _AT_ONCE):
        table = results.scan("spectra", of_shown.slice(start, _AT_ONCE))
        spectra.append(only(only(table, "quantity", _QUANTITIES), "subject", chosen))
    return Material(
        trials=trials,
        parameters=results.parameters,
        scalars=scalars,
        own=own,
        spectra=visible(pa.concat_tables(spectra) if spectra else SPECTRA.empty_table()),
        configurations=everything,
        shown=shown,
        matrix=matrix,
        coupling=coupling,
    )


def _ids(shown: Sequence[Configuration]) -> list[str]:
    return [each.config_id for each in shown]


def _subjects(
    results: Results, trials: pa.Table, scalars: pa.Table
) -> tuple[str | None, str | None]:
    """The matrix and the coupling that are shown where a figure is of one."""
    table = results.scan("spectra", trials.slice(0, _AT_ONCE))
    chosen = []
    for quantities, metric in (
        (("singular_values", "agreement/final"), NORMALISED_RANK),
        (("alignment/diagonal",), "alignment"),
    ):
        names = only(table, "quantity", quantities)["subject"].unique().to_pylist()
        ranked = only(only(scalars, "metric", [metric]), "subject", names)
        chosen.append(most_changed(ranked) or next(iter(names), None))
    return chosen[0], chosen[1]


def _sections(results: Results, material: Material, figures: Sequence[Section]) -> list[Section]:
    store = Store(results.root)
    records = store.sweeps()
    source = ("The sweep file, as it was accepted last", records[-1].text) if records else None
    what = Section("what", "What was run", report_tables.facts(results, store), source)
    sections = [what]
    parts: list[str | Table | Image] = []
    try:
        table = report_tables.final(results)
        parts = [table] if table is not None else []
    except IncomparableTrialsError as error:
        parts = [f"There is no mean over seeds: {error}"]
    if parts:
        sections.append(Section("final", "At the last step", parts))
    if notes := report_tables.left_out(material):
        sections.append(Section("shown", "What the figures leave out", notes))
    sections += figures
    if not figures:
        sections.append(Section("figures", "Figures", ["Nothing was measured that has a figure."]))
    try:
        fits = report_tables.fitted(material)
    except IncomparableTrialsError as error:
        sections.append(Section("trends", "Trends", [f"There are no trends: {error}"]))
    else:
        if fits:
            sections.append(Section("trends", "Trends", fits))
    fixed = report_tables.fixed_parameters(results)
    if fixed is not None:
        sections.append(Section("parameters", "All other parameters", [fixed]))
    return sections


# --- files ----------------------------------------------------------------------------------


def _files(sheet: Sheet, formats: Sequence[str]) -> dict[str, bytes]:
    """Path in the folder -> content; the same figure gives the same bytes."""
    made = {}
    for name in formats:
        content = _csv(sheet.numbers) if name == "csv" else _saved(sheet.figure, name)
        made[f"{FIGURES}/{sheet.name}.{name}"] = content
    return made


def _saved(figure: Figure, kind: str) -> bytes:
    # `savefig` would draw everything twice, to find a size that is known here.
    canvas = _CANVASES[kind](figure)
    figure.dpi = DPI if kind == "png" else FINE
    sink = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "spectral-sweeps"}), without_glyph_warnings():
        getattr(canvas, f"print_{kind}")(sink, metadata=_DATES[kind])
    return sink.getvalue()


def _csv(table: pa.Table) -> bytes:
    """Full precision; null is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    columns = [column.to_pylist() for column in table.columns]
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue().encode()


def _image(sheet: Sheet, png: bytes, kinds: Sequence[str]) -> Image:
    return Image(
        png=png,
        width=int.from_bytes(png[16:20], "big"),  # where a PNG says so
        height=int.from_bytes(png[20:24], "big"),
        alt=f"{sheet.title}. The numbers are in the CSV file beside this page."
        if "csv" in kinds
        else f"{sheet.title}.",
        how=sheet.how,
        notes=sheet.notes,
        links=[(kind.upper(), f"{FIGURES}/{sheet.name}.{kind}") for kind in kinds],
    )
