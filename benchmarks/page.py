"""docs/benchmarks.md from the reports in benchmarks/out/. No figure is written here by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.bare import REPOSITORY
from benchmarks.figures import Figure, Report
from benchmarks.orchestration import DEFAULT_TRIALS, TRACKED_TRIALS
from benchmarks.tune_rival import SETTINGS as TUNE_SETTINGS

PAGE = REPOSITORY / "docs" / "benchmarks.md"

SETTINGS = ",\n".join(f"  `{name}={value}`" for name, value in TUNE_SETTINGS["best"].items())

HEAD = """# Benchmarks

Written by `make bench`, which measures everything again (two to three hours on two idle cores).
Every figure is compared with a rival that ran on the same machine in the same minutes, before and
after it. Of several repeats the table shows the smallest, the median and the largest. A claim is
held or missed if every repeat says so and would still say so if it were off by the noise: half the
range of the equal bare runs, in the tables of tasks half the range between their quartiles. Else it
is undecided. After a run, all timings behind a table are in `benchmarks/out/<name>.json`.

**Bare** is the rival of the first two tables and the floor beside Ray Tune: the body of a trial and
its snapshots at the same steps (build, `train_step`, `evaluate`, `take_snapshot`), in two processes
at once with one thread each, without store, Ray, driver and tracking (`benchmarks/bare.py`).

Not measured: GPUs, more than one machine. Groups of more than one trial are measured step by step,
in the tables of tasks; `sweep run` has none yet.
"""

TEXTS = {
    "demo": """## How much of a slot's time is training

`sweeps/grokking.yaml` from an empty folder with `--workers 2`, tracking on as by default, against
the same trials bare. Per slot: the bare seconds of the trials that the slot ran, over the time
from its first trial's start to its last trial's end (`started_at`, `ended_at` of the trials table).
The first optimiser step comes after Python, Ray and MLflow have been imported, the workers have
started, and step 0 has been measured. MLflow is complete at the last write to its database.
""",
    "overhead": """## What a trial costs beside its training

200 trials of a tiny network (`benchmarks/tiny.yaml`: 200 AdamW steps, 10 snapshots each), tracking
off, two workers. Overhead: (last end - first start) of a slot / its trials, less the same of a bare
process. It includes making each trial's rows durable, so the disk's latency stands beside it.
"`run_group` alone" is one process without Ray: its own calls, timed one by one.
""",
    "tasks": """## A step of each task, beside a bare torch loop

