"""Random streams: the hash, what is drawn from it, and models filled from it."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from tasks.random import STREAMS, Streams, initialise_, normal_, salt_of, uniform_

# A statistical test below fails by chance with this probability; the seeds are fixed, so once it
# has passed it passes for good.
ALPHA = 1e-3

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def slow_mix(z):
    """SplitMix64's finaliser on Python's unbounded integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def slow_bits(name, seed, step, index):
    """One element of `Streams.bits`, as its module documents it, as an unsigned integer."""
    key = slow_mix((GAMMA * STREAMS[name]) & MASK)
    key = slow_mix((key + GAMMA * (seed + 1)) & MASK)
    key = slow_mix((key + GAMMA * (step + 1)) & MASK)
    return slow_mix((key + GAMMA * (index + 1)) & MASK)


def unsigned(bits):
    return [int(b) & MASK for b in bits.flatten()]


def test_the_mixing_function_is_splitmix64():
    """First outputs of the published generator for seed 1234567 (its own test vector)."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]

    assert [slow_mix((1234567 + GAMMA * i) & MASK) for i in range(1, 6)] == expected


@pytest.mark.parametrize("name", STREAMS)
def test_bits_agree_with_unbounded_integers_bit_for_bit(name):
    """int64 wrapping arithmetic with masked shifts is arithmetic modulo 2^64."""
    seeds, step = [0, 1, 12345, 2**62 + 3, 2**63 - 1], 7

    drawn = Streams(seeds).bits(name, step, (3, 2))

    for k, seed in enumerate(seeds):
        assert unsigned(drawn[k]) == [slow_bits(name, seed, step, i) for i in range(6)]


def test_steps_may_differ_between_trials():
    streams = Streams([4, 5])

    drawn = streams.bits("noise", torch.tensor([10, 20]), (5,))

    assert torch.equal(drawn[0], streams.bits("noise", 10, (5,))[0])
    assert torch.equal(drawn[1], streams.bits("noise", 20, (5,))[1])


@pytest.mark.parametrize("draw", ["bits", "uniform", "normal", "permutation"])
def test_a_trial_draws_the_same_alone_and_in_company(draw):
    seeds = [3, 1, 4, 1, 5]
    streams = Streams(seeds, {"noise": [None, 9, None, None, 9]})
    size = 13 if draw == "permutation" else (13, 3)

    together = getattr(streams, draw)("noise", 2, size)

    assert together.shape[0] == len(streams) == 5
    for k in range(5):
        assert torch.equal(together[k], getattr(streams[k], draw)("noise", 2, size)[0])
    assert torch.equal(together[1], together[4])
    assert not torch.equal(together[1], together[3])


def test_draws_ignore_and_leave_alone_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = Streams([0]).normal("noise", 0, (8,))

    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(Streams([0]).normal("noise", 0, (8,)), first)


def chi_square(counts):
    """p-value of the hypothesis that all cells are equally likely."""
    return stats.chisquare(np.bincount(counts.numpy().ravel(), minlength=256)).pvalue


@pytest.mark.parametrize("byte", range(8))
def test_every_byte_of_the_hash_is_uniform(byte):
    drawn = Streams([0, 1]).bits("noise", 0, (1 << 15,))

    assert ALPHA / 8 < chi_square((drawn >> (8 * byte)) & 255) < 1 - ALPHA / 8


@pytest.mark.parametrize("varied", ["stream", "seed", "step", "index"])
def test_neighbouring_keys_are_independent(varied):
    """The top nibbles of two draws whose keys differ in one part fill a 16 x 16 table evenly."""
    n = 1 << 14
    if varied == "stream":
        streams = Streams([0])
        pair = streams.bits("noise", 0, (n,))[0], streams.bits("order", 0, (n,))[0]
    elif varied == "seed":
        first, second = Streams([0, 1]).bits("noise", 0, (n,))
        pair = first, second
    elif varied == "step":
        streams = Streams(range(n))
        pair = streams.bits("noise", 0, (1,))[:, 0], streams.bits("noise", 1, (1,))[:, 0]
    else:
        drawn = Streams(range(n)).bits("noise", 0, (2,))
        pair = drawn[:, 0], drawn[:, 1]

    nibbles = [(bits >> 60) & 15 for bits in pair]

    assert ALPHA / 4 < chi_square(nibbles[0] * 16 + nibbles[1]) < 1 - ALPHA / 4


@pytest.mark.parametrize("part", ["seed", "step"])
def test_one_changed_bit_of_a_key_changes_every_output_bit_half_the_time(part):
    """Avalanche. n = 4096 keys: a proportion has sd 1/128; 64 x 20 proportions stay within 5 sd."""
    n = 4096
    seeds = torch.arange(n) * 1_000_003
    for flipped in range(0, 60, 3):
        changed = seeds ^ (1 << flipped)
        if part == "seed":
            a = Streams(seeds).bits("noise", 0, (1,))
            b = Streams(changed).bits("noise", 0, (1,))
        else:
            streams = Streams([0] * n)
            a, b = streams.bits("noise", seeds, (1,)), streams.bits("noise", changed, (1,))
        differing = (a ^ b)[:, 0]

        rates = torch.stack([((differing >> bit) & 1).double().mean() for bit in range(64)])
        assert (rates - 0.5).abs().max() < 5 / 128


def test_uniform_numbers_lie_in_the_unit_interval_and_are_uniform():
    drawn = Streams([0]).uniform("noise", 0, (20_000,), torch.float64)[0].numpy()

    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    assert ALPHA < stats.kstest(drawn, "uniform").pvalue < 1 - ALPHA


def test_a_float32_uniform_number_is_the_float64_one_cut_off():
    """Cut off after 24 bits, never rounded up: it stays below 1."""
    streams = Streams([0, 1])
    narrow = streams.uniform("noise", 0, (1000,))
    wide = streams.uniform("noise", 0, (1000,), torch.float64)

    assert narrow.dtype == torch.float32
    assert torch.equal(narrow.double(), (wide * 2**24).floor() / 2**24)


def test_normal_numbers_are_normal():
    drawn = Streams([0]).normal("noise", 0, (20_000,), torch.float64)[0].numpy()

    assert ALPHA < stats.kstest(drawn, "norm").pvalue < 1 - ALPHA


def test_normal_numbers_agree_with_the_library_functions():
    """Our ln and cos against Python's. 1e-13: sqrt(-2 ln u) cos is ill-conditioned near u = 1."""
    streams = Streams([0])
    drawn = streams.normal("noise", 3, (2000,), torch.float64)[0]

    for value, bits in zip(
        drawn.tolist(), unsigned(streams.bits("noise", 3, (2000,))), strict=True
    ):
        u, v = ((bits >> 32) + 0.5) / 2**32, (bits & 0xFFFFFFFF) / 2**32
        expected = math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v)
        assert value == pytest.approx(expected, rel=1e-13, abs=1e-13)


