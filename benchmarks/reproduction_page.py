"""docs/reproduction.md and its images, from the results of the small twins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import reproduction_facts as facts
from benchmarks.bare import REPOSITORY
from orchestrator import Results

PAGE = REPOSITORY / "docs" / "reproduction.md"
IMAGES = REPOSITORY / "docs" / "images"

BASES = {
    "image_classification_small": "VGG-16 on digits",
    "image_generation_small": "UNet on digits",
    "speech_recognition_small": "LSTM on synthesised speech",
    "language_modeling_small": "Transformer on Python's documentation",
}
DECAYS = {f"{name.removesuffix('_small')}_decay_small": title for name, title in BASES.items()}

PANELS = {
    "image_classification_small": "layers.11.conv",
    "image_generation_small": "conv3",
    "speech_recognition_small": "weight_ih_l1",
    "language_modeling_small": "layers.1.linear1",
}
"""The matrix that the figures of agreement show: the paper's, as far as the twin has it."""

HEAD = """# What the small twins show

Each finding of Yunis et al. (arXiv 2408.11804) that can be asked of a laptop, asked of the small
twins in [sweeps](../sweeps): five seeds each, every number computed from the results by
`benchmarks/reproduction_facts.py`. The twins are other networks on other data than the paper's,
chosen for their size and not for their outcome: models and learning rates were chosen beforehand by
whether they train within minutes. So this page says what these small networks do, not whether the
paper is right. The full-size sweeps have not been run.

```sh
python -m benchmarks.reproduction        # run the twins (about {minutes} minutes), write this page
sweep report results/reproduction/NAME   # every figure of one of them
```

Ranks are normalised effective ranks, exp(entropy) / R. "0.5 (0.4 to 0.6)" is the median and the
range over seeds. Parts of matrices (heads, thirds of `in_proj`) are left out. Vectors that the
weights do not determine have no agreement. Seconds are from the first trial's start to the last
one's end on two cores.

| twin | trials | seconds |
|---|---|---|
{times}
"""


def write(results: Path, twins: Sequence[str]) -> Path:
    """Write the page, with a section for each finding whose twins have results."""
    opened = {n: Results.open(results / n) for n in twins if (results / n).is_dir()}
    times = _times(opened)
    minutes = round(sum(seconds for _, _, seconds in times) / 60)
    rows = "\n".join(f"| `{name}` | {trials} | {s:.0f} |" for name, trials, s in times)
    parts = [HEAD.format(minutes=minutes, times=rows), *_summary(opened), *_grokking(opened)]
    parts += [*_falling(opened), *_pruning(opened), *_settling(opened), *_decay(opened)]
    parts += _labels(opened)
    PAGE.write_text("\n".join(parts).rstrip() + "\n")
    return PAGE


def _summary(opened: dict[str, Results]) -> list[str]:
    """One line per finding and twin: counts, which the sections below break down."""
    rows: list[tuple[str, ...]] = []
    if (decay := opened.get("modular_addition_decay_small")) is not None:
        for level, finding in ((1.0, "G1"), (0.0, "G2")):
            count = facts.generalised(decay, f"weight_decay = {level}")
            rows.append((finding, f"val error below {facts.LEARNED} at decay {level:g}", count))
    if (most := opened.get("modular_addition_most_data_small")) is not None:
        rows.append(("G3", "val error below 0.02 at 90 %, no decay", facts.generalised(most)))
    for name, title in BASES.items():
        if name in opened:
            fell, total, trials = facts.fell_of_all(opened[name])
            what = f"{title}: matrices whose rank fell in all {trials} seeds"
            rows.append(("B1", what, f"{fell} of {total}"))
    for name, title in BASES.items():
        if name in opened:
            val = facts.pruned(opened[name]).rows[1]
            what = f"{title}, val loss: full, top half, bottom half (medians)"
            rows.append(("B2", what, ", ".join(cell.partition(" ")[0] for cell in val[1:])))
    for name, title in BASES.items():
        if name in opened:
            half = facts.settling(opened[name]).rows[0]
            what = f"{title}: leading ten settle before, with, after the last ten"
            rows.append(("B5", what, ", ".join(half[1:4])))
    for name, title in DECAYS.items():
        if name in opened:
            table = facts.rank_by(opened[name], "weight_decay")
            ends = [row[-1].split(" of ") for row in table.rows]
            fell = sum(int(count) for count, _ in ends)
            what = f"{title}: rank lower at the largest decay than at none, (matrix, seed)"
            rows.append(("W1", what, f"{fell} of {sum(int(total) for _, total in ends)}"))
    if (labels := opened.get("random_labels_small")) is not None:
        inner = [row for row in _by_labels(labels).rows if row[0] in ("`layers.1`", "`layers.2`")]
        count = sum(int(row[-1].partition(" ")[0]) for row in inner)
        total = sum(int(row[-1].split()[2]) for row in inner)
        what = "inner layers with a higher rank on permuted labels, (matrix, seed)"
        rows.append(("R2", what, f"{count} of {total}"))
    return [str(facts.Table(("finding", "what is counted", "count"), rows)) + "\n"]


