"""What the spectra cost beside the procedure of the paper, beside training, and beside other tools.

Every network is compared in a process of its own with two threads, ours and the rivals in turn. Run
as a program, this module is one of those processes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import spectra_reference as reference
from benchmarks.bare import answer
from benchmarks.figures import Figure, Report
from benchmarks.spectra_share import CADENCE, EVERY_GROUP, THREADS
from benchmarks.spectra_weights import KINDS, Network, Weights, build, weights
from spectral import Decomposition, SingularVectors, decompose, take_snapshot
from spectral.agreement import singular_vector_agreements
from spectral.alignment import alignments
from spectral.chance import best_matching
from spectral.geometry import conv_geometries
from spectral.operators import conv_operator_spectrum
from spectral.pruning import split_parameters
from spectral.ranks import effective_ranks, mass_rank, normalised, stable_rank

CLAIMS = {
    ("VGG-16", "initial"): 15.0,
    ("VGG-16", "collapsed"): 8.0,
    ("LM", "initial"): 4.0,
    ("LM", "collapsed"): 3.0,
    ("grokking", "initial"): 5.0,
}
"""Least ratio of the reference procedure's time to ours."""

SHARE_CLAIMS = {"cpu": 2.0, "cuda": 1.0}
"""Most per cent of training that the snapshots may cost."""

REPEATS = {"VGG-16": 5, "LM": 3, "grokking": 7}

CALLS = {"VGG-16": 1, "LM": 1, "grokking": 20}
"""Calls per timing: one of the small network's takes milliseconds."""


def measure(*, quick: bool) -> Report:
    """All comparisons, one process after another."""
    figures: list[Figure] = []
    raw: dict[str, Any] = {"compare": {}, "share": {}}
    for name in REPEATS:
        found = _process("benchmarks.spectra", name, *KINDS, quick=quick)
        raw["compare"][name] = found
        for kind in KINDS:
            figures += _compared(name, kind, found[kind]["seconds"])
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for name in CADENCE:
            kinds = ("initial", "collapsed")
            found = _process(
                "benchmarks.spectra_share", name, *kinds, f"--device={device}", quick=quick
            )
            raw["share"][f"{name}, {device}"] = found
            for kind in kinds:
                figures += _shared(name, kind, device, found[kind])
    return Report("spectra", quick, figures, raw=raw)


def ours(
    given: Weights, final: Mapping[str, SingularVectors]
) -> tuple[dict[str, Decomposition], dict[str, Any]]:
    """What the procedure measures, from one decomposition of each matrix.

    It comes with what the procedure does not have: error bounds, chance levels, matched alignment
    and subspace overlaps. Nothing here takes their time out again.
    """
    network = given.network
    views = [*network.views, *network.parts]
    names = [view.name for view in views]
    matrices = [view.read(given.now) for view in views]
    # the default is 100 vectors, or all where there are fewer
    found = dict(zip(names, decompose(matrices, basis=True), strict=True))
    own = [found[view.name] for view in network.views]
    met = [
        (pair, _vectors(found[pair.first.view]), _vectors(found[pair.second.view]))
        for pair in network.couplings
    ]
    compared = [(_vectors(found[view.name]), final[view.name]) for view in network.views]
    measured = {
        "values": [(one.values, one.bounds) for one in own],
        "ranks": [
            [normalised(rank, one) for rank in (effective, stable_rank(one), mass_rank(one))]
            for effective, one in zip(effective_ranks(own), own, strict=True)
        ],
        "alignment": alignments(met),
        "agreement": singular_vector_agreements(compared),
        "pruned": split_parameters(network.views[:-1], given.now, own[:-1], 0.5),
    }
    return found, measured


def _vectors(decomposition: Decomposition) -> SingularVectors:
    assert decomposition.vectors is not None
    return decomposition.vectors


def final_vectors(given: Weights) -> dict[str, SingularVectors]:
    """Of the final checkpoint, float32 as a snapshot keeps them: in no timing."""
    views = given.network.views
    found = decompose([view.read(given.final) for view in views])
    return {view.name: _vectors(one).rounded() for view, one in zip(views, found, strict=True)}


