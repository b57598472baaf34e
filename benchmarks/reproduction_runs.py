"""How long the twins took, and on what they ran."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping

from orchestrator import Results


def machine(opened: Mapping[str, Results]) -> str:
    """What the trials ran on, as each recorded it; more than one line if they differ."""
    found: dict[str, list[str]] = {}
    for name, results in opened.items():
        for environment in sorted(set(results.trials()["environment"].to_pylist())):
            recorded = json.loads(
                (results.root / "environments" / f"{environment}.json").read_text()
            )
            changed = " with uncommitted changes" if recorded.get("git_diff") else ""
            line = (
                f"{recorded['cpu']}, {recorded['platform']}, Python {recorded['python']}, torch "
                f"{recorded['versions']['torch']}, {recorded['threads']} thread per trial, commit "
                f"{str(recorded.get('git_commit', 'unknown'))[:12]}{changed}"
            )
            found.setdefault(line, []).append(name)
    if len(found) == 1:
        return textwrap.fill(f"Measured on {next(iter(found))}.", 100)
    lines = (f"- {line}: {', '.join(f'`{n}`' for n in names)}" for line, names in found.items())
    return "\n".join(["Measured on:\n", *lines])


def times(opened: Mapping[str, Results]) -> list[tuple[str, int, float]]:
    """From the first trial's start to the last one's end."""
    found = []
    for name, results in opened.items():
        row = results.sql(
            "SELECT count(*) AS n, epoch_us(max(ended_at)) - epoch_us(min(started_at)) AS us "
            "FROM trials"
        ).to_pylist()[0]
        found.append((name, row["n"], row["us"] / 1e6))
    return found