def _times(opened: dict[str, Results]) -> list[tuple[str, int, float]]:
    """From the first trial's start to the last one's end."""
    found = []
    for name, results in opened.items():
        row = results.sql(
            "SELECT count(*) AS n, epoch_us(max(ended_at)) - epoch_us(min(started_at)) AS us "
            "FROM trials"
        ).to_pylist()[0]
        found.append((name, row["n"], row["us"] / 1e6))
    return found


def _grokking(opened: dict[str, Results]) -> list[str]:
    decay = opened.get("modular_addition_decay_small")
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
        "Where each falls most between two neighbouring evaluations or snapshots, once the",
        "training set is fitted:\n",
        str(facts.steepest(decay)) + "\n",
        "Rank at the end, by weight decay:\n",
        str(facts.rank_by(decay, "weight_decay")) + "\n",
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
    if most is not None:
        big, small = facts.sizes(most), facts.sizes(decay, "weight_decay = 1.0")
        parts += [
            "## G3: generalising from most of the data, without decay\n",
            "The paper: it generalises early, rank falls, norms exceed the grokked network's.\n",
            str(facts.errors(most, ["train_fraction"])) + "\n",
            str(facts.rank_falls(most)) + "\n",
            str(
                facts.Table(
                    ("median over matrices and seeds, at the end", "90 %, no decay", "decay 1"),
                    [
                        (what, f"{big[key]:.3g}", f"{small[key]:.3g}")
                        for what, key in (
                            ("largest singular value", "norm/spectral"),
                            ("Frobenius norm", "norm/frobenius"),
                        )
                    ],
                )
            )
            + "\n",
        ]
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
    rows = []
    for name, title in BASES.items():
        if name in opened:
            fell, total, trials = facts.fell_of_all(opened[name])
            rows.append((title, f"{fell} of {total}", str(trials)))
    header = ("setting", "matrices that fell in every trial", "trials")
    parts.append(str(facts.Table(header, rows)) + "\n")
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
        "is close to the full model, keeping the bottom half is much worse. Losses at the end:\n",
    ]
    for name, title in found.items():
        parts += [f"### {title}\n", str(facts.pruned(opened[name])) + "\n"]
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
        parts += [f"### {title}\n", str(facts.settling(opened[name])) + "\n"]
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
        "## W1: more weight decay, less rank\n",
        "The paper: rank at the end falls with weight decay, until norms collapse. Collapsed",
        "matrices are counted and not shown. W3, in the second table: does the loss of the top",
        "half come closer to the full model's?\n",
    ]
    for name, title in found.items():
        results = opened[name]
        parts += [f"### {title}\n", str(facts.rank_by(results, "weight_decay")) + "\n"]
        rows = []
        for level in sorted(set(results.trials()["weight_decay"].to_pylist())):
            table = facts.pruned(results, f"weight_decay = {level}")
            rows += [(f"{level:g}", *row) for row in table.rows]
        header = ("weight_decay", "split", "full model", "top half kept", "bottom half kept")
        parts.append(str(facts.Table(header, rows)) + "\n")
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
    return parts


def _labels(opened: dict[str, Results]) -> list[str]:
    results = opened.get("random_labels_small")
    if results is None:
        return []
    return [
        "## R1, R2: random labels\n",
        "The paper: an MLP fits true and random labels alike, and its inner layers end with a",
        "higher rank on random ones. Errors at the end:\n",
        str(facts.errors(results, ["labels"])) + "\n",
        "Rank at the end, with the given labels and with one permutation of them:\n",
        str(_by_labels(results)) + "\n",
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


def _by_labels(results: Results) -> facts.Table:
    found = results.sql(
        f"""
        SELECT subject, labels, seed, arg_max(value, step) AS last
        FROM scalars JOIN trials USING (trial_id)
        WHERE metric = '{facts.RANK}' AND status = 'completed' GROUP BY ALL
        """
    ).to_pylist()
    rows = []
    for subject in sorted({row["subject"] for row in found}):
        of = {(r["labels"], r["seed"]): r["last"] for r in found if r["subject"] == subject}
        given = {seed: v for (labels, seed), v in of.items() if labels == "given"}
        other = {seed: v for (labels, seed), v in of.items() if labels == "permuted"}
        both = sorted(given.keys() & other.keys())
        higher = sum(other[seed] > given[seed] for seed in both)
        rows.append(
            (
                f"`{subject}`",
                facts._range(given.values()),
                facts._range(other.values()),
                f"{higher} of {len(both)} seeds",
            )
        )
    return facts.Table(("matrix", "given", "permuted", "higher with permuted"), rows)


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
    path = IMAGES / f"reproduction_{name}.png"
    figure.savefig(path, metadata={"Software": None})
    return f"![{alt}](images/{path.name})\n"
