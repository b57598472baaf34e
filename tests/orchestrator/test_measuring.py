"""A trial with every measurement: what is written, resumed, kept, and finished beside training."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from orchestrator import factors, measuring, parse, run_sweep
from orchestrator.driver import Options
from orchestrator.figures_draw import short
from orchestrator.results import Results
from orchestrator.session import Session
from orchestrator.store import Store
from orchestrator.sweep import Sweep
from orchestrator.trial import Assignment, run_group
from spectral import SingularVectors, singular_vector_agreement
from spectral.metrics import METRICS_OF, QUANTITIES_OF
from tests.orchestrator.contexts import context

TEXT = """
name: every
task: modular_addition
base: {modulus: 11, train_fraction: 0.7, width: 16, heads: 2, feed_forward: 32, lr: 3e-3, steps: 30}
snapshots: {at: [1, 5, 12]}
measure:
  groups: [ranks, spectrum, alignment, agreement, pruned, update]
  pruned: {fractions: [0.25, 0.5], at: [5]}
  keep: KEEP
tracking: none
"""
STEPS = [0, 1, 5, 12, 30]
TESTS = Path(__file__).parents[1]


def sweep_of(folder: Path, keep: str = "none") -> Sweep:
    return parse(TEXT.replace("KEEP", keep) + f"storage: {folder}\n")


def run_one(sweep: Sweep, *, stop_after: int | None = None) -> Store:
    """The sweep's trial as a worker runs it; interrupted after some steps, and continued."""
    assignment = Assignment((next(sweep.trials()),), (1,))
    with Session.claim(sweep) as session:
        told = context(sweep, session)
        if stop_after is not None:
            asked = iter([False] * stop_after + [True])
            stopped = run_group(assignment, told, stop=lambda: next(asked))
            assert stopped.stopped_at == stop_after
        result = run_group(assignment, told)
        assert result.error is None
        session.commit(result.rows)
        session.discard_working_files(assignment.trial_ids)
    return Store.open(sweep.root)


