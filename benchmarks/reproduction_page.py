"""docs/reproduction.md and its images, from the results of the small twins."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import reproduction_facts as facts
from benchmarks import reproduction_runs as runs
from benchmarks import reproduction_summary as judged
from benchmarks.bare import REPOSITORY
from benchmarks.reproduction_counts import Table
from benchmarks.reproduction_summary import BASES, DECAYS
from orchestrator import Results

PAGE = REPOSITORY / "docs" / "reproduction.md"
IMAGES = REPOSITORY / "docs" / "images"

PANELS = {
    "image_classification_small": "layers.11.conv",
    "image_generation_small": "conv3",
    "speech_recognition_small": "weight_ih_l1",
    "language_modeling_small": "layers.1.linear1",
}
"""The matrix that the figures of agreement show: the paper's, as far as the twin has it."""
PAIRS = {
    "image_classification_decay_small": "layers.11.conv->layers.12.conv",
    "image_generation_decay_small": "conv3->conv4",
    "speech_recognition_decay_small": "weight_ih_l0->weight_ih_l1",
    "language_modeling_decay_small": "layers.1.linear1->layers.1.linear2",
}
"""The pair that the figures of alignment show: likewise."""

HEAD = """# What the small twins show

Each finding of Yunis et al. (arXiv 2408.11804) that can be asked of a laptop, asked of the small
twins in [sweeps](../sweeps): five seeds each, every number and verdict computed from the results by
`benchmarks/reproduction_facts.py` and `benchmarks/reproduction_summary.py`. The twins are other
networks on other data than the paper's. How they were chosen:

- Modular addition: modulus, share of the pairs, learning rate and decays were picked because with
  them networks grok, while their ranks fall, within minutes; the scale of the learned positions by
  the validation error without decay. That G1 and G2 appear is therefore no independent evidence.
- The others: models, learning rates and steps were picked by whether they train within minutes.
- The slingshot twin has the paper's sines and cosines as positions, the other modular additions
  learned ones, so the two differ in more than LayerNorm.

So this page says what these small networks do, not whether the paper is right. The full-size sweeps
have not been run.

```sh
python -m benchmarks.reproduction        # run the twins (about {minutes} minutes), write this page
sweep report results/reproduction/NAME   # every figure of one of them
```

Ranks are normalised effective ranks, exp(entropy) / R. "0.5 (0.4 to 0.6)" is the median and the
range over seeds. Parts of matrices (heads, thirds of `in_proj`) are left out. Vectors that the
weights do not determine have no agreement. Seconds are from the first trial's start to the last
one's end on two cores.

{machine}

| twin | trials | seconds |
|---|---|---|
{times}

## Summary

{rules}
{summary}
"""


def write(results: Path, twins: Sequence[str]) -> Path:
    """Write the page, with a section for each finding whose twins have results."""
    opened = {n: Results.open(results / n) for n in twins if (results / n).is_dir()}
    times = runs.times(opened)
    minutes = round(sum(seconds for _, _, seconds in times) / 60)
    rows = "\n".join(f"| `{name}` | {trials} | {s:.0f} |" for name, trials, s in times)
    summary = judged.summary(opened)
    head = HEAD.format(
        minutes=minutes,
        times=rows,
        machine=runs.machine(opened),
        rules=judged.RULES,
        summary=summary,
    )
    parts = [head, *_grokking(opened), *_falling(opened), *_pruning(opened)]
    parts += [*_settling(opened), *_decay(opened), *_labels(opened)]
    PAGE.write_text("\n".join(parts).rstrip() + "\n")
    return PAGE


