from __future__ import annotations

import math
import posixpath
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import spectral
from orchestrator import curves, files, findings, projection
from orchestrator.curves import Point, choose, curve_key, points_of, summary_points, thin
from orchestrator.rows import Buffer
from orchestrator.schemas import commit_table, seal
from orchestrator.store import Store
from spectral import ScalarRow
from tests.stores import START, SUBJECTS, FakeTrial, build_store, commit_row, loss_value

DECAYS = (0.0, 1.0)
CREATED = 1767323045000  # START in milliseconds
RANK = "effective_rank/normalised"


def trials(*seeds: int) -> list[FakeTrial]:
    return [FakeTrial(seed, {"weight_decay": d, "lr": 0.001}) for seed in seeds for d in DECAYS]


def planned(store: Store) -> projection.Plan:
    return projection.plan(store)


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "metric", "key"),
    [
        ("train", "loss", "train/loss"),
        ("val", "error", "val/error"),
        ("val", "loss/kept_top_0.5", "val/loss_kept_top_0.5"),
        ("layers.0.linear1", RANK, "effective_rank_normalised/layers.0.linear1"),
        (
            "layers.0.attention.query[2]",
            RANK,
            "effective_rank_normalised/layers.0.attention.query:2:",
        ),
        ("a->b", "alignment", "alignment/a:to:b"),
    ],
)
def test_a_key_reads_like_the_name_it_stands_for(subject: str, metric: str, key: str) -> None:
    assert curve_key(subject, metric) == key


subjects = st.text(st.sampled_from("abto0139[]:._-/ u>é"), min_size=1, max_size=12)


@given(subjects, subjects)
def test_two_subjects_never_share_a_key(one: str, other: str) -> None:
    assert (curve_key(one, RANK) == curve_key(other, RANK)) == (one == other)


@given(subjects)
def test_mlflow_accepts_every_key(subject: str) -> None:
    """Its rules: these characters, at most 250 of them, and a path that is its own normal form."""
    for key in (curve_key(subject, RANK), curve_key(subject * 300, RANK)):
        assert re.fullmatch(r"[/A-Za-z0-9_.\- :]+", key)
        assert posixpath.normpath(key) == key
        assert len(key) <= 244


def test_curves_of_vectors_come_after_ranks_and_those_of_heads_last() -> None:
    """Of the many numbers per matrix one stands for each group; agreement with the end does not,
    because a running trial does not know it."""
    series = [
        ("a[0]", RANK),
        ("a", "agreement/initial"),
        ("a->b", "alignment"),
        ("a->b", "alignment/matched"),
        ("a", RANK),
        ("a", "agreement/final"),
        ("a", "stable_rank"),
        ("val", "loss/kept_top_0.5"),
        ("val", "loss"),
    ]

    assert list(choose(series)) == [
        ("val", "loss"),
        ("a", RANK),
        ("a->b", "alignment"),
        ("a", "agreement/initial"),
        ("val", "loss/kept_top_0.5"),
        ("a[0]", RANK),
    ]


def test_pruned_models_of_many_fractions_leave_room_for_the_matrices() -> None:
    kept = [
        (split, f"{metric}/kept_{end}_{tenth / 10}")
        for split in ("train", "val")
        for metric in ("loss", "error")
        for end in ("top", "bottom")
        for tenth in range(1, 10)
    ]
    matrices = [(f"layers.{i}", RANK) for i in range(6)]

    chosen = choose([*kept, *matrices, ("val", "loss")])

    assert set(matrices) <= set(chosen)
    assert len(chosen) == 40


@pytest.mark.parametrize(
    "metric", ["operator_effective_rank/normalised", "update_effective_rank/normalised"]
)
def test_every_measurement_alone_has_a_curve(metric: str) -> None:
    assert ("a", metric) in choose([("a", metric), ("val", "loss")])


def test_no_two_registered_metrics_share_a_section() -> None:
    sections = {curve_key("x", metric) for metric in spectral.METRICS}

    assert len(sections) == len(spectral.METRICS)


def test_losses_come_first_and_heads_are_left_out_first() -> None:
    """40 curves: 4 of the splits, then matrices in natural order, slices of matrices last."""
    matrices = [f"layers.{i}.w" for i in range(34)]
    series = [(s, m) for s in ("val", "train") for m in ("error", "loss")]
    series += [(f"layers.{i}.q[{h}]", RANK) for i in range(2) for h in range(4)]
    series += [(m, metric) for m in matrices[::-1] for metric in (RANK, "norm/frobenius")]

    keys = list(choose(series).values())

    assert keys[:4] == ["train/loss", "val/loss", "train/error", "val/error"]
    assert keys[4:38] == [f"effective_rank_normalised/{m}" for m in matrices]
    assert keys[38:] == [f"effective_rank_normalised/layers.0.q:{h}:" for h in (0, 1)]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=1000))
