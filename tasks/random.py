"""Counter-based random streams: every random number is a function of (stream, seed, step, index).

A 64-bit integer hash takes the place of a generator, so there is no state to save, nothing depends
on the order of the draws, and K trials are drawn at once with the numbers each would draw alone.
With M = SplitMix64's mixing function, G = 0x9E3779B97F4A7C15 and wrapping 64-bit arithmetic:

    stream key  a = M(G * number of the stream)
    trial key   b = M(a + G * (seed + 1))
    step key    c = M(b + G * (step + 1))
    bits        M(c + G * (index + 1)),  index counting from 0 in row-major order

so the bits of one key are the output sequence of SplitMix64 started at that key.
Only integer operations and correctly rounded float64 operations are used: the same bits on a CPU
and on a GPU, for any number of trials. Nothing here reads or sets a global generator.

Source: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

STREAMS: dict[str, int] = {
    "init": 1,
    "split": 2,
    "labels": 3,
    "order": 4,
    "noise": 5,
    "dropout": 6,
}
"""Name of each stream and the number it is keyed by; numbers are never reused or changed."""

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as `value`: torch has no unsigned 64-bit arithmetic."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _signed(0x94D049BB133111EB)


def _logical_shift(z: Tensor, by: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask drops the copies of the sign bit.
    return (z >> by) & ((1 << (64 - by)) - 1)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of the 64-bit integers; int64 in, int64 out."""
    z = (z ^ _logical_shift(z, 30)) * _MULTIPLIER_1
    z = (z ^ _logical_shift(z, 27)) * _MULTIPLIER_2
    return z ^ _logical_shift(z, 31)


