"""Set before torch is imported anywhere: what makes one-thread results repeat bit for bit."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

ORDER = (
    "orchestrator/test_cluster.py",
    "orchestrator/test_run.py",
    "spectral/",
    "orchestrator/test_resume.py",
    "orchestrator/test_jobs.py",
    "tasks/",
    "orchestrator/test_connection.py",
    "test_slurm.py",
    "test_demo.py",
    "orchestrator/test_postgres.py",
    "orchestrator/test_shipping.py",
    "orchestrator/test_tracking.py",
    "orchestrator/test_doctor.py",
)
"""A file goes to one process as a whole. Those that wait for Ray, servers and processes come early,
so that none of them is left alone at the end, and between files that compute, so that seldom more
than two clusters are up at once."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of `ORDER` before all others; the order is otherwise as collected."""
    here = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(here).as_posix()
        return next((i for i, start in enumerate(ORDER) if name.startswith(start)), len(ORDER))

    items.sort(key=place)
