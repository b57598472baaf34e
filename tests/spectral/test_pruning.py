"""Cutting singular directions: how many, which, and what is left of a model's parameters."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spectral import Decomposition, MatrixView, decompose, discover
from spectral.pruning import (
    cut_is_determined,
    kept,
    prunable,
    prune_singular_directions,
    pruned_metric,
    pruned_parameters,
    split_parameters,
)

SHAPES = [(8, 8), (5, 12), (12, 5), (1, 6), (6, 1), (7, 30)]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(random(n, n, seed=seed)).Q


def with_basis(matrix: Tensor) -> Decomposition:
    """A decomposition whose basis is that of NumPy's SVD in float64."""
    u, _, vh = np.linalg.svd(matrix.double().numpy())
    basis = torch.from_numpy(u if matrix.shape[0] <= matrix.shape[1] else vh.T.copy())
    return replace(decompose([matrix])[0], basis=basis)


def truncated(matrix: Tensor, indices: range) -> Tensor:
    """The slow obvious version: the sum of some triples of a float64 SVD."""
    u, s, vh = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    total = np.zeros(tuple(matrix.shape))
    for i in indices:
        total += s[i] * np.outer(u[:, i], vh[i])
    return torch.from_numpy(total)


@pytest.mark.parametrize(
    ("fraction", "rank", "top", "bottom"),
    [
        (0.5, 8, 4, 4),
        (0.5, 7, 4, 3),
        (0.5, 1, 1, 0),
        (0.1, 25, 3, 2),
        (0.07, 100, 7, 7),
        (1.0, 6, 6, 6),
        (0.0, 6, 0, 0),
        (1e-6, 6, 1, 0),
    ],
)
def test_the_number_kept_is_the_papers_at_one_half(
    fraction: float, rank: int, top: int, bottom: int
) -> None:
    """ceil(R / 2) at the top and the other R - ceil(R / 2) at the bottom; others likewise."""
    assert (kept(fraction, rank, "top"), kept(fraction, rank, "bottom")) == (top, bottom)


def test_fractions_are_decimal_numbers() -> None:
    """The product of floats, 7.000000000000001, would keep one direction more."""
    assert math.ceil(0.07 * 100) == 8
    assert kept(0.07, 100, "top") == 7
    assert kept(np.float64(0.07), 100, "top") == 7


def test_the_top_share_and_the_bottom_rest_are_all_directions() -> None:
    for percent in range(101):
        for rank in (1, 2, 3, 7, 10, 64, 99, 768):
            top = kept(percent / 100, rank, "top")
            assert top + kept((100 - percent) / 100, rank, "bottom") == rank
            assert 0 <= top <= rank


@pytest.mark.parametrize("fraction", [-0.1, 1.5, math.nan, math.inf])
def test_a_fraction_outside_of_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction") as caught:
        kept(fraction, 4, "top")
    assert str(caught.value) == (
        f"the fraction of directions kept must lie in [0, 1], got {fraction!r}"
    )


def test_an_end_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^the end that is kept must be one of top, bottom; got"):
        kept(0.5, 4, "left")  # type: ignore[arg-type]


