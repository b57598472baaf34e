"""What to do in a test whose service (PostgreSQL, a browser) is not installed."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip with a reason that can be seen; where SPECTRAL_SWEEPS_SERVICES=required (CI), fail."""
    if os.environ.get("SPECTRAL_SWEEPS_SERVICES") == "required":
        pytest.fail(reason)
    pytest.skip(reason)
