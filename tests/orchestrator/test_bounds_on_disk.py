"""The promise of every row, checked where it is kept: bounds read back from disk hold."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.results import Results
from orchestrator.rows import Buffer
from spectral import MatrixView, take_snapshot
from tests.spectral.matrix_zoo import oracle, zoo
from tests.spectral.test_bounds import ORACLES
from tests.stores import FakeTrial, build_store


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A store whose one trial holds the whole zoo of matrices, 200 and more."""
    matrices = zoo()
    views = [MatrixView(name, name) for name in matrices]
    parameters = {name: matrix[None] for name, matrix in matrices.items()}
    (snapshot,), _ = take_snapshot(views, parameters, ("ranks", "spectrum"), None)

    def measured(trial: FakeTrial) -> Buffer:
        buffer = Buffer()
        buffer.scalars(trial.trial_id, 0, snapshot.scalars)
        buffer.spectra(trial.trial_id, 0, snapshot.spectra)
        return buffer

    root = tmp_path_factory.mktemp("bounds") / "s"
    build_store(root, [FakeTrial()], rows=measured)
    return Results.open(root)


def test_every_singular_value_read_back_lies_within_its_bound(results: Results) -> None:
    """|true - value| <= bound for float64 singular values of another LAPACK."""
    rows = results.spectra().to_pylist()
    matrices = zoo()

    assert len(rows) == len(matrices) >= 200
    wrong = []
    for row in rows:
        truth = oracle(matrices[row["subject"]])
        allowed = np.array(row["bounds"], np.float64) + truth.singular_value_error * truth.scale
        distance = np.abs(np.array(row["values"]) - truth.singular_values * truth.scale)
        wrong += [row["subject"]] if (distance > allowed).any() else []
    assert wrong == []


def test_every_metric_read_back_lies_within_its_interval(results: Results) -> None:
    """lower <= true <= upper, up to the oracle's own error."""
    matrices = zoo()
    truths = {name: oracle(matrix) for name, matrix in matrices.items()}

    rows = results.scalars(metric=list(ORACLES)).to_pylist()

    assert len(rows) == len(ORACLES) * len(matrices)
    wrong = []
    for row in rows:
        true, error = truths[row["subject"]].metrics[row["metric"]]
        if not row["lower"] - error <= true <= row["upper"] + error:
            wrong.append((row["subject"], row["metric"]))
    assert wrong == []