def rows(store: Store, table: str) -> list[dict[str, Any]]:
    """Sorted, and with NaN as text, so that equal tables compare equal."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(entry) for entry in value]
        return "nan" if isinstance(value, float) and math.isnan(value) else value

    found = store.scan(table, store.outcomes()).to_pylist()
    name = "metric" if table == "scalars" else "quantity"
    found.sort(key=lambda row: (row["step"], row["subject"], row[name]))
    return [{key: plain(value) for key, value in row.items()} for row in found]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return run_one(sweep_of(tmp_path_factory.mktemp("all"), "all"))


def test_every_metric_and_quantity_of_every_group_is_written(kept: Store) -> None:
    groups = ("ranks", "alignment", "agreement", "update")
    defined = {metric.name for group in groups for metric in METRICS_OF[group]}
    quantities = {q.name for group in ("spectrum", *groups[1:]) for q in QUANTITIES_OF[group]}
    pruned = {
        f"{metric}/kept_{end}_{fraction}"
        for metric in ("loss", "error")
        for end in ("top", "bottom")
        for fraction in (0.25, 0.5)
    }

    metrics = {row["metric"] for row in rows(kept, "scalars")}

    assert metrics == defined | pruned | {"loss", "error"}
    assert {row["quantity"] for row in rows(kept, "spectra")} == quantities


def test_each_measurement_is_made_at_its_own_steps(kept: Store) -> None:
    def steps(metric: str) -> list[int]:
        return sorted({row["step"] for row in rows(kept, "scalars") if row["metric"] == metric})

    assert steps("effective_rank") == steps("alignment") == STEPS
    assert steps("agreement/initial") == steps("agreement/final") == STEPS
    assert steps("agreement/previous") == steps("update_norm/frobenius") == STEPS[1:]
    assert steps("loss/kept_top_0.5") == [0, 5, 30]


def test_agreement_is_complete_at_both_ends(kept: Store) -> None:
    """Step 0 agrees with step 0, and the last step with the last one."""
    ends = [
        row
        for row in rows(kept, "scalars")
        if (row["metric"], row["step"]) in (("agreement/initial", 0), ("agreement/final", 30))
    ]

    assert len(ends) == 2 * 15
    for row in ends:
        assert row["flag"] is None
        assert row["lower"] <= 1.0 <= row["upper"] + 1e-6
        assert row["value"] == pytest.approx(1.0, abs=1e-6)


def test_agreement_with_the_end_is_that_of_the_vectors_that_were_kept(kept: Store) -> None:
    """Recomputed after the fact, from what lies in factors/."""
    results = Results.open(kept.root)
    [trial_id] = results.trials()["trial_id"].to_pylist()
    found = results.factors(trial_id)

    def vectors(step: int, view: str) -> SingularVectors:
        arrays = found[step, view]
        return SingularVectors(
            arrays.values,
            torch.from_numpy(arrays.left),
            torch.from_numpy(arrays.right),
            arrays.left_errors,
            arrays.right_errors,
            arrays.left_span_errors,
            arrays.right_span_errors,
        )

    checked = 0
    for row in rows(kept, "scalars"):
        if row["metric"] == "agreement/final":
            step, view = row["step"], row["subject"]
            again = singular_vector_agreement(vectors(step, view), vectors(30, view))
            assert row["value"] == pytest.approx(again.score.value, abs=1e-12)
            checked += 1
    assert checked == 15 * len(STEPS)


def test_keeping_all_directions_apart_adds_up_to_the_task(kept: Store) -> None:
    """The top half of a trained model does better than the bottom half, and both are finite."""
    last = {
        (row["subject"], row["metric"]): row["value"]
        for row in rows(kept, "scalars")
        if row["step"] == 30 and row["subject"] in ("train", "val")
    }

    assert last["train", "loss/kept_top_0.5"] < last["train", "loss/kept_bottom_0.5"]
    assert all(math.isfinite(value) for value in last.values())


@pytest.mark.parametrize("stop_after", [3, 12, 29])
def test_a_trial_that_was_interrupted_has_the_same_rows_to_the_bit(
    tmp_path: Path, kept: Store, stop_after: int
) -> None:
    """Also the rows that compare with step 0, with the previous snapshot and with the end."""
    resumed = run_one(sweep_of(tmp_path, "all"), stop_after=stop_after)

    for table in ("scalars", "spectra"):
        assert rows(resumed, table) == rows(kept, table)


@pytest.mark.parametrize(("keep", "steps"), [("none", []), ("final", [30]), ("all", STEPS)])
def test_only_what_is_kept_stays_on_disk(tmp_path: Path, keep: str, steps: list[int]) -> None:
    store = run_one(sweep_of(tmp_path, keep), stop_after=7)

    [shards] = store.outcomes()["shards"].to_pylist()
    named = {shard["path"] for shard in shards if shard["table"] == factors.TABLE}
    folder = store.root / factors.TABLE
    there = {f"{factors.TABLE}/{path.name}" for path in folder.glob("*")}
    assert there == named
    assert list(factors.by_step(shards)) == steps


def test_without_agreement_no_vectors_are_written_until_the_end(tmp_path: Path) -> None:
    text = TEXT.replace("agreement, pruned, ", "").replace("KEEP", "final")
    text = text.replace("  pruned: {fractions: [0.25, 0.5], at: [5]}\n", "")

    store = run_one(parse(f"{text}storage: {tmp_path}\n"))

    [shards] = store.outcomes()["shards"].to_pylist()
    assert list(factors.by_step(shards)) == [30]


@pytest.mark.parametrize("stop_after", [None, 6])
def test_snapshots_finished_beside_training_have_the_same_rows(
    tmp_path: Path, kept: Store, monkeypatch: pytest.MonkeyPatch, stop_after: int | None
) -> None:
    """The path of an accelerator, taken on the CPU: copies, a queue, another thread."""
    monkeypatch.setattr(measuring, "streams_apart", lambda state: True)

    beside = run_one(sweep_of(tmp_path, "all"), stop_after=stop_after)

    for table in ("scalars", "spectra"):
        assert rows(beside, table) == rows(kept, table)


def test_a_diverged_trial_has_no_end_to_agree_with_or_to_keep(tmp_path: Path) -> None:
    text = TEXT.replace("lr: 3e-3", "lr: 1e30").replace("KEEP", "all")

    store = run_one(parse(f"{text}storage: {tmp_path}\n"))

    assert store.outcomes()["status"].to_pylist() == ["diverged"]
    found = rows(store, "scalars")
    assert not [row for row in found if row["metric"] == "agreement/final"]
    assert not list((store.root / factors.TABLE).iterdir())
    last = [row for row in found if row["step"] == max(row["step"] for row in found)]
    assert {row["flag"] for row in last} == {"diverged"}


def test_results_show_the_new_rows(kept: Store) -> None:
    table = Results.open(kept.root).sql(
        "SELECT step, value FROM scalars WHERE metric = 'alignment' "
        "AND subject = 'layers.0.linear1->layers.0.linear2' ORDER BY step"
    )

    assert isinstance(table, pa.Table)
    assert table["step"].to_pylist() == STEPS


HEADS = """
name: heads
task: modular_addition
base: {modulus: 11, width: 16, heads: 2, feed_forward: 32, steps: 1}
measure: {groups: [ranks, alignment], heads: HEADS}
tracking: none
"""


def test_values_meet_the_output_per_head_where_that_is_asked_for(tmp_path: Path) -> None:
    """With it one group more and the columns of `out_proj` that its couplings need; without it no
    row of either. Chance is that of vectors of length 16 / 2."""
    attention = "layers.0.attention"
    found = {}
    for heads in ("false", "true"):
        sweep = parse(HEADS.replace("HEADS", heads) + f"storage: {tmp_path / heads}\n")
        assert run_sweep(sweep, Options(in_process=True)).statuses == {"completed": 1}
        found[heads] = rows(Store.open(sweep.root), "scalars")
    subjects = {heads: {row["subject"] for row in found[heads]} for heads in found}

    members = {f"{attention}.value->out_proj[{h}]" for h in (0, 1)}
    group = f"{attention}.value->out_proj.heads"
    columns = {f"{attention}.out_proj[{h}]" for h in (0, 1)}
    assert subjects["true"] - subjects["false"] == {*members, group, *columns}
    assert subjects["false"] <= subjects["true"]
    own = {(r["subject"], r["metric"]): r["value"] for r in found["true"] if r["step"] == 1}
    for subject in (*members, group):
        chance = own[subject, "alignment/chance"]
        assert chance == pytest.approx(math.sqrt(2 / math.pi / 8), rel=1e-12)
    scores = [own[member, "alignment"] for member in sorted(members)]
    assert own[group, "alignment"] == pytest.approx(sum(scores) / 2, rel=1e-12)
    # the figure of scores has the group beside the others, and no single heads
    axes = Results.open(sweep.root).plot.alignment_scores()
    labels = [label.get_text().partition(" (")[0] for label in axes.get_yticklabels()]
    assert short(group) in labels
    assert len(labels) == 7


def test_an_operator_without_convolutions_is_refused_before_training(tmp_path: Path) -> None:
    text = TEXT.replace("update]", "update, operator]").replace("KEEP", "none")

    with pytest.raises(Exception, match="operator") as caught:
        run_sweep(parse(f"{text}storage: {tmp_path}\n"))

    assert not (tmp_path / "every").exists()
    assert "operator" in str(caught.value)


CONVOLUTIONS = """
name: patches
task: conv_task.py:Patches
base: {lr: 1e-2, steps: 12}
snapshots: {at: [6]}
measure:
  groups: [ranks, spectrum, alignment, agreement, pruned, update, operator]
  vectors: 3
