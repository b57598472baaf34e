"""Set before torch is imported anywhere: what makes one-thread results repeat bit for bit."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

LONGEST_FIRST = (
    "orchestrator/test_cluster.py",
    "orchestrator/test_run.py",
    "orchestrator/test_resume.py",
    "orchestrator/test_jobs.py",
    "orchestrator/test_connection.py",
    "test_slurm.py",
    "test_demo.py",
    "orchestrator/test_postgres.py",
    "orchestrator/test_shipping.py",
    "orchestrator/test_tracking.py",
    "orchestrator/test_doctor.py",
)
"""Files whose tests wait for Ray, servers and processes. A file goes to one process as a whole, so
one of these that begins last would keep a single process busy long after the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of `LONGEST_FIRST` before all others; the order is otherwise as collected."""
    place = {str(Path(__file__).parent / name): i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(str(item.path), len(place)))