def compare(network: Network, kind: str, *, quick: bool) -> dict[str, Any]:
    """Seconds of ours and of each rival, one timing per repeat."""
    name, given = network.name, weights(network, kind)
    final, final_own = reference.final_factors(given), final_vectors(given)
    now, before = (
        {key: value[None] for key, value in checkpoint.items()}
        for checkpoint in (given.now, given.final)
    )
    views = [*network.views, *network.parts]
    _, state = take_snapshot(views, before, EVERY_GROUP, None, couplings=network.couplings)
    similarity = np.random.default_rng(0).random((10, 10))
    parts: dict[str, Callable[[], object]] = {
        "ours": lambda: ours(given, final_own),
        "reference": lambda: reference.procedure(given, final),
        "svdvals": lambda: reference.values_alone(given),
        "snapshot": lambda: take_snapshot(
            views, now, EVERY_GROUP, state, couplings=network.couplings
        ),
        "matched": lambda: [best_matching(similarity) for _ in network.couplings],
        "ours again": lambda: ours(given, final_own),
    }
    # what a first call sets up is in no timing: threads, memory, simulated chance levels
    found, _ = ours(given, final_own)
    parts["snapshot"]()
    twin = weights(build(name, quick=True), kind)
    reference.procedure(twin, reference.final_factors(twin))
    # no claim is about the last, and three minutes of the procedure are enough
    repeats = 1 if quick or (name, kind) == ("LM", "power law") else REPEATS[name]
    seconds: dict[str, list[float]] = {part: [] for part in parts}
    for _ in range(repeats):
        for part, call in parts.items():
            seconds[part].append(timed(call, 1 if quick else CALLS[name]))
    few = range(min(repeats, 3))
    if name == "VGG-16":
        operators = _operators(given)
        seconds["operator"] = [timed(operators, 1) for _ in few]
    if name != "LM" and (watched := reference.weightwatcher_of(network.module)) is not None:
        seconds["weightwatcher"] = [timed(watched, 1) for _ in few]
    methods = Counter(found[view.name].method for view in views)
    return {"seconds": seconds, "methods": methods, "threads": torch.get_num_threads()}


def _operators(given: Weights) -> Callable[[], object]:
    """Every convolution as an operator on feature maps of 32 x 32 images."""
    module = given.network.module
    grids = conv_geometries(module, lambda: module(torch.zeros(2, 3, 32, 32)))
    return lambda: [conv_operator_spectrum(given.now[key], grid) for key, grid in grids.items()]


def timed(call: Callable[[], object], calls: int) -> float:
    """Seconds per call, mean of several."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


def _compared(name: str, kind: str, seconds: Mapping[str, Sequence[float]]) -> list[Figure]:
    """Ratios per repeat: a rival over the mean of our runs before and after it."""
    own = [
        (before + after) / 2
        for before, after in zip(seconds["ours"], seconds["ours again"], strict=True)
    ]
    label = f"{name}, {kind}"
    # what equal runs of the rival differ by, in units of the ratio
    spread = max(seconds["reference"]) - min(seconds["reference"])
    figures = [
        Figure(
            f"{label}: reference procedure / ours",
            "",
            [rival / mine for rival, mine in zip(seconds["reference"], own, strict=True)],
            least=CLAIMS.get((name, kind)),
            noise=spread / 2 / min(own),
        ),
        Figure(
            f"{label}: singular values alone (svdvals, float32) / ours",
            "",
            [rival / mine for rival, mine in zip(seconds["svdvals"], own, strict=True)],
        ),
        Figure(
            f"{label}: reference procedure / `take_snapshot` of all groups",
            "",
            [
                rival / mine
                for rival, mine in zip(seconds["reference"], seconds["snapshot"], strict=True)
            ],
        ),
        Figure(f"{label}: ours", "ms", [1000 * mine for mine in own]),
        Figure(f"{label}: matched alignment alone", "ms", [1000 * s for s in seconds["matched"]]),
    ]
    if "operator" in seconds:
        figures.append(Figure(f"{label}: all operators", "s", seconds["operator"]))
    if kind == "initial" and "weightwatcher" in seconds:
        figures.append(Figure(f"{label}: WeightWatcher", "s", seconds["weightwatcher"]))
    return figures


def _shared(name: str, kind: str, device: str, found: Mapping[str, Any]) -> list[Figure]:
    """Snapshots as per cent of the training between two of them."""
    training = [CADENCE[name] * step for step in found["step"]]
    label = f"{name}, {kind}, {device.replace('cuda', 'GPU').replace('cpu', 'CPU')}"
    figures = [
        Figure(
            f"{label}: {group} / training",
            "%",
            [100 * own / between for own, between in zip(seconds, training, strict=True)],
            most=SHARE_CLAIMS[device] if group == "all groups" else None,
        )
        for group, seconds in found["groups"].items()
    ]
    return [
        *figures,
        Figure(f"{label}: one optimiser step", "ms", [1e3 * s for s in found["step"]]),
    ]


def _process(module: str, *asked: str, quick: bool) -> dict[str, Any]:
    """The JSON that a process of two threads prints last."""
    count = str(1 if quick else THREADS)
    threads = {f"{library}_NUM_THREADS": count for library in ("OMP", "MKL", "OPENBLAS")}
    all_asked = [*asked, *(["--quick"] if quick else [])]
    found: dict[str, Any] = answer(module, *all_asked, environment={**os.environ, **threads})
    return found


def main() -> None:
    """One network, with weights of each kind; print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=REPEATS)
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1 if given.quick else THREADS)
    network = build(given.name, quick=given.quick)
    found = {kind: compare(network, kind, quick=given.quick) for kind in given.kinds}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
