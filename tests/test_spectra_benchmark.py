"""The rival of `benchmarks/spectra.py` computes the right numbers, by the right procedure."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks import spectra
from benchmarks import spectra_reference as reference
from benchmarks.spectra_share import GROKKING
from benchmarks.spectra_weights import KINDS, Network, build, transformer, vgg, weights
from tasks.modular_addition import ModularAddition

TINY_LM = {"tokens": 40, "width": 24, "heads": 12, "feed_forward": 24, "layers": 12}


def decomposed(matrix: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The truth: numpy's decomposition in float64."""
    return np.linalg.svd(matrix.double().numpy(), full_matrices=False)


@pytest.mark.parametrize(
    ("network", "single", "batched"),
    [(vgg(divisor=32), 66, 0), (transformer("LM", **TINY_LM), 246, 24)],
    ids=["VGG-16", "LM"],
)
def test_the_procedure_decomposes_as_often_as_described(
    network: Network, single: int, batched: int
) -> None:
    """66 for VGG-16's 14 matrices; for the transformer's 50 in 12 layers 246, and 24 batched."""
    solver = reference.Counted()
    of = weights(network, "initial")

    reference.procedure(of, reference.final_factors(of), solver)

    assert (solver.single, solver.batched) == (single, batched)


@pytest.mark.parametrize(
    ("name", "matrices", "pairs", "parameters"),
    [("VGG-16", 14, 13, 14_728_266), ("grokking", 6, 6, 227_058)],
)
def test_the_networks_have_the_shapes_of_the_paper(
    name: str, matrices: int, pairs: int, parameters: int
) -> None:
    """Numbers of matrices, pairs and parameters; heads of query and key are one pair."""
    network = build(name)

    assert len(network.views) == matrices
    assert len({coupling.group or coupling.name for coupling in network.couplings}) == pairs
    assert sum(value.numel() for value in network.module.parameters()) == parameters


def test_the_grokking_network_is_the_one_of_the_task() -> None:
    """Its matrices, the slices that couplings need and the pairs are among the task's own."""
    task = ModularAddition([ModularAddition.Config(**GROKKING)])
    network = build("grokking")

    own = {view.name: view for view in task.views(network.module)}
    declared = task.couplings(network.module)
    pairs = [pair for pair in declared if not (pair.residual or pair.per_head)]

    assert all(own[view.name] == view for view in (*network.views, *network.parts))
    assert network.couplings == pairs


SMALL = pytest.mark.parametrize(
    "network", [vgg(divisor=16), build("grokking", quick=True)], ids=["VGG-16", "grokking"]
)


@SMALL
@pytest.mark.parametrize("kind", KINDS)
def test_the_rival_measures_what_float64_measures(network: Network, kind: str) -> None:
    """Values, ranks and both pruned matrices; float32 keeps 1e-5 of the largest value."""
    of = weights(network, kind)

    found = reference.procedure(of, reference.final_factors(of))
    alone = reference.values_alone(of)

    for view in network.views:
        matrix = view.read(of.now)
        left, values, right = decomposed(matrix)
        size = values[0]
        assert found.values[view.name].numpy() == pytest.approx(values, rel=0, abs=1e-5 * size)
        assert alone[view.name].numpy() == pytest.approx(values, rel=0, abs=1e-5 * size)
        share = values / values.sum()
        effective = math.exp(-(share * np.log(share)).sum()) / len(values)
        # the sum of the tail that float32 gets wrong in each value
        assert found.ranks[view.name][0] == pytest.approx(effective, rel=1e-3)
        assert found.ranks[view.name][1] == pytest.approx(
            (values**2).sum() / size**2 / len(values), rel=1e-4
        )
        assert found.ranks[view.name][2] == (share.cumsum() <= 0.9).sum() / len(values) + 1 / len(
            values
        )
        if view is network.views[-1]:
            assert view.name not in found.kept_top
            continue
        half = math.ceil(len(values) / 2)
        top = left[:, :half] * values[:half] @ right[:half]
        whole = (found.kept_top[view.name] + found.kept_bottom[view.name]).numpy()
        assert found.kept_top[view.name].numpy() == pytest.approx(top, rel=0, abs=1e-4 * size)
        assert whole == pytest.approx(matrix.numpy(), rel=0, abs=1e-5 * size)


LEADING = 8
"""Values 1 / i^2 leave this many vectors gaps of 0.3 % of the largest one, thus float32 1e-3."""


