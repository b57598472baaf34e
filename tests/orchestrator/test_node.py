"""What a node says of itself: real folders, a real hanging read, and judgements on given facts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator import node_storage
from orchestrator.node import (
    Question,
    differences,
    inspect,
    missing,
    places,
    storage_problems,
    where,
)
from orchestrator.node_storage import confirm, filesystem, is_network, marked

ROOT = Path(__file__).parents[2]
SHARED = "/shared/results"
MOUNTS = r"""
22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:25 / /dev/shm rw - tmpfs tmpfs rw
41 22 0:40 / /shared rw,relatime shared:9 master:2 - nfs4 server:/export rw,vers=4.2
42 22 0:41 / /my\040data rw - xfs /dev/vdb rw
43 41 0:42 / /shared/fast rw - lustre 10.0.0.1@tcp:/fs rw
44 41 0:43 / /shared/fast rw - tmpfs none rw
nonsense
"""


def facts(host: str, ip: str | None = None, **given: Any) -> dict[str, Any]:
    """A node on which all is well, but for what is given."""
    return {"host": host, "ip": ip, "python": "3.11.7", "versions": {}, "storage": None} | given


def seen(**given: Any) -> dict[str, Any]:
    """A results folder with which all is well, but for what is given."""
    well = {"exists": True, "marker": True, "answer": None, "writable": True}
    return well | {"error": None, "hangs": False} | given


def test_a_node_describes_itself() -> None:
    """Everything is there, and JSON can hold it."""
    question = Question((("numpy", "2.0"), ("no-such-distribution", "1.0")))

    found = inspect(question)

    assert json.loads(json.dumps(found)) == found
    assert (found["pid"], found["storage"], found["errors"]) == (os.getpid(), None, [])
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["host"] == os.uname().nodename
    assert abs(found["clock"] - time.time()) < 60
    assert found["packages"] == {
        name: str(ROOT / name / "__init__.py") for name in ("spectral", "tasks", "orchestrator")
    }
    assert found["machine"]["memory_bytes"] > 2**28
    assert found["machine"]["temporary"]["total_bytes"] > 0
    assert missing(found) == ["no-such-distribution"]


def test_a_node_needs_nothing_but_the_standard_library() -> None:
    """It is asked before anything is installed there: -S leaves out every installed package."""
    code = (
        "import sys; from orchestrator import node; node.inspect(node.Question(folder='/'));"
        "ours = {'orchestrator', '__main__'};"
        "print([m for m in sys.modules if m.split('.')[0] not in sys.stdlib_module_names | ours])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_a_marker_is_found_and_answered(tmp_path: Path) -> None:
    """The driver sees the node's answer; afterwards nothing is left, not even the folder."""
    folder = tmp_path / "new" / "results"
    with marked(folder) as (marker, token):
        found = inspect(Question((), str(folder), marker, token))
        names = sorted(path.name for path in folder.iterdir())
        confirm(folder, [found])
    storage = found["storage"]

    assert names == [marker, f"{marker}.{found['host']}.{os.getpid()}"]
    assert storage["fsync_ms"] > 0
    assert storage["filesystem"]
    assert {
        name: storage[name]
        for name in ("exists", "marker", "answer", "writable", "links", "error", "hangs")
    } == {
        "exists": True,
        "marker": True,
        "answer": names[1],
        "writable": True,
        "links": True,
        "error": None,
        "hangs": False,
    }
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    """Only what the question made is taken away."""
    (tmp_path / "sweep.txt").write_text("mine")

    with marked(tmp_path):
        pass

    assert [path.name for path in tmp_path.iterdir()] == ["sweep.txt"]


def test_another_marker_is_not_taken_for_the_drivers(tmp_path: Path) -> None:
    """A folder of the same name on another disk: no marker, or one with other content."""
    (tmp_path / ".node-1").write_text("of another driver")

    answers = [inspect(Question((), str(tmp_path), m, "t")) for m in (".node-1", ".node-2")]

    assert [found["storage"]["marker"] for found in answers] == [False, False]
    assert [path.name for path in tmp_path.iterdir()] == [".node-1"]