def test_thinning_keeps_the_ends_and_at_most_200_steps(steps: list[int]) -> None:
    kept = thin(steps)

    assert kept <= set(steps)
    assert len(kept) == min(len(set(steps)), 200)
    assert {min(steps), max(steps)} <= kept


# --- runs -----------------------------------------------------------------------------------------


def test_a_trial_is_a_run_with_its_parameters_and_times(tmp_path: Path) -> None:
    store = build_store(
        tmp_path / "s", [FakeTrial(3, {"weight_decay": 1.0, "positions": "learned"})]
    )

    [run] = planned(store).trials

    assert run.name == "weight_decay=1.0 seed=3"
    assert run.params == {"weight_decay": "1.0", "positions": "learned", "seed": "3"}
    assert (run.status, run.start, run.end) == ("FINISHED", CREATED, CREATED + 10_000)
    assert run.tags["spectral_sweeps.status"] == "completed"
    assert run.tags["spectral_sweeps.trial_id"] == run.key


def test_statuses_become_those_of_mlflow(tmp_path: Path) -> None:
    """A divergence is a result; a pruned trial was ended on purpose; lost trials are to come."""
    statuses = ("completed", "diverged", "pruned", "failed", "lost", "running")
    store = build_store(tmp_path / "s", [FakeTrial(i, status=s) for i, s in enumerate(statuses)])

    plan = planned(store)

    assert [run.status for run in plan.trials] == ["FINISHED", "FINISHED", "KILLED", "FAILED"]
    assert plan.trials[1].tags["mlflow.note.content"] == (
        "Diverged at step 100: values that are not finite are left out"
    )
    assert plan.sweep.status == "KILLED"
    counts = {s: plan.sweep.tags[f"spectral_sweeps.{s}"] for s in ("trials", "failed", "remaining")}
    assert counts == {"trials": "6", "failed": "1", "remaining": "2"}


def test_an_error_is_cut_to_its_end(tmp_path: Path) -> None:
    """MLflow takes 8,000 characters; the last line of a traceback says what went wrong."""
    error = "x" * 20_000 + "ValueError: no"
    store = build_store(tmp_path / "s", [FakeTrial(status="failed", error=error)])

    [run] = planned(store).trials

    assert run.tags["spectral_sweeps.error"] == "…" + error[-7500:]
    assert run.tags["spectral_sweeps.error_kind"] == "ValueError"


def test_a_retried_trial_shows_its_result(tmp_path: Path) -> None:
    failed, good = FakeTrial(status="failed", error="ValueError: no"), FakeTrial()
    store = build_store(tmp_path / "s", [failed])
    row = commit_row(store.root, good, attempt=2)
    files.publish(store.root / "trials" / "000001-000002.arrow", seal(commit_table([row])))

    [run] = planned(store).trials

    assert run.status == "FINISHED"
    assert run.tags["spectral_sweeps.attempt"] == "2"


def test_a_trial_beyond_the_limit_is_in_the_summary_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "MAX_RUNS", 2)
    store = build_store(tmp_path / "s", trials(0, 1))

    plan = planned(store)

    assert [run.name for run in plan.trials] == [
        "weight_decay=0.0 seed=0",
        "weight_decay=1.0 seed=0",
    ]
    assert [run.name for run in plan.summaries] == [
        "weight_decay=0.0 mean of 2",
        "weight_decay=1.0 mean of 2",
    ]
    assert plan.sweep.tags["spectral_sweeps.left_out"] == (
        "only the first 2 of 4 trials have a run of their own; the store holds all of them"
    )


def test_a_single_seed_has_no_summary(tmp_path: Path) -> None:
    assert planned(build_store(tmp_path / "s", trials(0))).summaries == ()


def test_fingerprints_follow_the_content_and_nothing_else(tmp_path: Path) -> None:
    """The same rows elsewhere look the same; another end time, parameter or value does not."""
    [run] = planned(build_store(tmp_path / "a", [FakeTrial()])).trials
    [again] = planned(build_store(tmp_path / "a2" / "a", [FakeTrial()])).trials
    [other] = planned(build_store(tmp_path / "b", [FakeTrial(steps=(0, 1, 10, 99))])).trials

    assert run.fingerprint != other.fingerprint
    changed = [
        replace(run, end=run.end + 1),
        replace(run, params={**run.params, "lr": "2"}),
        replace(run, status="FAILED"),
        replace(run, source="other shards"),
    ]
    assert run.fingerprint not in {one.fingerprint for one in changed}
    assert replace(run, source="") == replace(again, source="")  # shards have names of their own


# --- curves ---------------------------------------------------------------------------------------


def test_curves_come_from_the_rows(tmp_path: Path) -> None:
    trial = FakeTrial(2, {"weight_decay": 0.5})
    store = build_store(tmp_path / "s", [trial])

    points = curves.trial_points(store, planned(store).table)[trial.trial_id]

    found = [(p.step, p.value) for p in points if p.key == "val/loss"]
    assert found == [(step, 2 * loss_value(step, 0.5, 2)) for step in trial.steps]
    assert {p.key for p in points} == {
        *(f"{split}/{metric}" for split in ("train", "val") for metric in ("loss", "error")),
        *(f"effective_rank_normalised/{subject}" for subject in SUBJECTS),
    }