def test_the_rival_aligns_convolutions_at_the_centre_tap() -> None:
    """|<left vector of the earlier, right vector of the later at tap (1, 1)>|, index by index."""
    network = vgg(divisor=16)
    of = weights(network, "power law")

    found = reference.procedure(of, reference.final_factors(of)).alignment

    for coupling, earlier, later in zip(
        network.couplings, network.views, network.views[1:], strict=False
    ):
        left, _, _ = decomposed(earlier.read(of.now))
        _, _, right = decomposed(later.read(of.now))
        taps = {"centre": right[:LEADING], "corner": right[:LEADING]}
        if later is not network.views[-1]:
            kernels = right.reshape(len(right), -1, 3, 3)[:LEADING]
            taps = {"centre": kernels[..., 1, 1], "corner": kernels[..., 0, 0]}
        k = min(LEADING, left.shape[1], len(right))
        expected, other = (np.abs((left.T[:k] * taps[tap][:k]).sum(1)) for tap in taps)
        assert found[coupling.name][:k].numpy() == pytest.approx(expected, rel=0, abs=1e-3)
        if later is not network.views[-1]:  # another tap would be found out
            assert np.abs(expected - other).max() > 5e-3


def test_the_rival_aligns_the_pairs_of_a_transformer() -> None:
    """Six pairs, spelled out: of query and key the mean over heads of left against left vectors."""
    network = build("grokking", quick=True)
    of = weights(network, "power law")

    found = reference.procedure(of, reference.final_factors(of)).alignment

    p = dict(of.now)
    query, key, value = p["layers.0.attention.in_proj_weight"].chunk(3)
    in_proj = decomposed(p["layers.0.attention.in_proj_weight"])
    out_proj = decomposed(p["layers.0.attention.out_proj.weight"])
    linear1, linear2 = (decomposed(p[f"layers.0.linear{i}.weight"]) for i in (1, 2))
    heads = [
        np.abs((decomposed(q)[0] * decomposed(k)[0]).sum(0))
        for q, k in zip(query.chunk(4), key.chunk(4), strict=True)
    ]
    expected = [
        np.abs((decomposed(p["embedding.weight"])[2] * in_proj[2]).sum(1)),
        np.mean(heads, axis=0),
        np.abs((decomposed(value)[0].T * out_proj[2]).sum(1)),
        np.abs((out_proj[0].T * linear1[2]).sum(1)),
        np.abs((linear1[0].T[:32] * linear2[2]).sum(1)),
        np.abs((linear2[0].T * decomposed(p["decoder.weight"])[2]).sum(1)),
    ]
    assert len(found) == len(expected)
    for diagonal, true in zip(found.values(), expected, strict=True):
        k = min(LEADING, len(true))
        assert diagonal[:k].numpy() == pytest.approx(true[:k], rel=0, abs=1e-3)


def test_the_rival_compares_both_vectors_with_the_final_ones() -> None:
    """|<u_j, u*_j> <v_j, v*_j>|; its score is the mean of the first ten."""
    of = weights(build("grokking", quick=True), "power law")

    found = reference.procedure(of, reference.final_factors(of))

    for view in of.network.views:
        left, _, right = decomposed(view.read(of.now))
        last_left, _, last_right = decomposed(view.read(of.final))
        expected = np.abs((left * last_left).sum(0) * (right * last_right).sum(1))
        diagonal = found.agreement[view.name].numpy()
        assert diagonal[:LEADING] == pytest.approx(expected[:LEADING], rel=0, abs=1e-3)
        assert found.scores[view.name] == pytest.approx(diagonal[:10].mean(), rel=1e-6)


@SMALL
def test_both_sides_of_the_comparison_measure_the_same(network: Network) -> None:
    """What is timed against the rival gives its numbers, to what float32 makes of leading ones."""
    of = weights(network, "power law")

    rival = reference.procedure(of, reference.final_factors(of))
    _, measured = spectra.ours(of, spectra.final_vectors(of))

    for view, (values, _), ranks, agreement in zip(
        network.views, measured["values"], measured["ranks"], measured["agreement"], strict=True
    ):
        k = min(LEADING, len(values))
        assert rival.values[view.name].numpy() == pytest.approx(values, rel=0, abs=1e-5 * values[0])
        assert rival.ranks[view.name] == pytest.approx([rank.value for rank in ranks], rel=1e-3)
        assert rival.agreement[view.name][:k].numpy() == pytest.approx(
            agreement.diagonal[:k], rel=0, abs=1e-3
        )
    diagonals: dict[str, list[np.ndarray]] = {}
    for pair, alignment in zip(network.couplings, measured["alignment"], strict=True):
        diagonals.setdefault(pair.group or pair.name, []).append(alignment.diagonal)
    assert list(diagonals) == list(rival.alignment)
    for name, heads in diagonals.items():
        k = min(LEADING, len(heads[0]))
        assert rival.alignment[name][:k].numpy() == pytest.approx(
            np.mean(heads, axis=0)[:k], rel=0, abs=1e-3
        )
    for kept, ours in zip((rival.kept_top, rival.kept_bottom), measured["pruned"], strict=True):
        for view in network.views[:-1]:
            assert view.read(ours).numpy() == pytest.approx(kept[view.name].numpy(), abs=2e-5)
