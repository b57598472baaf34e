"""docs/benchmarks.md from the reports in benchmarks/out/. No figure is written here by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.bare import REPOSITORY
from benchmarks.figures import Figure, Report

PAGE = REPOSITORY / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Written by `python -m benchmarks --write`; `make bench` measures everything again without writing.
Every figure is compared with a rival that ran on the same machine in the same minutes, before and
after it. Of several repeats the table shows the smallest, the median and the largest; a claim is
held against the median. All timings behind a table are in `benchmarks/out/<name>.json` after a run.

**Bare** is the rival of the first two tables: the body of a trial and its snapshots at the same
steps (build, `train_step`, `evaluate`, `take_snapshot`), in two processes at once with one thread
each, without store, Ray, driver and tracking (`benchmarks/bare.py`).

Not measured: GPUs, more than one machine, groups of more than one trial.
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
    "snapshots": """## What measuring costs

The first trials of `sweeps/grokking.yaml`, two at once, one thread each. A snapshot includes the
conversion of its rows into the buffer of a shard, not the shard's way to the disk.
""",
}


def write(names: Sequence[str]) -> Path:
    """Write the page from whichever of these reports exist."""
    reports = [report for name in names if (report := Report.read(name)) is not None]
    PAGE.write_text("\n".join([HEAD, *map(section, reports)]))
    return PAGE


def section(report: Report) -> str:
    """One benchmark: what was compared, the command, the figures, the machine."""
    lines = [
        TEXTS[report.name],
        f"Again: `{report.command}`",
        "",
        "| figure | unit | repeats | min | median | max | claim |",
        "|---|---|--:|--:|--:|--:|---|",
        *map(_row, report.figures),
        "",
        *_circumstances(report),
        "",
    ]
    return "\n".join(lines)


def _row(figure: Figure) -> str:
    numbers = (min(figure.values), figure.median, max(figure.values))
    shown = " | ".join(_digits(number) for number in numbers)
    unit = figure.unit or "ratio"
    return f"| {figure.what} | {unit} | {len(figure.values)} | {shown} | {figure.claim} |"


def _digits(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 100 else f"{number:.0f}"


def _circumstances(report: Report) -> list[str]:
    machine = dict(report.machine)
    cpu, cores = machine.pop("cpu"), machine.pop("cores")
    rest = ", ".join(f"{name} {version}" for name, version in machine.items())
    before, after = report.load
    lines = [
        f"{report.measured_at}, {cpu}, {cores} cores, {rest}. Load in the minute before the start "
        f"{before:.1f}, in the last minute {after:.1f} (of which the benchmark itself about 2)."
    ]
    if report.busy:
        lines.append("**The machine was busy with other work: the absolute times are too long.**")
    if report.quick:
        lines.append(
            "**A quick run: fewer steps, fewer trials, one repeat. No claim rests on it.**"
        )
    return lines
