"""What a trial's identity depends on, and what it does not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spectral
from orchestrator.sweep import Sweep, Trial, parse
from tests.orchestrator.test_sweep_problems import TOY

TOP = "name: toy\ntask: modular_addition\n"


def ids(text: str) -> list[str]:
    return [trial.trial_id for trial in parse(TOP + text).trials()]


def slow_identity(trial: Trial, defaults: dict[str, object], *, with_seed: bool) -> str:
    """The definition, written with json.dumps over the whole content."""
    content = {
        "format": 1,
        "task": trial.task_name,
        "version": 1,
        "method": spectral.METHOD_VERSION,
        "params": {k: v for k, v in trial.params.items() if v != defaults[k]},
        "snapshots": trial.snapshots,
        "evaluations": trial.evaluations,
        "measure": sorted(trial.measure.groups),
        "parents": trial.parents,
    }
    if with_seed:
        content["seed"] = trial.seed
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_the_identity_is_the_hash_of_the_content() -> None:
    """The loader builds the JSON in pieces; the definition is one json.dumps of everything."""
    defaults = dict(next(parse(TOP).trials()).params)
    text = "grid: {lr: [0.1, 1e-9], betas: [[0.9, 0.98]], positions: [learned, sinusoidal]}\n"
    sweep = parse(TOP + text + "seeds: [0, 9]\nevaluations: {every: 30}\nmeasure: [ranks]\n")

    for trial in sweep.trials():
        assert trial.trial_id == slow_identity(trial, defaults, with_seed=True)
        assert trial.config_id == slow_identity(trial, defaults, with_seed=False)


def test_identities_do_not_change_between_versions() -> None:
    """A fixed trial keeps its identity, or every store there is would be orphaned."""
    content = (
        '{"evaluations":[0,5,10],"format":1,"measure":["ranks"],"method":'
        f"{spectral.METHOD_VERSION}"
        ',"params":{"lr":0.003,"steps":10},"parents":[],"seed":4,"snapshots":[0,5,10],'
        '"task":"modular_addition","version":1}'
    )
    text = "base: {lr: 3e-3, steps: 10}\nseeds: [4]\nsnapshots: {at: [5]}\nmeasure: [ranks]\n"

    assert ids(text) == [hashlib.sha256(content.encode()).hexdigest()[:16]]


@pytest.mark.parametrize(
    "change",
    [
        "base: {lr: 0.5}",
        "base: {split_seed: 0}",
        "base: {betas: [0.9, 0.98]}",
        "seeds: [1]",
        "snapshots: {every: 10}",
        "evaluations: {every: 10}",
        "measure: [ranks]",
        "measure: {views: [decoder]}",
    ],
)
def test_content_changes_the_identity(change: str) -> None:
    """What a trial computes or measures is part of it."""
    assert ids(change) != ids("")


@pytest.mark.parametrize(
    "change",
    [
        "resources: {cpus: 4, gpus: 1, group: 1}",
        "tracking: none",
        "storage: elsewhere",
        "checkpoint_seconds: 1",
        "measure: [spectrum, ranks]",
        "measure: {groups: [spectrum, ranks], workspace: 1 GB}",
        "snapshots: {log_spaced: 40}",
        "evaluations: {log_spaced: 40}",
        "evaluations: {at: [0, 1000]}",
        "grid: {lr: [0.001]}",
        "zip: {lr: [1e-3], width: [128]}",
        "base: {weight_decay: -0.0}",
    ],
)
def test_circumstances_do_not_change_the_identity(change: str) -> None:
    """Where it runs, what the sweep is called, how the same steps and values are written."""
    assert ids(change) == ids("")
    assert [t.trial_id for t in parse(TOP.replace("toy", "other")).trials()] == ids("")


def test_another_task_or_version_is_another_trial(tmp_path: Path) -> None:
    """Its name and version are content; the place of its file is not."""
    for name, text in (
        ("a", TOY),
        ("b", TOY),
        ("version", TOY.replace("= ToyConfig", "= ToyConfig\n    version = 2")),
        ("name", TOY.replace("= ToyConfig", "= ToyConfig\n    name = 'other'")),
    ):
        (tmp_path / f"{name}.py").write_text(text)
    first = {
        name: next(parse(f"name: a\ntask: {name}.py:Toy\n", base=tmp_path).trials()).trial_id
        for name in ("a", "b", "version", "name")
    }

    assert first["a"] == first["b"]
    assert len(set(first.values())) == 3


VALUES = {
    "lr": st.floats(1e-6, 10).map(lambda x: float(f"{x:.6g}")) | st.integers(1, 5),
    "weight_decay": st.sampled_from([0, 0.0, 1, 1.0, 0.3]),
    "width": st.sampled_from([4, 8, 128]),
    "positions": st.sampled_from(["learned", "sinusoidal"]),
    "split_seed": st.none() | st.integers(0, 2**63 - 1),
    "betas": st.tuples(st.sampled_from([0, 0.9]), st.sampled_from([0.98, 0.999])).map(list),
    "steps": st.integers(1, 50),
}
ASSIGNMENT = st.fixed_dictionaries({}, optional=VALUES)


@settings(max_examples=40, deadline=None)
@given(ASSIGNMENT, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(values: dict[str, object], random) -> None:
    """Identity is content, never a position in a file."""
    keys = list(values)
    random.shuffle(keys)
    shuffled = {key: values[key] for key in keys}

    assert ids(f"base: {json.dumps(values)}") == ids(f"base: {json.dumps(shuffled)}")


@settings(max_examples=40, deadline=None)
@given(ASSIGNMENT)
def test_ints_for_floats_and_stated_defaults_do_not_matter(values: dict[str, object]) -> None:
    """1 and 1.0 agree where the field is a float; a default may be stated or left out."""
    defaults = next(parse(TOP).trials()).params
    floats = {
        key: float(value) if key in ("lr", "weight_decay") else value
        for key, value in values.items()
    }
    stated = {**defaults, **values}

    assert ids(f"base: {json.dumps(values)}") == ids(f"base: {json.dumps(floats)}")
    assert ids(f"base: {json.dumps(values)}") == ids(f"base: {json.dumps(stated)}")


@settings(max_examples=40, deadline=None)
@given(ASSIGNMENT, ASSIGNMENT, st.integers(0, 5), st.integers(0, 5))
def test_different_content_has_different_identities(
    one: dict[str, object], two: dict[str, object], seed: int, other: int
) -> None:
    """Two trials have one identity exactly if all of their parameters and the seed agree."""
    (first,) = parse(TOP + f"base: {json.dumps(one)}\nseeds: [{seed}]\n").trials()
    (second,) = parse(TOP + f"base: {json.dumps(two)}\nseeds: [{other}]\n").trials()

    same = first.params == second.params
    assert (first.config_id == second.config_id) == same
    assert (first.trial_id == second.trial_id) == (same and seed == other)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.3, 1.0, 3.0]), min_size=1, unique=True),
    st.lists(st.integers(0, 9), min_size=1, unique=True),
    st.data(),
)
def test_extending_a_sweep_keeps_the_old_trials(decays, seeds, data) -> None:
    """New values and new seeds, wherever they are put, leave the identities there were."""
    more = data.draw(st.permutations([*decays, 7.0, 9.0]))
    more_seeds = data.draw(st.permutations([*seeds, 10, 11]))

    def sweep(decays, seeds) -> Sweep:
        return parse(TOP + f"grid: {{weight_decay: {decays}}}\nseeds: {seeds}\n")

    old = {trial.trial_id: trial for trial in sweep(decays, seeds).trials()}
    new = {trial.trial_id: trial for trial in sweep(more, more_seeds).trials()}
    assert len(old) == len(decays) * len(seeds)
    assert {key: new[key] for key in old} == old


def test_every_trial_of_a_sweep_has_its_own_identity() -> None:
    """No two trials share one, and the trials of one configuration share its config_id."""
    sweep = parse(TOP + "grid: {lr: [1, 2, 3], weight_decay: [0, 1]}\nseeds: 4\n")
    trials = list(sweep.trials())

    assert len({trial.trial_id for trial in trials}) == sweep.num_trials == 24
    assert len({trial.config_id for trial in trials}) == sweep.num_configurations == 6
    for trial in trials:
        assert len(trial.trial_id) == len(trial.config_id) == 16