def test_points_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    """MLflow would store infinity as 1.8e308, and draw it."""
    trial = FakeTrial()
    store = build_store(tmp_path / "s", [replace(trial, status="running")])
    buffer = Buffer()
    for step, value in enumerate((1.0, math.inf, math.nan, -math.inf, 2.0)):
        row = ScalarRow("train", "loss", value, None, None, "evaluation", None)
        buffer.scalars(trial.trial_id, step, [row])
    row = {**commit_row(store.root, trial), "shards": buffer.publish(store.root, "0" * 16 + "-1.1")}
    files.publish(store.root / "trials" / "000001-000001.arrow", seal(commit_table([row])))

    points = curves.trial_points(store, planned(store).table)[trial.trial_id]

    assert points == [Point("train/loss", 0, 1.0), Point("train/loss", 4, 2.0)]


def test_live_points_equal_those_of_the_commit(tmp_path: Path) -> None:
    """Thinned alike, so that a run that was shown live need not be written anew."""
    trial = FakeTrial(steps=range(0, 1000, 2))
    store = build_store(tmp_path / "s", [trial])
    rows = store.scan("scalars", store.outcomes()).to_pylist()
    kept = thin(trial.steps)
    live: set[Point] = set()
    for step in trial.steps:
        values = {(r["subject"], r["metric"]): r["value"] for r in rows if r["step"] == step}
        live.update(points_of(values, choose(values), step, kept, kept))

    committed = curves.trial_points(store, planned(store).table)[trial.trial_id]

    assert len(committed) == 6 * 200
    assert live == set(committed)


def test_a_summary_is_the_mean_and_its_t_interval(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s", trials(0, 1, 2))
    plan = planned(store)
    run = next(run for run in plan.summaries if run.name == "weight_decay=1.0 mean of 3")

    points = summary_points(store, plan.table.take(plan.members[run.key]))

    at_10 = {p.key: p.value for p in points if p.step == 10}
    values = [loss_value(10, 1.0, seed) for seed in (0, 1, 2)]
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    # rtol=1e-9: three additions in another order
    assert at_10["train/loss"] == pytest.approx(np.mean(values), rel=1e-9)
    assert at_10["train_lower/loss"] == pytest.approx(np.mean(values) - half, rel=1e-9)
    assert at_10["train_upper/loss"] == pytest.approx(np.mean(values) + half, rel=1e-9)
    assert run.tags["spectral_sweeps.num_seeds"] == "3"
    assert "seed" not in run.params


def test_trials_that_cannot_be_averaged_have_no_mean(tmp_path: Path) -> None:
    one, other = FakeTrial(0), FakeTrial(1, steps=(0, 1, 10, 99))
    store = build_store(tmp_path / "s", [one, other])
    plan = planned(store)

    assert summary_points(store, plan.table) == []
    note, artifacts = findings.collect(store, plan)
    assert set(artifacts) == {"sweep.yaml"}
    assert "No plots and no tables: " in note


# --- what the sweep's own run carries -------------------------------------------------------------


def test_the_sweep_carries_its_file_tables_and_plots(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s", trials(0, 1))

    note, artifacts = findings.collect(store, planned(store))

    assert artifacts["sweep.yaml"] == b"name: s\n"
    assert {Path(path).parent.name for path in artifacts} == {"", "tables", "plots"}
    header, *lines = artifacts["tables/final.csv"].decode().splitlines()
    assert header.startswith("config_id,weight_decay,n_completed,n_diverged,n_pruned,n_generalised")
    assert [line.split(",")[1:3] for line in lines] == [["0.0", "2"], ["1.0", "2"]]
    assert all(c.startswith(b"\x89PNG") for p, c in artifacts.items() if p.startswith("plots/"))
    assert note.splitlines()[0] == ("Sweep `s` of task `modular_addition`: 4 trials (4 completed).")
    assert "| 1.0 | 2 | 0/2 | 1 [1, 1] |" in note.splitlines()


def test_files_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s", trials(0, 1))
    plan = planned(store)

    assert findings.collect(store, plan) == findings.collect(store, plan)


def test_a_timestamp_is_a_function_of_the_step() -> None:
    assert curves.timestamp(curves.milliseconds(START), 7) == CREATED + 7
    assert curves.milliseconds(START + timedelta(microseconds=1999)) == CREATED + 1


def test_a_store_keeps_its_identity_when_it_is_moved(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s", [FakeTrial()])
    before = projection.store_id(store)
    epoch = files.unseal_json(store.root / "epochs" / "000001.json")
    moved = Store.open(store.root.rename(tmp_path / "moved"))

    assert projection.store_id(moved) == before
    changed = files.seal_json({**epoch, "pid": epoch["pid"] + 1})
    (moved.root / "epochs" / "000001.json").write_bytes(changed)
    assert projection.store_id(moved) != before
