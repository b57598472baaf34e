"""docs/metrics.md says what spectral.METRICS says, and the other way round."""

from pathlib import Path

import pytest
import torch

from spectral import (
    MEASUREMENTS,
    METRICS,
    QUANTITIES,
    ConvGeometry,
    Coupling,
    CouplingEnd,
    MatrixView,
    Metric,
    take_snapshot,
)

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def documented(page: str, heading: str) -> dict[str, Metric]:
    """The rows of every table whose first column is called `heading`, in the page's order."""
    rows = {}
    inside = False
    for line in page.splitlines():
        if line.startswith(f"| {heading} |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|---"):
            name, *rest = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name.strip("`")] = Metric(name.strip("`"), *rest)
    return rows


@pytest.mark.parametrize(
    ("heading", "table"),
    [("metric", METRICS), ("quantity", QUANTITIES)],
    ids=["metric", "quantity"],
)
def test_the_page_and_the_code_define_the_same_metrics(
    heading: str, table: dict[str, Metric]
) -> None:
    assert documented(PAGE.read_text(encoding="utf-8"), heading) == table


def test_a_missing_or_changed_line_would_be_noticed() -> None:
    """Twin: the comparison is of whole lines, in both directions."""
    page = PAGE.read_text(encoding="utf-8")

    assert documented(page.replace("| `stable_rank` |", "| `stable` |"), "metric") != METRICS
    assert documented(page.replace("J. ACM 54", "J. ACM 55"), "metric") != METRICS


def test_every_row_of_a_snapshot_is_defined() -> None:
    """No metric is written that the tables do not know, and of each group none is missing.

    `pruned` is an evaluation, and `agreement/final` needs the end: a trial's test holds those.
    """
    kernel = torch.randn(1, 3, 2, 3, 3)
    views = [MatrixView("w", "w"), MatrixView("k", "k", layout="conv")]
    couplings = [Coupling(CouplingEnd("w", "left"), CouplingEnd("w", "right"), 4)]
    state = None
    for step in range(2):
        parameters = {"w": torch.randn(1, 4, 4), "k": kernel * (step + 1)}
        (snapshot,), state = take_snapshot(
            views,
            parameters,
            list(MEASUREMENTS),
            state,
            couplings=couplings,
            geometries={"k": ConvGeometry((8, 8))},
        )

    later = {name for name in METRICS if "final" in name or "kept_" in name}
    assert {row.metric for row in snapshot.scalars} == set(METRICS) - later
    assert {row.quantity for row in snapshot.spectra} == set(QUANTITIES) - {"agreement/final"}


def test_measurements_are_named_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")

    for name in MEASUREMENTS:
        assert f"(measurement `{name}`)" in page


def test_methods_and_flags_are_named_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")

    methods = "gram64 deflated64 svd64 gesvd64 subspace64 fft_gram64 fft_svd64 fft_gesvd64 none"
    flags = "zero diverged collapsed ill_posed estimated"
    for word in f"{methods} projection evaluation {flags}".split():
        assert f"| `{word}` |" in page