tracking: none
"""


@pytest.fixture
def convolutions(tmp_path: Path) -> Sweep:
    shutil.copy(TESTS / "conv_task.py", tmp_path)
    return parse(f"{CONVOLUTIONS}storage: {tmp_path}/results\n", base=tmp_path)


def test_a_network_of_ones_own_has_every_measurement(convolutions: Sweep) -> None:
    """Convolutions as matrices and as operators on the grids that a forward pass shows; BatchNorm;
    `vectors` above the rank of the smallest matrix."""
    store = run_one(convolutions)

    found = rows(store, "scalars")
    of_operator = {row["subject"] for row in found if row["metric"] == "operator_effective_rank"}
    assert of_operator == {"0", "3"}
    assert {row["subject"] for row in found if row["metric"] == "alignment"} == {
        "0->3",
        "0->3, all taps",
    }
    # at stride 1 the operator's Frobenius norm is that of the kernel times the root of the grid
    norms = {
        row["metric"]: row["value"] for row in found if (row["subject"], row["step"]) == ("0", 0)
    }
    assert norms["operator_norm/frobenius"] == pytest.approx(8 * norms["norm/frobenius"])
    assert norms["operator_norm/spectral"] <= 3 * norms["norm/spectral"] * (1 + 1e-12)
    kept = [row["value"] for row in found if row["metric"] == "error/kept_top_0.5"]
    assert len(kept) == 2 * 3
    assert all(0.0 <= value <= 1.0 for value in kept)


def test_a_network_of_ones_own_resumes_bit_for_bit(convolutions: Sweep, tmp_path: Path) -> None:
    whole = run_one(convolutions)
    again = dataclasses.replace(convolutions, storage=str(tmp_path / "again"))
    interrupted = run_one(again, stop_after=7)

    for table in ("scalars", "spectra"):
        assert rows(interrupted, table) == rows(whole, table)
