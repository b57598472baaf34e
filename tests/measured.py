"""A small store whose trials measured every group, with values that are formulas.

Two matrices, one coupling, twelve indices, pruned models, updates, operators; `value` and `entry`
are the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.rows import Buffer
from spectral import ScalarRow, SpectrumRow
from tests.stores import FakeTrial, build_store

STEPS = (0, 1, 10, 100)
MATRICES = ("layers.0.a", "layers.0.b")
COUPLING = "layers.0.a->layers.0.b"
RANK = "effective_rank/normalised"
SINGULAR = 12
SHARE = "update_share/top_10"
UPDATE_RANK = "update_effective_rank/normalised"
OPERATOR_RANK = "operator_effective_rank/normalised"
CHANCES = {"alignment/chance": 0.25, "agreement/chance": 0.125, f"{SHARE}_chance": 0.0625}


def value(metric: str, subject: str, step: int, decay: float, seed: int) -> float:
    """Every scalar: different for each of what it depends on, within (0, 1)."""
    if metric in CHANCES:
        return CHANCES[metric]
    part = sum(map(ord, metric + subject)) % 17 / 100
    fall = (0.2 + 0.1 * (subject == MATRICES[1])) * decay * math.log10(step + 1) / 2
    return 0.6 + part - fall + 0.01 * seed


def entry(index: int, step: int, decay: float, seed: int) -> float:
    """Every entry of a vector, the index counted from 1; within (0, 1)."""
    return (0.9 - 0.1 * decay - 0.01 * seed - 0.001 * math.log10(step + 1)) / index


def rows(
    of: FakeTrial, groups: Sequence[str], flags: dict[tuple[str, int], str] | None = None
) -> Buffer:
    """What a trial measured of these groups; `flags`: (subject, step) -> flag of its rows."""
    buffer, decay = Buffer(), float(of.params["weight_decay"])

    def scalar(metric: str, subject: str, step: int) -> ScalarRow:
        flag = (flags or {}).get((subject, step))
        number = value(metric, subject, step, decay, of.seed)
        return ScalarRow(subject, metric, number, None, None, "gram64", flag)

    def vector(quantity: str, subject: str, step: int) -> SpectrumRow:
        values = np.array([entry(i + 1, step, decay, of.seed) for i in range(SINGULAR)])
        if quantity != "singular_values" and of.seed == 1 and step == 10:
            values[2] = np.nan  # an entry that is not determined
        flag = (flags or {}).get((subject, step))
        return SpectrumRow(subject, quantity, values, np.full(SINGULAR, 1e-9, "f4"), "gram64", flag)

    for step in of.steps:
        scalars = [scalar(m, s, step) for s in ("train", "val") for m in ("loss", "error")]
        spectra: list[SpectrumRow] = []
        if "ranks" in groups:
            scalars += [scalar(RANK, s, step) for s in MATRICES]
        if "spectrum" in groups:
            spectra += [vector("singular_values", s, step) for s in MATRICES]
        if "alignment" in groups:
            scalars += [scalar(m, COUPLING, step) for m in ("alignment", "alignment/chance")]
            spectra += [vector("alignment/diagonal", COUPLING, step)]
        if "agreement" in groups:
            names = ("agreement/final", "agreement/chance")
            scalars += [scalar(m, s, step) for s in MATRICES for m in names]
            spectra += [vector("agreement/final", s, step) for s in MATRICES]
        if "pruned" in groups and step in (0, 100):
            kept = ("loss/kept_top_0.5", "loss/kept_bottom_0.5")
            scalars += [scalar(m, s, step) for s in ("train", "val") for m in kept]
        if "update" in groups and step:
            names = (SHARE, f"{SHARE}_chance", UPDATE_RANK)
            scalars += [scalar(m, s, step) for s in MATRICES for m in names]
        if "operator" in groups:
            scalars += [scalar(OPERATOR_RANK, s, step) for s in MATRICES]
        buffer.scalars(of.trial_id, step, scalars)
        buffer.spectra(of.trial_id, step, spectra)
    return buffer


ALL = ("ranks", "spectrum", "alignment", "agreement", "pruned", "update", "operator")


def trial(decay: float, seed: int, **more: Any) -> FakeTrial:
    return FakeTrial(seed, {"weight_decay": decay, "width": 8}, **more)


def trials(
    decays: Sequence[float] = (0.0, 1.0), seeds: Sequence[int] = (0, 1), **more: Any
) -> list[FakeTrial]:
    """Every decay with every seed, seed by seed."""
    return [trial(d, s, **more) for s in seeds for d in decays]


def measured(
    root: Path, chosen: Sequence[FakeTrial] | None = None, groups: Sequence[str] = ALL, **more: Any
) -> Path:
    """Write the store; its folder."""
    flags = more.pop("flags", None)
    chosen = trials() if chosen is None else chosen
    build_store(root, chosen, rows=lambda of: rows(of, groups, flags), **more)
    return root