def test_the_extreme_hashes_give_finite_normal_numbers(monkeypatch):
    """u lies strictly inside (0, 1): its logarithm is finite and negative, the root real."""
    extremes = torch.tensor([[-1, 0, 1 << 31, -(1 << 32)]])
    largest, smallest = math.sqrt(66 * math.log(2)), math.sqrt(-2 * math.log1p(-(2**-33)))
    monkeypatch.setattr(Streams, "bits", lambda *_: extremes)
    drawn = Streams([0]).normal("noise", 0, (4,), torch.float64)[0]

    assert drawn.tolist() == pytest.approx([smallest, largest, -largest, smallest], rel=1e-6)


def test_permutations_are_permutations_that_differ_by_seed_and_step():
    streams = Streams([0, 1])
    first, second = streams.permutation("split", 0, 101), streams.permutation("split", 1, 101)

    for order in (*first, *second):
        assert torch.equal(order.sort().values, torch.arange(101))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], second[0])


def test_every_permutation_is_equally_likely():
    """All 24 orders of four examples, over 24,000 trials."""
    orders = Streams(range(24_000)).permutation("order", 0, 4)
    codes = (orders * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = torch.unique(codes, return_counts=True)[1]

    assert len(counts) == 24
    assert ALPHA < stats.chisquare(counts.numpy()).pvalue < 1 - ALPHA


def test_an_epoch_of_batches_visits_every_example_once_and_drops_the_rest():
    """7 examples in batches of 2: three steps an epoch, one example left out."""
    streams = Streams([0, 1])
    steps = [streams.examples(step, 7, 2) for step in range(6)]

    for k in range(2):
        for epoch in (0, 1):
            seen = torch.cat([batch[k] for batch in steps[3 * epoch : 3 * epoch + 3]]).tolist()
            assert seen == streams.permutation("order", epoch, 7)[k, :6].tolist()
            assert len(set(seen)) == 6


def test_what_is_remembered_is_made_once():
    streams = Streams([0])
    made = []

    for _ in range(3):
        assert streams.remember("answer", lambda: made.append(1) or 42) == 42
    assert made == [1]


def test_streams_refuse_what_they_cannot_key():
    with pytest.raises(ValueError, match=r"^Streams needs at least one seed, got none$"):
        Streams([])
    names = "init, split, labels, order, noise, dropout"
    with pytest.raises(ValueError, match=f"^unknown stream 'data'; the streams are {names}$"):
        Streams([0], {"data": [1]})
    with pytest.raises(ValueError, match=f"^unknown stream 'data'; the streams are {names}$"):
        Streams([0]).bits("data", 0, (1,))
    with pytest.raises(ValueError, match=r"^stream 'split': 1 overriding seeds for 2 trials$"):
        Streams([0, 1], {"split": [1]})


def test_the_same_streams_can_be_drawn_on_another_device():
    """`meta` stands in for a GPU: shapes and device only."""
    streams = Streams([0, 1], {"noise": [5, None]}).to("meta")

    assert streams[1].device.type == streams.device.type == "meta"
    assert streams.overrides == {"noise": (5, None)}


@pytest.mark.gpu
def test_a_gpu_draws_the_same_bits():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    here = Streams([0, 1, 2])
    there = here.to("cuda")

    for draw, size in (("bits", (999,)), ("uniform", (999,)), ("normal", (999,))):
        assert torch.equal(
            getattr(here, draw)("noise", 5, size), getattr(there, draw)("noise", 5, size).cpu()
        )
    assert torch.equal(here.permutation("order", 0, 999), there.permutation("order", 0, 999).cpu())


def test_initial_values_have_torchs_distributions():
    """Half width 1/sqrt(fan_in) for linear and convolution layers, sd 1 for embeddings."""
    layers = {
        "linear": (nn.Linear(25, 400), 0.2),
        "convolution": (nn.Conv2d(4, 300, 5), 0.1),
        "transposed": (nn.ConvTranspose2d(300, 4, 5), 0.1),
        "recurrent": (nn.LSTM(7, 25), 0.2),
    }
    for name, (layer, bound) in layers.items():
        initialise_(layer, Streams([0]), f"{name}.")
        for parameter in layer.parameters():
            assert parameter.abs().max() <= bound
            if parameter.numel() > 1000:
                scaled = (parameter.detach().double().flatten() / bound + 1) / 2
                assert ALPHA < stats.kstest(scaled.numpy(), "uniform").pvalue < 1 - ALPHA

    embedding = initialise_(nn.Embedding(1000, 20, padding_idx=3), Streams([0])).weight.detach()
    assert (embedding[3] == 0).all()
    rest = torch.cat([embedding[:3], embedding[4:]]).double().flatten()
    assert ALPHA < stats.kstest(rest.numpy(), "norm").pvalue < 1 - ALPHA

    norms = nn.Sequential(nn.LayerNorm(3), nn.BatchNorm1d(3), nn.GroupNorm(1, 3))
    nn.init.constant_(norms[0].bias, 7.0)
    initialise_(norms, Streams([0]))
    assert {n: set(p.tolist()) for n, p in norms.named_parameters()} == {
        f"{i}.{kind}": {value} for i in range(3) for kind, value in (("weight", 1.0), ("bias", 0.0))
    }


def test_initial_values_depend_on_the_seed_and_the_name_only():
    """Equal layers of one model differ; building it again gives the same bits."""

    def model():
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    first, again, other = (initialise_(model(), Streams([seed])) for seed in (0, 0, 1))

    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, first[1].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_a_parameter_without_a_rule_is_an_error_that_names_it():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

    with pytest.raises(TypeError) as caught:
        initialise_(nn.Sequential(nn.Linear(1, 1), Scale()), Streams([0]))
    assert str(caught.value) == (
        "no rule for the initial values of 1.gain (Scale): give the class a method "
        "initialise_(streams, prefix)"
    )


def test_a_module_may_fill_itself():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3))

        def initialise_(self, streams, prefix):
            normal_(self.gain, 2.0, streams, prefix + "gain")

    model = initialise_(nn.Sequential(Scale()), Streams([7]))

    expected = 2.0 * Streams([7]).normal("init", salt_of("0.gain"), (3,), torch.float64)[0]
    assert torch.equal(model[0].gain.detach(), expected.float())


def test_uniform_fills_in_place_between_the_bounds():
    tensor = torch.zeros(1000)
    uniform_(tensor, 0.5, Streams([0]), "name")

    assert -0.5 <= tensor.min() < -0.49
    assert 0.49 < tensor.max() <= 0.5
