"""What facts about machines mean: pure functions from `orchestrator.node` facts to findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator import node
from orchestrator.node_storage import is_network

LEVELS = ("ok", "warning", "problem")

GIVEN = ("ray", "torch")
"""What every node must have; what else a trial needs is installed for the sweep."""
WORKER = (*GIVEN, "numpy", "scipy", "pyarrow", "pydantic")

CLOCK_SECONDS = 2.0
SLOW_MS, TOO_SLOW_MS = 50.0, 500.0
_GB = 1e9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: "ok", "warning" or "problem".
        subject: what was looked at, for example "storage".
        what: what was found.
        fix: what to do about it; empty if `what` says it or there is nothing to do.
        where: the nodes that it was found on, or "cluster"; empty for this machine.
    """

    level: str
    subject: str
    what: str
    fix: str = ""
    where: str = ""


def merged(found: Iterable[tuple[dict[str, Any], Finding]]) -> list[Finding]:
    """Findings of several nodes: those that say the same become one that names the nodes."""
    nodes: dict[Finding, list[dict[str, Any]]] = {}
    for facts, finding in found:
        nodes.setdefault(finding, []).append(facts)
    return [
        Finding(f.level, f.subject, f.what, f.fix, node.places(those)) for f, those in nodes.items()
    ]


def versions(nodes: Sequence[dict[str, Any]], driver: dict[str, Any]) -> list[Finding]:
    """Whether the nodes run what this machine runs."""
    found = []
    for line in node.differences(nodes, driver):
        name = line.partition(":")[0]
        version = driver["python"] if name == "Python" else _public(driver, name)
        fix = (
            f"Use Python {version} on every machine, with torch and Ray installed for it."
            if name == "Python"
            else f'Everywhere: pip install "{name}=={version}"; then start Ray again.'
        )
        found.append(Finding("problem", "versions", line, fix))
    for name in driver["versions"]:
        without = [facts for facts in nodes if name in node.missing(facts)]
        if not without:
            continue
        what = f"{name} is not installed on {node.places(without)}"
        if name in GIVEN:
            fix = f'There: pip install "{name}=={_public(driver, name)}"; then start Ray again.'
            found.append(Finding("problem", "versions", what, fix))
        else:
            fix = "A sweep installs it when it begins; with it there, sweeps begin sooner."
            found.append(Finding("warning", "versions", what, fix))
    return found or [Finding("ok", "versions", "the same on all nodes and here")]


def _public(driver: dict[str, Any], name: str) -> str:
    """A version without its build: what `+cpu` says of this machine need not be true of others."""
    return str(driver["versions"][name]).partition("+")[0]


def storage(
    nodes: Sequence[dict[str, Any]], folder: str, *, shared: bool, embedded: bool
) -> list[Finding]:
    """Whether the results folder can be used.

    Args:
        nodes: facts with `storage`: this machine's first, then those of the cluster.
        folder: the results folder.
        shared: the nodes were asked for a marker.
        embedded: MLflow's database is to lie in the folder.
    """
    here, found = nodes[0], []
    faults = node.storage_faults(nodes[1:] if shared else nodes, folder)
    found += [Finding("problem", "storage", what, fix) for what, fix in faults]
    answered = [facts for facts in nodes if facts["storage"] and facts["storage"]["writable"]]
    found += merged((facts, finding) for facts in answered for finding in _folder(facts["storage"]))
    kind = (here["storage"] or {}).get("filesystem")
    if embedded and is_network(kind):
        what = f"MLflow's SQLite database would lie on a network file system ({kind}), where its "
        fix = (
            "Start a server with `sweep server` and put its address into the file as `tracking:`, "
            "or write `tracking: none` and watch with `sweep ui`."
        )
        found.append(Finding("problem", "tracking", f"{what}locks do not hold", fix))
    if not any(finding.subject == "storage" for finding in found):
        slowest = max(facts["storage"]["fsync_ms"] for facts in answered)
        seen = f" and seen by {len(nodes) - 1} node{'s' * (len(nodes) > 2)}" if shared else ""
        what = f"{folder} ({kind}) is writable{seen}; 4 KB are on the disk in {slowest:.2g} ms"
        found.append(Finding("ok", "storage", what))
    return found


def _folder(seen: dict[str, Any]) -> list[Finding]:
    found = []
    if seen["fsync_ms"] > SLOW_MS:
        level = "problem" if seen["fsync_ms"] > TOO_SLOW_MS else "warning"
        what = f"4 KB take {seen['fsync_ms']:.0f} ms to be on the disk; trials wait for that"
        fix = "Choose a faster folder, or fewer and longer trials and a larger checkpoint_seconds."
        found.append(Finding(level, "storage", what, fix))
    if seen["links"] is False:
        what = f"the file system ({seen['filesystem']}) has no hard links, which results need"
        fix = "Choose a folder on another file system with `storage:` in the file."
        found.append(Finding("problem", "storage", what, fix))
    return found + _space(seen, "storage", "warning", "the results folder", "Free some space.")


def _space(facts: dict[str, Any], subject: str, level: str, disk: str, fix: str) -> list[Finding]:
    free, total = facts["free_bytes"], facts["total_bytes"]
    if not total or free >= 0.05 * total:
        return []
    what = f"the disk of {disk} is full to {100 * (1 - free / total):.0f} %"
    return [Finding(level, subject, f"{what}: {free / _GB:.1f} GB are free", fix)]