The same module, data, batch size and optimiser in plain torch (`benchmarks/tasks_bare.py`:
`torch.optim`, torch's losses and random numbers, the data as tensors on the device) and under
`train_step`, which adds counter-based random numbers, the search for the first non-finite number
and the machinery of groups. One thread; a process per setting, in which the loops take turns;
seconds per step, of stackable tasks also per trial in a group of four. The claim is for stackable
tasks in the group, for the others alone. "(paper)" is the model of the paper's size; images and
texts are the embedded ones. No GPU: `python -m benchmarks.tasks NAME --device cuda` is the
measurement.
""",
    "orchestration": f"""## Beside Ray Tune

The trials of `benchmarks/tiny.yaml` (200 AdamW steps, 10 snapshots) under `sweep run` and under Ray
Tune of the same Ray version: one CPU per trial, two at once, tracking off. The systems take turns;
bare runs stand before, between and after them.

The same on both sides: the trials, their seeds and their numbers (the last losses are compared, bit
by bit), the training loop, the measurements at each snapshot, threads, MKL and allocator settings,
a Ray started for the run without dashboard, and the clock: as above, (last end - first start) of a
slot / its trials, so that start-up is in no time per trial. Not the same: `sweep run` writes every
scalar and spectrum to a durable store (fsync) and commits each trial; Tune is given the scalars of
each snapshot, not the spectra, and writes its trial folders, without fsync.

- **Tune's defaults**: a function that calls `tune.report`, a process per trial, CSV, JSON and
  TensorBoard loggers. {DEFAULT_TRIALS} trials, not 200, because each takes seconds; a trial starts
  after its process's imports, so that one in {DEFAULT_TRIALS // 2} process starts goes uncounted.
- **Tune with `reuse_actors=True`**: that, and nothing else.
- **Tune at its best**: a class trainable with `reset_config`, `reuse_actors=True`, `verbose=0` and
{SETTINGS}.
  It then writes no result files: of each trial only the last result is kept, in one state file.
""",
    "tracking": f"""## How soon MLflow is complete, beside Ray Tune

Tracking on in both, SQLite, {TRACKED_TRIALS} of the same trials, Tune with `reuse_actors=True` and
its `MLflowLoggerCallback`. It is given the five curves per trial that `sweep run` shows by default,
and adds times and counters of every result; `sweep run` adds mean curves over the seeds and trends.
Complete is the last write to the database, in which every trial's run is then checked. The callback
writes while trials wait, `sweep run` beside them: hence the time of the whole as well.
""",
    "memory": """## What the driver keeps of each trial, beside Ray Tune

Resident size of the driver's process, asked twice a second from outside; least squares over the
trials that had ended by then, each of one step and two snapshots. Tune at its best, as above.
""",
    "snapshots": """## What measuring costs

The first trials of `sweeps/grokking.yaml`, two at once, one thread each. A snapshot includes the
conversion of its rows into the buffer of a shard, not the shard's way to the disk.
""",
    "bounds": """## What the bounds of spectra are worth

Bound over error, for 1,008 float32 matrices of 14 families, six shapes and the scales 1e-18, 1 and
1e18, and three positive low-rank ones of 50,000 rows. The truth is NumPy's float64 SVD; for 50,000
rows, exact sums and 50 digits. Where an error is below what NumPy's may itself be off, that is
taken for the error, so that the true ratio is larger. Each matrix gives one ratio: the median over
its singular values, and that of its effective rank. "Repeats" are matrices.
""",
    "storage": """## What a trial leaves on disk

A trial of `sweeps/image_classification.yaml` (VGG-16, its groups of measurements, 169 snapshots),
with one step on digits between two snapshots instead of 352 on CIFAR-10, which changes no number of
rows. The files of the reference are computed from shapes and counts: 20.0 GB of checkpoints and
11.2 GB of evaluations. Scratch is what `sweep plan` prints: singular vectors that wait for those of
the last step. It is not in the results, and goes when the trial ends.
""",
    "spectra": """## Spectra, beside the procedure of the paper

Shapes of Yunis et al. (arXiv 2408.11804): VGG-16 for CIFAR images (14 matrices, 13 pairs), their
12-layer transformer of width 768 with 50,277 tokens (LM: 50, 61), and the one-layer transformer
that groks (p = 113: 6, 6). Weights are made, not trained: "initial" is the initialisation,
"collapsed" a product of rank 10 with relative noise of 2^-23 at scale 1e-6, as after strong weight
decay, "power law" has singular values 1 / i^2. Two threads (one in a quick run); a process for
each network, in which ours and the rivals take turns.

**The reference procedure** is theirs, written anew from its description: a float32
`torch.linalg.svd` with vectors for each need. Each matrix once for its values, ranks and agreement
with the final checkpoint, both matrices of each pair for alignment (the heads of query and key in
one batched call), each matrix but the last for the model of its top half of directions and again
for that of its bottom half: 66 decompositions for VGG-16, 246 and 24 batched ones for LM. The final
checkpoint's vectors are computed beforehand on both sides. In the rival's favour it computes only
the diagonals that the paper plots, at the centre of a kernel, not the full matrices that the code
stores. **Ours** is one float64 decomposition of each matrix, head and value projection for the same
numbers. Its time includes error bounds, chance levels, matched alignment and subspace overlaps,
which the rival does not have; matched alignment is shown alone as well, as are convolutions as
operators. On both sides the pruned weights are built, but no model is evaluated on them.
**Singular values alone** is one float32 `torch.linalg.svdvals` per matrix: no vectors, no bounds.

**Snapshots beside training**: `take_snapshot` after an earlier snapshot, each group alone (its
decomposition included) and all of them together, as per cent of the optimiser steps between two
snapshots at the paper's cadence: 352 steps of SGD with 128 random images for VGG-16 (a bare loop),
100 full-batch steps of AdamW for grokking (`train_step`). "All groups" is without `operator` and
without the evaluation of pruned models. Rows marked GPU are there if one was; the snapshot
then waits for the device. Without such rows, nothing was measured on a GPU.

**WeightWatcher** stands here for scale, if it is installed: its default `analyze()`, which
answers other questions. It fits power laws to singular values, pools those of the nine slices of a
kernel instead of flattening it, leaves out attention's `in_proj`, and computes no vectors.
""",
}


def write(names: Sequence[str]) -> Path:
    """Write the page from whichever of these reports exist."""
    reports = [report for name in names if (report := Report.read(name)) is not None]
    PAGE.write_text("\n".join([HEAD, _claims(reports), *map(section, reports)]).rstrip() + "\n")
    return PAGE


def _claims(reports: Sequence[Report]) -> str:
    lines = ["## Claims", "", "| figure | median | claim | again |", "|---|--:|---|---|"]
    for report in reports:
        for figure in report.figures:
            if figure.claim:
                median = f"{_digits(figure.median)} {figure.unit}".rstrip()
                claim = _claim(figure, report.judged)
                lines.append(f"| {figure.what} | {median} | {claim} | `{report.command}` |")
    return "\n".join([*lines, ""])


def section(report: Report) -> str:
    """One benchmark: what was compared, the command, the figures, the machine."""
    lines = [
        TEXTS[report.name],
        f"Again: `{report.command}`",
        "",
        "| figure | unit | repeats | min | median | max | claim |",
        "|---|---|--:|--:|--:|--:|---|",
        *(_row(figure, report.judged) for figure in report.figures),
        "",
        *_circumstances(report),
        "",
    ]
    return "\n".join(lines)


def _row(figure: Figure, judged: bool) -> str:
    numbers = (min(figure.values), figure.median, max(figure.values))
    shown = " | ".join(_digits(number) for number in numbers)
    unit = figure.unit or "ratio"
    claim = _claim(figure, judged)
    return f"| {figure.what} | {unit} | {len(figure.values)} | {shown} | {claim} |"


def _claim(figure: Figure, judged: bool) -> str:
    if not figure.claim:
        return ""
    return f"{figure.claim}: {figure.verdict if judged else 'not judged'}"


def _digits(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 100 else f"{number:.0f}"


def _circumstances(report: Report) -> list[str]:
    machine = dict(report.machine)
    cpu, cores = machine.pop("cpu"), machine.pop("cores")
    rest = ", ".join(f"{name} {version}" for name, version in machine.items())
    before, after = report.others
    lines = [
        f"{report.measured_at}, {cpu}, {cores} cores, {rest}. Other work kept {before:.1f} cores "
        f"busy before the benchmark and {after:.1f} after it."
    ]
    if report.busy:
        lines.append(
            "**Measured on a busy machine: absolute times are too long, comparisons are noisy, and "
            "no claim is judged.**"
        )
    if report.quick:
        lines.append(
            "**A quick run, with fewer steps, fewer trials and one repeat: no claim is judged.**"
        )
    return lines
