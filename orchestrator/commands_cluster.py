"""The commands about a cluster: `sweep submit | logs | cancel | doctor`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

COMMANDS: tuple[Callable[..., Any], ...] = ()