class Streams:
    """The random streams of K trials.

    Args:
        seeds: K >= 1 integers, one per trial.
        overrides: per stream, K entries: a seed that this stream uses in place of the trial's own,
            or None. So trials of different seeds can share, say, one split of the data.

    Raises:
        ValueError: no seed, an unknown stream, or an override whose length is not K.
    """

    def __init__(
        self,
        seeds: Sequence[int] | Tensor,
        overrides: Mapping[str, Sequence[int | None]] | None = None,
    ) -> None:
        self.seeds: tuple[int, ...] = tuple(int(seed) for seed in seeds)
        if not self.seeds:
            raise ValueError("Streams needs at least one seed, got none")
        self.overrides: dict[str, tuple[int | None, ...]] = {}
        for name, values in (overrides or {}).items():
            _check_name(name)
            if len(values) != len(self.seeds):
                raise ValueError(
                    f"stream {name!r}: {len(values)} overriding seeds for {len(self.seeds)} trials"
                )
            self.overrides[name] = tuple(values)
        self.device = torch.device("cpu")
        self._keys: dict[str, Tensor] = {}
        self._remembered: dict[Hashable, Any] = {}
        self._order: tuple[tuple[int, int] | None, Tensor] = (None, torch.empty(0))

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, k: int) -> Streams:
        """The streams of trial k alone (K = 1), with exactly the numbers it draws in the group."""
        alone = Streams([self.seeds[k]], {n: [v[k]] for n, v in self.overrides.items()})
        alone.device = self.device
        return alone

    def to(self, device: torch.device | str) -> Streams:
        """The same streams, drawn on another device; the numbers do not change."""
        moved = Streams(self.seeds, self.overrides)
        moved.device = torch.device(device)
        return moved

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, computed once per key and kept as long as these streams.

        For what is a pure function of the streams and is needed at every step, such as a data set.
        The key must name everything else that the value depends on.
        """
        if key not in self._remembered:
            self._remembered[key] = make()
        value: T = self._remembered[key]
        return value

    def bits(self, name: str, step: int | Tensor, shape: Sequence[int]) -> Tensor:
        """64 random bits per element.

        Args:
            name: one of `STREAMS`.
            step: any integer >= 0, or K of them as an int64 tensor [K].
            shape: shape of one trial's draw.

        Returns:
            int64 [K, *shape], every bit pattern equally likely.

        Raises:
            ValueError: an unknown stream.
        """
        count = torch.arange(1, math.prod(shape) + 1, device=self.device) * _GAMMA
        drawn = _mix(self._step_keys(name, step)[:, None] + count)
        return drawn.reshape(len(self), *shape)

    def uniform(
        self,
        name: str,
        step: int | Tensor,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Uniform numbers in [0, 1), [K, *shape].

        The leading 53 (float64) or 24 (any other dtype) of the 64 bits: the float32 number is the
        float64 number of the same key cut off after 24 bits, so it never rounds up to 1.
        """
        digits = 53 if dtype == torch.float64 else 24
        leading = _logical_shift(self.bits(name, step, shape), 64 - digits)
        return leading.to(torch.float64).mul_(2.0**-digits).to(dtype)

    def normal(
        self,
        name: str,
        step: int | Tensor,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Standard normal numbers, [K, *shape]: Box and Muller's transform of one hash each.

        sqrt(-2 ln u) cos(2 pi v) with 32 of the 64 bits for u in (0, 1), odd multiples of 2^-33,
        and 32 for v in [0, 1), so |value| <= sqrt(66 ln 2) = 6.76. ln and cos are summed from their
        series with additions, multiplications and divisions only: library functions differ in the
        last bit between devices.
        """
        drawn = self.bits(name, step, shape)
        u = (_logical_shift(drawn, 32).to(torch.float64) + 0.5).mul_(2.0**-32)
        v = (drawn & 0xFFFFFFFF).to(torch.float64).mul_(2.0**-32)
        return ((_log(u) * -2.0).sqrt_() * _cos_of_turns(v)).to(dtype)

    def permutation(self, name: str, step: int | Tensor, n: int) -> Tensor:
        """A random order of 0..n-1 per trial, int64 [K, n]: the argsort of n hashed keys."""
        return torch.argsort(self.bits(name, step, (n,)), dim=-1, stable=True)

    def examples(self, step: int, n: int, batch_size: int) -> Tensor:
        """Which of n examples a step of mini-batch training takes, int64 [K, batch_size].

        Every epoch of n // batch_size steps goes once through a new permutation of the `order`
        stream, keyed by the epoch; the n % batch_size examples at its end are left out.
        """
        epoch, place = divmod(step, n // batch_size)
        if self._order[0] != (epoch, n):
            self._order = ((epoch, n), self.permutation("order", epoch, n))
        return self._order[1][:, place * batch_size : (place + 1) * batch_size]

    def _step_keys(self, name: str, step: int | Tensor) -> Tensor:
        if name not in self._keys:
            _check_name(name)
            own = self.overrides.get(name, (None,) * len(self))
            seeds = [s if o is None else o for s, o in zip(self.seeds, own, strict=True)]
            seed = torch.tensor([_signed(s) for s in seeds], device=self.device)
            stream = _mix(torch.tensor(_signed(STREAMS[name] * _GAMMA), device=self.device))
            self._keys[name] = _mix(stream + (seed + 1) * _GAMMA)
        if isinstance(step, int):
            return _mix(self._keys[name] + _signed((step + 1) * _GAMMA))
        return _mix(self._keys[name] + (step.to(self.device) + 1) * _GAMMA)


def _check_name(name: str) -> None:
    if name not in STREAMS:
        raise ValueError(f"unknown stream {name!r}; the streams are {', '.join(STREAMS)}")


def _log(u: Tensor) -> Tensor:
    """Natural logarithm of float64 u, 0 < u < 1, to about 1e-15 relative.

    u = m 2^e with m in [1/2, 1); ln m = 2 atanh(s) for s = (m - 1) / (m + 1), |s| <= 1/3. The
    series s + s^3/3 + ... is cut after s^33: the rest is below 1e-17.
    """
    m, e = torch.frexp(u)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    series = torch.full_like(s, 1.0 / 33.0)
    for odd in range(31, 0, -2):
        series = series * square + 1.0 / odd
    return e.to(torch.float64) * math.log(2.0) + s * series * 2.0


def _cos_of_turns(v: Tensor) -> Tensor:
    """cos(2 pi v) of float64 v in [0, 1), to about 1e-15.

    With w = |v - 1/2| in [0, 1/2], cos(2 pi v) = -cos(2 pi w) = sin(2 pi (w - 1/4)), and the sine's
    series at |x| <= pi / 2 is cut after x^23: the rest is below 1e-20.
    """
    x = ((v - 0.5).abs() - 0.25) * (2.0 * math.pi)
    square = x * x
    series = torch.full_like(x, 1.0)
    for odd in range(23, 1, -2):
        series = 1.0 - series * square * (1.0 / (odd * (odd - 1)))
    return x * series


def salt_of(name: str) -> int:
    """The step under which a named parameter draws its initial values: CRC-32 of its name."""
    return zlib.crc32(name.encode())


def uniform_(tensor: Tensor, bound: float, streams: Streams, salt: str) -> None:
    """Fill one trial's tensor in place with U(-bound, bound) from its `init` stream.

    Args:
        tensor: any shape, floating point.
        bound: half width of the interval.
        streams: of one trial.
        salt: the parameter's name: every parameter draws its own numbers, wherever it stands.
    """
    assert len(streams) == 1, "a model belongs to one trial"
    drawn = streams.uniform("init", salt_of(salt), tensor.shape, torch.float64)[0]
    with torch.no_grad():
        tensor.copy_((drawn * 2.0 - 1.0) * bound)


def normal_(tensor: Tensor, sd: float, streams: Streams, salt: str) -> None:
    """Fill one trial's tensor in place with N(0, sd²) from its `init` stream; see `uniform_`."""
    assert len(streams) == 1, "a model belongs to one trial"
    drawn = streams.normal("init", salt_of(salt), tensor.shape, torch.float64)[0]
    with torch.no_grad():
        tensor.copy_(drawn * sd)


def initialise_(module: M, streams: Streams, prefix: str = "") -> M:
    """Fill every parameter of a model in place from one trial's `init` stream.

    The distributions are torch's defaults: linear and convolution weights and biases
    U(±1/sqrt(fan_in)), embeddings N(0, 1) with a zero padding row, recurrent layers
    U(±1/sqrt(hidden)), norms one and zero. A module with a method `initialise_(streams, prefix)`
    fills itself and everything below it. Buffers stay as they were constructed.

    Args:
        module: the model, or a part of it.
        streams: of one trial.
        prefix: the part's name in the model with a trailing dot; a parameter's full name decides
            its numbers, so equal layers differ.

    Returns:
        The module itself.

    Raises:
        TypeError: a module holds parameters and none of the above says how to fill them.
    """
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        bound = 1.0 / math.sqrt(module.weight[0].numel())
        for key, parameter in own.items():
            uniform_(parameter, bound, streams, prefix + key)
    elif isinstance(module, nn.RNNBase):
        for key, parameter in own.items():
            uniform_(parameter, module.hidden_size**-0.5, streams, prefix + key)
    elif isinstance(module, nn.Embedding):
        normal_(module.weight, 1.0, streams, prefix + "weight")
        if module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
    elif isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm):
        for key, parameter in own.items():
            nn.init.constant_(parameter, 1.0 if key == "weight" else 0.0)
    elif own:
        raise TypeError(
            f"no rule for the initial values of {', '.join(prefix + key for key in own)} "
            f"({type(module).__name__}): give the class a method initialise_(streams, prefix)"
        )
    for name, child in module.named_children():
        if callable(method := getattr(child, "initialise_", None)):
            method(streams, f"{prefix}{name}.")
        else:
            initialise_(child, streams, f"{prefix}{name}.")
    return module