def gpus(facts: dict[str, Any], offered: float | None = None) -> list[Finding]:
    """Whether torch and Ray see what nvidia-smi sees, and whether it is free.

    Args:
        facts: of one node, from a question with `torch`.
        offered: the GPUs that Ray offers on it; None where Ray was not asked.
    """
    cards, found = facts["gpus"], []
    if facts["gpu_error"]:
        fix = "Make `nvidia-smi` work there: after an update of NVIDIA's driver, reboot."
        found.append(Finding("problem", "GPUs", f"nvidia-smi fails: {facts['gpu_error']}", fix))
    count = f"{len(cards)} GPU{'s' * (len(cards) > 1)}"
    if cards and facts["cuda"]:
        found += _torch(facts["cuda"], len(cards), cards[0]["driver"], count)
    if offered is not None and offered != len(cards) and not facts["gpu_error"]:
        fewer = offered < len(cards)
        what = f"Ray offers {offered:g} GPUs, nvidia-smi sees {len(cards)}"
        hidden = " and without CUDA_VISIBLE_DEVICES" if fewer else ""
        fix = f"There: `ray start ... --num-gpus={len(cards)}`{hidden}."
        # Hiding some of them may be meant; none, or one that does not exist, cannot be.
        level = "warning" if fewer and offered > 0 else "problem"
        found.append(Finding(level, "GPUs", what, fix))
    found += [finding for card in cards for finding in _memory(card)]
    if found:
        return found
    names = ", ".join(dict.fromkeys(card["name"] for card in cards))
    return [Finding("ok", "GPUs", f"{count} ({names}), free" if cards else "none")]


def _torch(cuda: dict[str, Any], cards: int, driver: str, count: str) -> list[Finding]:
    if cuda["error"]:
        fix = "(Re)install torch."
        return [Finding("problem", "GPUs", f"torch cannot be imported: {cuda['error']}", fix)]
    if cuda["count"] >= cards:
        return []
    what = f"{count}, of which torch sees {cuda['count']}"
    level = "warning" if cuda["count"] else "problem"
    if cuda["built_for"] is None:
        what += ": it is a build without CUDA"
        fix = "Install a build of torch with CUDA; pytorch.org names the command."
    elif cuda["visible"] is not None:
        what += f": CUDA_VISIBLE_DEVICES is {cuda['visible']!r}"
        fix = "unset CUDA_VISIBLE_DEVICES (where `ray start` is called), unless this is meant."
    else:
        what += f": driver {driver} is too old for CUDA {cuda['built_for']} of this torch, or this"
        what += " container is not given the devices"
        fix = "Update NVIDIA's driver, or install a build of torch for an older CUDA."
    return [Finding(level, "GPUs", what, fix)]


def _memory(card: dict[str, Any]) -> list[Finding]:
    used, total = card["used_mib"], card["memory_mib"]
    if not used or not total or (used <= 500 and used <= 0.05 * total):
        return []
    users = ", ".join(
        f"{user['name']} (process {user['pid']}" + (f", {user['user']})" if user["user"] else ")")
        for user in card["users"]
    )
    what = f"GPU {card['index']} ({card['name']}): {used} of {total} MiB are in use"
    fix = "End it, or keep Ray off that GPU: CUDA_VISIBLE_DEVICES before `ray start`."
    return [Finding("warning", "GPUs", f"{what} by {users or 'a process not seen here'}", fix)]


def clock(facts: dict[str, Any], sent: float, received: float) -> list[Finding]:
    """Whether a node's clock agrees with this machine's.

    The answer was given at some time between `sent` and `received` of this machine's clock: only
    what cannot be explained by that counts.
    """
    middle, half = (sent + received) / 2, (received - sent) / 2
    ahead = facts["clock"] - middle
    if abs(ahead) - half <= CLOCK_SECONDS:
        return [Finding("ok", "clock", f"within {CLOCK_SECONDS:.0f} s of this machine's")]
    direction = "ahead of" if ahead > 0 else "behind"
    what = f"{abs(ahead):.0f} s {direction} this machine's: times in the tables are as far off"
    fix = "Switch on time synchronisation on both: timedatectl set-ntp true"
    return [Finding("warning", "clock", what, fix)]


def machine(facts: dict[str, Any]) -> list[Finding]:
    """Whether Ray has the room that it wants."""
    limits, found = facts["machine"], []
    if not limits:
        return [Finding("warning", "machine", "; ".join(facts["errors"]) or "nothing is known")]
    if limits["open_files"] < 4096:
        what = f"{limits['open_files']} files may be open at once; many workers need more"
        fix = "ulimit -n 65536, before Ray starts."
        found.append(Finding("warning", "machine", what, fix))
    shared, memory = limits["shm_bytes"], limits["memory_bytes"]
    if shared is not None and (shared < _GB or shared < 0.3 * memory):
        what = f"/dev/shm holds {shared / _GB:.1f} GB of {memory / _GB:.0f} GB memory; Ray wants "
        fix = (
            f"docker run --shm-size={max(1, round(0.3 * memory / _GB + 0.5))}g; on Kubernetes an "
            "emptyDir with `medium: Memory` at /dev/shm."
        )
        found.append(Finding("warning", "machine", f"{what}30 %", fix))
    place = limits["temporary"]
    found += _space(
        place,
        "machine",
        "problem",
        f"Ray's temporary files ({place['folder']})",
        "Free some space, or start Ray with --temp-dir on a larger disk: beyond 95 % it refuses.",
    )
    return found or [Finding("ok", "machine", "open files, /dev/shm and temporary disk suffice")]