def test_pruned_metrics_are_named_for_the_end_and_the_fraction() -> None:
    assert pruned_metric("loss", 0.5, "top") == "loss/kept_top_0.5"
    assert pruned_metric("error", 0.25, "bottom") == "error/kept_bottom_0.25"
    assert pruned_metric("loss", 1, "bottom") == "loss/kept_bottom_1.0"


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_kept_is_a_truncated_svd(shape: tuple[int, int], fraction: float) -> None:
    """1e-13 of the norm in float64."""
    matrix = random(*shape)
    rank = min(shape)
    d = with_basis(matrix)

    top = prune_singular_directions(matrix, d, fraction=fraction)
    bottom = prune_singular_directions(matrix, d, fraction=fraction, end="bottom")

    k, rest = kept(fraction, rank, "top"), kept(fraction, rank, "bottom")
    near = {"rtol": 0.0, "atol": 1e-13 * float(torch.linalg.matrix_norm(matrix))}
    torch.testing.assert_close(top, truncated(matrix, range(k)), **near)
    torch.testing.assert_close(bottom, truncated(matrix, range(rank - rest, rank)), **near)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_kept_top_and_bottom_sum_to_the_whole(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Up to one rounding of each part to the weights' dtype, and 1e-15 of the norm."""
    matrix = random(*shape, dtype=dtype)
    d = with_basis(matrix)
    roundoff = torch.finfo(dtype).eps / 2
    for percent in (0, 10, 30, 50, 70, 100):
        top = prune_singular_directions(matrix, d, fraction=percent / 100)
        rest = (100 - percent) / 100
        bottom = prune_singular_directions(matrix, d, fraction=rest, end="bottom")

        assert top.dtype == bottom.dtype == dtype
        error = (top.double() + bottom.double() - matrix.double()).abs()
        allowed = roundoff * (top.double().abs() + bottom.double().abs())
        assert (error <= allowed + 1e-15 * float(matrix.double().norm())).all()


def test_two_tops_do_not_sum_to_the_whole() -> None:
    """Twin of the sum."""
    matrix = random(8, 8)
    top = prune_singular_directions(matrix, with_basis(matrix), fraction=0.5)
    assert float((top + top - matrix).norm()) > 0.1 * float(matrix.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_keeping_all_directions_is_the_matrix_itself(shape: tuple[int, int]) -> None:
    """And keeping none is zero; no basis is needed for either."""
    matrix = random(*shape, dtype=torch.float32)
    (d,) = decompose([matrix])
    for end in ("top", "bottom"):
        whole = prune_singular_directions(matrix, d, fraction=1.0, end=end)  # type: ignore[arg-type]
        none = prune_singular_directions(matrix, d, fraction=0.0, end=end)  # type: ignore[arg-type]
        assert torch.equal(whole, matrix)
        assert torch.equal(none, torch.zeros_like(matrix))


def test_pruning_turns_with_the_matrix() -> None:
    """Q W P pruned is Q (W pruned) P, and W^T pruned is (W pruned)^T."""
    matrix, q, p = random(6, 9), orthogonal(6, 1), orthogonal(9, 2)
    turned = q @ matrix @ p
    pruned = prune_singular_directions(matrix, with_basis(matrix), fraction=0.5)

    of_turned = prune_singular_directions(turned, with_basis(turned), fraction=0.5)
    torch.testing.assert_close(of_turned, q @ pruned @ p, rtol=0.0, atol=1e-13)
    transposed = matrix.mT
    of_transposed = prune_singular_directions(transposed, with_basis(transposed), fraction=0.5)
    torch.testing.assert_close(of_transposed, pruned.mT, rtol=0.0, atol=1e-13)


def test_pruning_twice_is_pruning_once() -> None:
    """A projection, and on its image the identity."""
    matrix = random(10, 20)
    once = prune_singular_directions(matrix, with_basis(matrix), fraction=0.3)
    twice = prune_singular_directions(once, with_basis(once), fraction=0.3)
    torch.testing.assert_close(twice, once, rtol=0.0, atol=1e-13)


def test_the_top_of_rank_one_and_noise_is_the_rank_one() -> None:
    """The noise has norm 1e-4 and the signal 1: the parts are each other's to that order."""
    left, right = orthogonal(12, 3)[:, :1], orthogonal(20, 4)[:, :1]
    signal = left @ right.mT
    noise = random(12, 20, seed=5)
    noise *= 1e-4 / float(noise.norm())
    matrix = (signal + noise).float()
    d = with_basis(matrix)

    top = prune_singular_directions(matrix, d, fraction=0.05).double()
    bottom = prune_singular_directions(matrix, d, fraction=0.95, end="bottom").double()

    assert float((top - signal).norm()) < 2e-4
    assert 0.5e-4 < float(bottom.norm()) < 1.1e-4


def test_a_small_bottom_has_digits_of_its_own() -> None:
    """sigma = 1 and 1e-6: a product in float32 would leave 1e-7 of the large one in the small."""
    q, p = orthogonal(8, 6), orthogonal(8, 7)
    sigma = torch.tensor([1.0] * 4 + [1e-6] * 4, dtype=torch.float64)
    matrix = (q * sigma) @ p
    d = with_basis(matrix.float())

    bottom = prune_singular_directions(matrix.float(), d, fraction=0.5, end="bottom")

    exact = truncated(matrix.float(), range(4, 8))
    assert float((bottom.double() - exact).norm()) < 1e-7 * float(exact.norm())
    assert d.basis is not None
    basis = d.basis[:, 4:].float()
    narrow = basis @ (basis.mT @ matrix.float())
    assert float((narrow.double() - exact).norm()) > 1e-3 * float(exact.norm())


def test_slabs_of_the_long_side_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in ((7, 50), (50, 7)):
        matrix = random(*shape)
        d = with_basis(matrix)
        whole = prune_singular_directions(matrix, d, fraction=0.4)
        with monkeypatch.context() as patch:
            patch.setattr("spectral.pruning._SLAB_ENTRIES", 60)
            slabs = prune_singular_directions(matrix, d, fraction=0.4)
        torch.testing.assert_close(slabs, whole, rtol=0.0, atol=1e-14)


def test_zero_and_diverged_matrices_stay_as_they_are() -> None:
    zero = torch.zeros(4, 6)
    diverged = torch.ones(4, 6)
    diverged[1, 2] = math.inf
    for matrix in (zero, diverged):
        (d,) = decompose([matrix])
        for end in ("top", "bottom"):
            pruned = prune_singular_directions(matrix, d, fraction=0.5, end=end)  # type: ignore[arg-type]
            assert torch.equal(pruned, matrix)


@pytest.mark.parametrize("method", ["svd64", "gesvd64", "none"])
def test_where_the_eigenvalue_solver_failed_nothing_is_known(method: str) -> None:
    """The ladder's lower rungs have no basis: NaN, and no error that would end a trial."""
    matrix = random(4, 6)
    d = replace(decompose([matrix], vectors=0)[0], method=method)
    assert prune_singular_directions(matrix, d, fraction=0.5).isnan().all()
    assert torch.equal(prune_singular_directions(matrix, d, fraction=1.0), matrix)


def test_a_decomposition_without_a_basis_is_refused() -> None:
    matrix = random(4, 6)
    (d,) = decompose([matrix])
    with pytest.raises(ValueError, match="basis") as caught:
        prune_singular_directions(matrix, d, fraction=0.5)
    assert str(caught.value) == (
        "the decomposition of a (4, 6) matrix has no basis to cut; decompose(..., basis=True) "
        "finds one where min(m, n) is at most 2048"
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_our_own_decomposition_cuts_where_numpys_does(shape: tuple[int, int]) -> None:
    """The gaps of these matrices are above 1e-2 of the norm: 1e-12 of it."""
    matrix = random(*shape, dtype=torch.float32)
    (d,) = decompose([matrix], vectors=0, basis=True)
    for end, fraction in (("top", 0.5), ("bottom", 0.4)):
        ours = prune_singular_directions(matrix.double(), d, fraction=fraction, end=end)  # type: ignore[arg-type]
        numpys = prune_singular_directions(
            matrix.double(),
            with_basis(matrix),
            fraction=fraction,
            end=end,  # type: ignore[arg-type]
        )
        atol = 1e-12 * float(matrix.norm())
        torch.testing.assert_close(ours, numpys, rtol=0.0, atol=atol)


def test_the_decomposition_of_another_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^the matrix is \(4, 6\), but the decomposition of \("):
        prune_singular_directions(random(4, 6), with_basis(random(6, 4)), fraction=0.5)


def spectrum(*sigma: float, long: int = 0) -> Decomposition:
    """Of a matrix with these singular values and no axis in any special direction."""
    n, m = len(sigma), max(long, len(sigma))
    values = torch.tensor(sigma, dtype=torch.float64)
    return decompose([orthogonal(m, 8)[:, :n] * values @ orthogonal(n, 9)])[0]


@pytest.mark.parametrize(
    ("sigma", "determined"),
    [
        ((4.0, 3.0, 2.0, 1.0), [True, True, True, True, True]),
        ((1.0, 1.0, 1.0, 1.0), [True, False, False, False, True]),
        ((2.0, 2.0, 1.0, 1.0), [True, False, True, False, True]),
        ((2.0, 2.0 - 1e-14, 1.0, 0.5), [True, False, True, True, True]),
        # where a cut among zeros falls makes no difference
        ((2.0, 1.0, 0.0, 0.0), [True, True, True, True, True]),
        ((0.0, 0.0, 0.0, 0.0), [True, True, True, True, True]),
    ],
)
def test_a_cut_within_a_cluster_is_not_determined(
    sigma: tuple[float, ...], determined: list[bool]
) -> None:
    d = spectrum(*sigma, long=6)
    assert [cut_is_determined(d, k) for k in range(5)] == determined


def test_a_cluster_of_small_values_matters_only_where_it_is_kept() -> None:
    """Values of 1e-9 beside 1 are known, their directions are not: the bottom half is any."""
    generator = torch.Generator().manual_seed(7)
    sigma = torch.full((64,), 1e-9, dtype=torch.float64)
    sigma[:10] = 1.0
    left, right = (
        torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64))[0]
        for _ in range(2)
    )
    (d,) = decompose([left * sigma @ right.T])

    assert d.method == "deflated64"
    assert (d.bounds[10:] < 1e-12).all()
    assert cut_is_determined(d, 10, "top")
    assert cut_is_determined(d, 10, "bottom")
    assert cut_is_determined(d, 32, "top")
    assert not cut_is_determined(d, 32, "bottom")


def test_nothing_is_known_of_a_cut_without_singular_values() -> None:
    diverged = decompose([torch.full((4, 4), math.nan)])[0]
    assert not cut_is_determined(diverged, 2)
    assert cut_is_determined(diverged, 4)
    with pytest.raises(ValueError, match=r"^a cut after 5 directions: a matrix of rank 4 has 0 to"):
        cut_is_determined(diverged, 5)


class Mixed(nn.Module):
    """One parameter of every layout, and vectors between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.conv = nn.Conv2d(4, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.back = nn.ConvTranspose2d(6, 5, 2)
        self.head = nn.Linear(5, 3)


def group(size: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model and [K, ...] parameters of its names and shapes."""
    model = Mixed()
    return model, {
        name: random(size, *p.shape, seed=i, dtype=torch.float32)
        for i, (name, p) in enumerate(model.named_parameters())
    }


def of_group(views: list[MatrixView], parameters: dict[str, Tensor]) -> list[Decomposition]:
    """Trial after trial, each with all its views."""
    stacks = [view.read(parameters, stacked=True) for view in views]
    return [with_basis(stack[k]) for k in range(len(stacks[0])) for stack in stacks]


def test_every_matrix_but_the_last_is_prunable() -> None:
    """Embeddings are; vectors are not; a single matrix is the last one."""
    model = Mixed()
    names = [view.name for view in prunable(model)]
    assert names == ["embedding", "conv", "back"]
    assert prunable(model, exempt_last=False) == discover(model)
    assert [view.name for view in prunable(model, exempt_last=False)] == [*names, "head"]
    assert prunable(nn.Linear(3, 3)) == []


def test_pruned_parameters_are_pruned_matrices_in_their_stored_shapes() -> None:
    """Against the reshapes of the two kinds of convolution written out, trial by trial."""
    model, parameters = group(2)
    views = prunable(model)
    before = {name: p.clone() for name, p in parameters.items()}

    pruned = pruned_parameters(views, parameters, of_group(views, parameters), 0.5, stacked=True)

    assert list(pruned) == list(parameters)
    assert all(torch.equal(parameters[name], before[name]) for name in parameters)
    changed = {"embedding.weight", "conv.weight", "back.weight"}
    for name, value in pruned.items():
        assert (value.shape, value.dtype) == (parameters[name].shape, parameters[name].dtype)
        assert (value is parameters[name]) == (name not in changed)
    for k in range(2):
        conv = parameters["conv.weight"][k].reshape(6, 36)
        back = torch.cat([parameters["back.weight"][k][:, c].flatten(1).mT for c in range(5)])
        back = back.reshape(5, 4, 6).transpose(1, 2).reshape(5, 24)  # (c_out, c_in * taps)
        expected = truncated(back, range(3)).reshape(5, 6, 2, 2)
        for c in range(6):
            torch.testing.assert_close(
                pruned["back.weight"][k][c].double(), expected[:, c], rtol=0.0, atol=1e-6
            )
        torch.testing.assert_close(
            pruned["conv.weight"][k].double().reshape(6, 36),
            truncated(conv, range(3)),
            rtol=0.0,
            atol=1e-6,
        )


def test_every_layout_comes_back_as_it_was_stored() -> None:
    """With all directions kept, to the bit; with half of them, read again as the pruned matrix."""
    model, parameters = group(3)
    views = prunable(model, exempt_last=False)
    views[0] = replace(views[0], transpose=True)
    decompositions = of_group(views, parameters)

    whole = pruned_parameters(views, parameters, decompositions, 1.0, "bottom", stacked=True)
    half = pruned_parameters(views, parameters, decompositions, 0.5, "bottom", stacked=True)

    for i, view in enumerate(views):
        assert torch.equal(whole[view.parameter], parameters[view.parameter])
        matrices = view.read(half, stacked=True)
        for k, stored in enumerate(view.read(parameters, stacked=True)):
            expected = prune_singular_directions(
                stored, decompositions[k * len(views) + i], fraction=0.5, end="bottom"
            )
            assert torch.equal(matrices[k], expected)


def test_a_trial_is_pruned_alike_alone_and_in_company() -> None:
    """To the bit, as a group of one and without a group dimension."""
    model, parameters = group(3)
    views = prunable(model)
    together = pruned_parameters(views, parameters, of_group(views, parameters), 0.3, stacked=True)
    for k in range(3):
        stack = {name: p[k : k + 1] for name, p in parameters.items()}
        own = of_group(views, stack)
        single = pruned_parameters(views, stack, own, 0.3, stacked=True)
        alone = pruned_parameters(views, {name: p[0] for name, p in stack.items()}, own, 0.3)
        for name, value in together.items():
            assert torch.equal(value[k], single[name][0])
            assert torch.equal(value[k], alone[name])


def test_splitting_gives_both_ends_at_once() -> None:
    model, parameters = group(2)
    views = prunable(model)
    own = of_group(views, parameters)

    top, bottom = split_parameters(views, parameters, own, 0.7, stacked=True)

    expected_top = pruned_parameters(views, parameters, own, 0.7, "top", stacked=True)
    expected_bottom = pruned_parameters(views, parameters, own, 0.3, "bottom", stacked=True)
    assert all(torch.equal(top[name], expected_top[name]) for name in parameters)
    assert all(torch.equal(bottom[name], expected_bottom[name]) for name in parameters)


def test_views_that_cannot_be_put_back_are_refused() -> None:
    parameters = {"w": random(4, 6)}
    d = with_basis(parameters["w"])
    whole = MatrixView("w", "w")
    with pytest.raises(ValueError, match="part") as caught:
        pruned_parameters([MatrixView("half", "w", rows=(0, 2))], parameters, [d], 0.5)
    assert str(caught.value) == (
        "matrix view 'half': directions are cut in whole parameters, but it is of a part of 'w'"
    )
    with pytest.raises(ValueError, match=r"^more than one matrix view is of 'w'$"):
        pruned_parameters([whole, replace(whole, name="v")], parameters, [d, d], 0.5)
    with pytest.raises(ValueError, match=r"^expected one decomposition for each of 1 views of 1 "):
        pruned_parameters([whole], parameters, [d, d], 0.5)


def test_without_views_every_parameter_stays() -> None:
    parameters = {"w": random(4, 6)}
    pruned = pruned_parameters([], parameters, [], 0.5)
    assert pruned == parameters
    assert pruned["w"] is parameters["w"]


def test_pruning_changes_nothing_of_the_callers() -> None:
    """No tensor, no gradient, no generator."""
    matrix = random(9, 5).requires_grad_()
    before, state = matrix.detach().clone(), torch.get_rng_state()
    pruned = prune_singular_directions(matrix, with_basis(matrix.detach()), fraction=0.5)
    assert torch.equal(matrix.detach(), before)
    assert matrix.grad is None
    assert not pruned.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