def test_an_answer_that_the_driver_cannot_see_means_another_folder(tmp_path: Path) -> None:
    """Seen in one direction only, for example through a copy that is refreshed now and then."""
    nodes = [facts("a", storage=seen(answer="is-there")), facts("b", storage=seen(answer="is-not"))]
    (tmp_path / "is-there").touch()

    confirm(tmp_path, nodes)

    assert [node["storage"]["marker"] for node in nodes] == [True, False]


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """A folder made by the question would seem to be there for good."""
    storage = inspect(Question((), str(tmp_path / "no" / "such"), ".node-1", "t"))["storage"]

    assert (storage["exists"], storage["marker"], storage["error"]) == (False, False, None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_refuses_says_why() -> None:
    """/proc takes no new file from anybody, root included."""
    storage = inspect(Question((), "/proc"))["storage"]

    assert (storage["exists"], storage["writable"], storage["links"]) == (True, False, None)
    assert (storage["filesystem"], storage["error"]) == ("proc", "No such file or directory")


def test_a_folder_below_a_file_does_not_exist(tmp_path: Path) -> None:
    """Nothing can be made there, by anybody."""
    (tmp_path / "file").touch()

    storage = inspect(Question((), str(tmp_path / "file" / "results"), ".node-1", "t"))["storage"]

    assert (storage["exists"], storage["writable"], storage["marker"]) == (False, False, False)


def test_storage_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that never returns, as on a dead server: the marker is a pipe that nobody fills."""
    monkeypatch.setattr(node_storage, "ANSWER_SECONDS", 1.0)
    os.mkfifo(tmp_path / ".node-1")

    storage = inspect(Question((), str(tmp_path), ".node-1", "t"))["storage"]

    with (tmp_path / ".node-1").open("w"):  # lets the reader go
        pass
    assert (storage["hangs"], storage["error"]) == (True, "no answer within 1 s")
    assert (storage["exists"], storage["writable"], storage["marker"]) == (True, False, None)


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/home/ada", "ext4"),
        ("/dev/shm", "tmpfs"),
        ("/shared/results", "nfs4"),
        ("/shared", "nfs4"),
        ("/shared2", "ext4"),
        ("/my data/x", "xfs"),
        ("/shared/fast/x", "tmpfs"),  # mounted later over the same point
    ],
)
def test_the_file_system_is_that_of_the_longest_mount_point(folder: str, kind: str) -> None:
    """Spaces are octal in the kernel's list; of two mounts at one point the later counts."""
    assert filesystem(folder, MOUNTS) == kind


def test_without_a_list_of_mounts_the_file_system_is_unknown() -> None:
    assert filesystem("/home", "") is None


def test_network_file_systems_are_known_by_name() -> None:
    network = ("nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "fuse.sshfs", "9p", "glusterfs")

    assert [kind for kind in network if not is_network(kind)] == []
    assert [k for k in ("ext4", "xfs", "tmpfs", "overlay", "btrfs", None) if is_network(k)] == []


def test_a_broken_part_leaves_the_others_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """`inspect` never raises: what fails is None and named."""
    monkeypatch.setenv("RAY_TMPDIR", "/no/such/folder")

    found = inspect(Question())

    assert found["machine"] == {}
    assert found["errors"] == ["machine: [Errno 2] No such file or directory: '/no/such/folder'"]
    assert found["python"]


def test_a_node_is_named_by_host_and_address() -> None:
    nodes = [facts(f"node-{n}", f"10.0.0.{n}") for n in range(8)]

    assert where(facts("laptop")) == "laptop"
    assert places([nodes[1], nodes[1], nodes[2]]) == "node-1 (10.0.0.1), node-2 (10.0.0.2)"
    assert places(nodes).endswith("node-4 (10.0.0.4) and 3 more")


def test_versions_that_differ_are_one_line_each() -> None:
    """However many nodes; Ray, Python, torch first. The build of a version does not count."""
    here = {"ray": "2.60.0", "torch": "2.13.0+cpu", "numpy": "2.4.6", "PyYAML": "6", "scipy": None}
    there = {**here, "torch": "2.13.0+cu128"}
    driver = facts("laptop", versions=here)
    nodes = [
        facts("node-a", "10.0.0.6", versions=there),
        facts("node-b", "10.0.0.7", versions={**there, "torch": "2.12.1", "numpy": "2.3.0"}),
        facts("node-c", "10.0.0.8", versions={**there, "torch": "2.12.1", "numpy": "2.0.1"}),
        facts("node-d", "10.0.0.9", versions={**there, "torch": None}, python="3.12.1"),
        facts("node-e", versions={**there, "ray": "2.59.0", "PyYAML": "5"}, python="3.11.9"),
    ]

    assert differences(nodes, driver) == [
        "ray: 2.60.0 here, 2.59.0 on node-e",
        "Python: 3.11 here, 3.12 on node-d (10.0.0.9)",
        "torch: 2.13.0 here, 2.12.1 on node-b (10.0.0.7), node-c (10.0.0.8)",
        "numpy: 2.4.6 here, 2.0.1 on node-c (10.0.0.8); 2.3.0 on node-b (10.0.0.7)",
        "PyYAML: 6 here, 5 on node-e",
    ]


def test_equal_nodes_have_no_differences() -> None:
    driver = facts("laptop", versions={"ray": "2.60.0"})

    assert differences([facts("a", versions={"ray": "2.60.0"}), facts("b")], driver) == []


def test_storage_that_all_nodes_share_has_no_problems() -> None:
    assert storage_problems([facts("a", storage=seen()), facts("b", storage=seen())], SHARED) == []


def test_storage_problems_name_the_nodes_and_the_fix() -> None:
    """One line per kind of problem, however many nodes have it."""
    nodes = [
        facts("node-a", "10.0.0.6", storage=seen()),
        facts("node-b", "10.0.0.7", storage=seen(marker=False)),
        facts("node-c", "10.0.0.8", storage=seen(marker=False, exists=False, writable=False)),
        facts("node-d", storage=seen(writable=False, error="Read-only file system")),
        facts("node-e", storage=seen(writable=False, hangs=True, error="no answer within 5 s")),
    ]

    assert storage_problems(nodes, SHARED) == [
        "/shared/results is not the same folder on every node: what this machine writes there is "
        "not seen on node-b (10.0.0.7), node-c (10.0.0.8). Mount a shared file system at the same "
        "path on all nodes and here, and choose a folder on it with `storage:` in the file or "
        "--set storage=/shared/results.",
        "/shared/results cannot be written on node-d: Read-only file system. Let the user that "
        "Ray runs as write there, or choose another folder with `storage:` in the file or --set "
        "storage=/shared/results.",
        "/shared/results does not answer on node-e: its network file system hangs. Mount it again "
        "there, or take the node out of the cluster.",
    ]