def _grokking(opened: dict[str, Results]) -> list[str]:
    decay = opened.get("modular_addition_decay_small")
    grokking = opened.get("modular_addition_grokking_small")
    most = opened.get("modular_addition_most_data_small")
    slingshot = opened.get("modular_addition_slingshot_small")
    if decay is None:
        return []
    parts = [
        "## G1, G2: grokking with and without weight decay\n",
        "The paper: with decay 1 the training error is zero early, the validation error drops",
        "sharply later, and the rank of every matrix falls most around that drop; without decay",
        "neither happens.",
        f"A set is fitted at the first evaluation with an error below {facts.LEARNED}.\n",
        str(facts.errors(decay, ["weight_decay"])) + "\n",
        "Where each falls most from one evenly spaced snapshot to the next, once the training set",
        "is fitted; the denser snapshots at the start are left out, so that all spans are equal.",
        "The step is that at which the drop ends. The last column: see the rule of G1.\n",
        str(facts.steepest_table(decay, "weight_decay")) + "\n",
        "Rank at the end, by weight decay:\n",
        str(facts.by_level(decay, facts.RANK, "weight_decay").table("matrix", {})) + "\n",
        _image(decay, "grokking_errors", "error of val over steps", [("metric", ("error", "val"))]),
        _image(
            decay,
            "grokking_alignment",
            "alignment of embedding and in_proj, by weight decay",
            [
                ("alignment_diagonal", ("embedding->layers.0.attention.in_proj",), level)
                for level in ({"weight_decay": 0.0}, {"weight_decay": 1.0})
            ],
        ),
    ]
    if grokking is not None:
        parts += [
            "The trials with decay 1 again, in a sweep of their own with pruned models; losses",
            "at the end:\n",
            str(facts.pruned(grokking)) + "\n",
        ]
    if most is not None:
        parts += [
            "## G3: generalising from most of the data, without decay\n",
            "The paper: it generalises early, rank falls, norms exceed the grokked network's.\n",
            str(facts.errors(most, ["train_fraction"])) + "\n",
            str(facts.rank_falls(most)) + "\n",
        ]
        for norm, shown in judged.NORMS.items():
            header = (shown, "90 %, no decay", "70 %, decay 1", "larger with 90 %")
            parts.append(str(facts.compared(*judged.norms(most, decay, norm), header)) + "\n")
    if slingshot is not None:
        parts += [
            "## G4: LayerNorm, no decay (slingshot)\n",
            "The paper: the validation set is fitted gradually, and rank falls.\n",
            str(facts.errors(slingshot, ["layer_norm"])) + "\n",
            str(facts.rank_falls(slingshot)) + "\n",
        ]
    return parts


def _falling(opened: dict[str, Results]) -> list[str]:
    if not any(name in opened for name in BASES):
        return []
    parts = [
        "## B1: effective rank falls\n",
        "The paper: in all four settings the rank of nearly all matrices is lower at the end.\n",
    ]
    for name, title in BASES.items():
        if name in opened:
            parts += [f"### {title}\n", str(facts.rank_falls(opened[name])) + "\n"]
            parts.append(
                _image(opened[name], f"rank_{name}", f"ranks of {title}", [("rank_heatmap", ())])
            )
    return parts


def _pruning(opened: dict[str, Results]) -> list[str]:
    found = {name: title for name, title in BASES.items() if name in opened}
    if not found:
        return []
    parts = [
        "## B2: the top half of the directions carries the function\n",
        "The paper: keeping the top half of the singular directions of every matrix but the last",
        "is close to the full model, keeping the bottom half is much worse. Losses at the end,",
        "beside that of the best constant answer (chance):\n",
    ]
    for name, title in found.items():
        parts += [f"### {title}\n", str(facts.pruned(opened[name])) + "\n"]
        parts.append(f"Chance: {judged.chance_of(name):.3g}.\n")
        parts.append(
            _image(
                opened[name],
                f"pruned_{name}",
                f"losses of {title} and its pruned models",
                [("pruned_losses", (split,)) for split in ("train", "val")],
            )
        )
    return parts


def _settling(opened: dict[str, Results]) -> list[str]:
    found = {name: title for name, title in BASES.items() if name in opened}
    if not found:
        return []
    parts = [
        "## B5: leading singular vectors settle first\n",
        "The paper: the leading vectors agree with the final ones before the others do. For every",
        "matrix with at least 20 measured vectors and every seed: does the mean agreement of the",
        "leading ten reach a level, for good, at an earlier snapshot than that of the last ten?",
        "Where both do so only at the last snapshot, which agrees with itself, they do it",
        "together.\n",
    ]
    for name, title in found.items():
        parts += [f"### {title}\n", str(facts.settling_table(opened[name])) + "\n"]
        parts.append(
            _image(
                opened[name],
                f"settling_{name}",
                f"agreement with the end, {title}",
                [("agreement", ("final", PANELS[name])), ("settling", (PANELS[name],))],
            )
        )
    return parts


