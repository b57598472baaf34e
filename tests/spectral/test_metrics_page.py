"""docs/metrics.md says what spectral.METRICS says, and the other way round."""

from pathlib import Path

import pytest
import torch

from spectral import (
    MEASUREMENTS,
    METRICS,
    QUANTITIES,
    MatrixView,
    Metric,
    take_snapshot,
)

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def documented(page: str, heading: str) -> dict[str, Metric]:
    """The rows of the first table whose first column is called `heading`."""
    lines = iter(page.splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            break
    next(lines)
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
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
    """No metric is written that the tables do not know, and none of theirs is missing."""
    (snapshot,), _ = take_snapshot(
        [MatrixView("w", "w")], {"w": torch.eye(3)[None]}, list(MEASUREMENTS), None
    )

    assert [row.metric for row in snapshot.scalars] == list(METRICS)
    assert [row.quantity for row in snapshot.spectra] == list(QUANTITIES)


def test_measurements_are_named_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")

    for name in MEASUREMENTS:
        assert f"(measurement `{name}`)" in page


def test_methods_and_flags_are_named_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")

    for word in ("gram64", "svd64", "gesvd64", "none", "zero", "diverged", "collapsed"):
        assert f"| `{word}` |" in page
