"""A trial's rows depend on its weights alone, and measuring changes nothing."""

import hashlib
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from spectral import MatrixView, take_snapshot
from tests.spectral.groups import MEASURE, VIEWS, companions, content, group


def test_a_trial_has_the_same_rows_in_any_company() -> None:
    """Bitwise, for groups of 1 to 16, in another order, and beside diverged and zero trials."""
    parameters = group(16)
    reference, _ = take_snapshot(VIEWS, parameters, MEASURE, None)
    expected = [content(snapshot) for snapshot in reference]

    for size in range(1, 17):
        chosen = list(range(16 - size, 16))[::-1]
        snapshots, _ = take_snapshot(VIEWS, companions(parameters, chosen), MEASURE, None)
        assert [content(s) for s in snapshots] == [expected[k] for k in chosen], size

    sick = companions(parameters, [3, 0, 5, 9])
    for value in sick.values():
        value[1] = math.nan
        value[2] = 0.0
    snapshots, _ = take_snapshot(VIEWS, sick, MEASURE, None)
    assert content(snapshots[0]) == expected[3]
    assert content(snapshots[3]) == expected[9]
    assert content(snapshots[1]) != expected[0]


def test_one_changed_bit_would_be_noticed() -> None:
    """Twin: the comparison is of bits, and of one trial only."""
    parameters = group(2)
    expected, _ = take_snapshot(VIEWS, parameters, MEASURE, None)
    weight = parameters["embedding"]
    weight[1, 0, 0] = torch.nextafter(weight[1, 0, 0], torch.tensor(math.inf))

    snapshots, _ = take_snapshot(VIEWS, parameters, MEASURE, None)

    assert content(snapshots[0]) == content(expected[0])
    assert content(snapshots[1]) != content(expected[1])


def test_rows_do_not_depend_on_where_in_memory_a_trial_lies() -> None:
    """Parameters are slices of one flat [K, P] buffer when a group trains."""
    parameters = group(3)
    sizes = {name: value[0].numel() for name, value in parameters.items()}
    flat = torch.cat([parameters[name].flatten(1) for name in sizes], dim=1)
    pieces = flat.split(list(sizes.values()), dim=1)
    sliced = {
        name: piece.unflatten(1, parameters[name].shape[1:])
        for name, piece in zip(sizes, pieces, strict=True)
    }

    expected, _ = take_snapshot(VIEWS, parameters, MEASURE, None)
    snapshots, _ = take_snapshot(VIEWS, sliced, MEASURE, None)

    assert [content(s) for s in snapshots] == [content(s) for s in expected]


def digests() -> list[str]:
    """One trial's rows beside 0, 4 and 15 others."""
    parameters = group(16)
    result = []
    for size in (1, 5, 16):
        chosen = list(range(size))
        snapshots, _ = take_snapshot(VIEWS, companions(parameters, chosen), MEASURE, None)
        result.append(hashlib.sha256(repr(content(snapshots[0])).encode()).hexdigest())
    return result


_SCRIPT = """
import torch
torch.set_num_threads(1)
from tests.spectral.test_independence import digests
print(" ".join(digests()))
"""


def test_another_process_finds_the_same_rows() -> None:
    """With the settings of the workers, here set by the root conftest before torch is imported."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )

    assert len(set(digests() + done.stdout.split())) == 1


def test_inputs_and_generators_are_left_alone() -> None:
    parameters = {name: value.requires_grad_() for name, value in group(2).items()}
    (parameters["conv"].square().sum()).backward()
    before = {name: value.detach().clone() for name, value in parameters.items()}
    gradient = parameters["conv"].grad
    assert gradient is not None
    gradient_before = gradient.clone()
    _, state = take_snapshot(VIEWS, parameters, MEASURE, None)
    state_before = {name: value.clone() for name, value in state.items()}
    generators = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))

    take_snapshot(VIEWS, parameters, MEASURE, state)

    for name, value in parameters.items():
        assert torch.equal(value.detach(), before[name])
        assert value.requires_grad
        assert value.is_leaf
    assert parameters["conv"].grad is gradient
    assert torch.equal(gradient, gradient_before)
    assert all(parameters[name].grad is None for name in parameters if name != "conv")
    assert state.keys() == state_before.keys()
    assert all(torch.equal(state[name], state_before[name]) for name in state)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (random.getstate(), str(np.random.get_state())) == generators[1:]


def test_a_float64_parameter_is_left_alone() -> None:
    """Twin of the above for the dtype that needs no conversion, hence no copy."""
    weight = torch.randn(1, 9, 5, dtype=torch.float64) * 100.0
    before = weight.clone()

    take_snapshot([MatrixView("w", "w")], {"w": weight}, MEASURE, None)

    assert torch.equal(weight, before)