def _decay(opened: dict[str, Results]) -> list[str]:
    found = {name: title for name, title in DECAYS.items() if name in opened}
    if not found:
        return []
    parts = [
        "## W1, W2, W3: weight decay\n",
        "The paper: rank at the end falls with weight decay, until norms collapse (W1);",
        "consecutive layers align more with decay, markedly only in the Transformer (W2); the loss",
        "of the top half comes closer to the full model's (W3). Collapsed matrices are counted and",
        "not shown.",
        "A decay with * does not train, by the rule above.\n",
    ]
    for name, title in found.items():
        parts += [f"### {title}\n", *_decay_of(name, title, opened[name])]
    return parts


def _decay_of(name: str, title: str, results: Results) -> list[str]:
    """The tables and figures of one decay twin."""
    training = judged.training(name, results)
    ranks = facts.by_level(results, facts.RANK, "weight_decay")
    parts = [str(ranks.table("rank of", training.marks)) + "\n"]
    rows = []
    for level in training.losses:
        shown = f"{level:g}{training.marks.get(level, '')}"
        rows += [(shown, *row) for row in facts.pruned(results, f"weight_decay = {level}").rows]
    header = ("weight_decay", "split", "full model", "top half kept", "bottom half kept")
    parts += [str(Table(header, rows)) + "\n", f"Chance: {training.chance:.3g}.\n"]
    diverged = results.sql(
        "SELECT weight_decay, count(*) AS n FROM trials WHERE status = 'diverged' GROUP BY ALL"
    ).to_pylist()
    for row in diverged:
        parts.append(f"{row['n']} trials diverged at weight decay {row['weight_decay']:g}.\n")
    parts.append(
        _image(
            results,
            f"decay_{name}",
            f"final rank by weight decay, {title}",
            [("final_rank_by", ("weight_decay",))],
        )
    )
    parts.append("The figure shows one matrix, the one whose rank changed most.\n")
    if not facts.measured(results, "alignment"):
        return parts
    scores = facts.by_level(results, "alignment", "weight_decay")
    pair = PAIRS[name]
    panels: list[tuple] = [("final_rank_by", ("weight_decay", pair, "alignment"))]  # type: ignore[type-arg]
    panels += [
        ("alignment_diagonal", (pair,), {"weight_decay": level}) for level in (0.0, training.last)
    ]
    of = f"alignment of a pair by weight decay, {title}"
    parts += [
        "Alignment score at the end, the mean over the first ten indices:\n",
        str(scores.table("pair", training.marks, training.last)) + "\n",
        _image(results, f"decay_alignment_{name}", of, panels),
        "The figure shows one pair: the paper's, as far as the twin has it; its score by decay,",
        "and its diagonal without decay and at the largest decay that trains.\n",
    ]
    return parts


def _labels(opened: dict[str, Results]) -> list[str]:
    results = opened.get("random_labels_small")
    if results is None:
        return []
    given, permuted = judged.by_labels(results)
    header = ("matrix", "permuted", "given", "higher with permuted")
    return [
        "## R1, R2: random labels\n",
        "The paper: an MLP fits true and random labels alike, and its inner layers end with a",
        "higher rank on random ones. Errors at the end:\n",
        str(facts.errors(results, ["labels"])) + "\n",
        "Rank at the end, with the given labels and with one permutation of them:\n",
        str(facts.compared(permuted, given, header)) + "\n",
        _image(
            results,
            "random_labels",
            "rank of the second layer over steps, by labels",
            [
                ("metric", (facts.RANK, "layers.1", "labels")),
                ("metric", ("error", "train", "labels")),
            ],
        ),
        _image(
            results,
            "random_labels_alignment",
            "alignment of layers 2 and 3, by labels",
            [("alignment", ("layers.1->layers.2", "labels"))],
        ),
    ]


def _image(results: Results, name: str, alt: str, kinds: Sequence[tuple]) -> str:  # type: ignore[type-arg]
    """Draw panels side by side, and the line that shows them."""
    figure = Figure(figsize=(5.2 * len(kinds), 3.9), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    for ax, (kind, arguments, *chosen) in zip(
        figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True
    ):
        options = {"configuration": chosen[0]} if chosen else {}
        by = ("weight_decay",) if kind == "metric" and len(arguments) == 2 else ()
        getattr(results.plot, kind)(*arguments, *by, ax=ax, **options)
        # Titles name subject, configuration and seeds: on one line two panels' would meet.
        ax.set_title("\n".join(textwrap.wrap(ax.get_title(), 48)), fontsize=9)
    path = IMAGES / f"reproduction_{name}.png"
    figure.savefig(path, metadata={"Software": None})
    return f"![{alt}](images/{path.name})\n"
