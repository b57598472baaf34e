"""The folder of a report: what may be replaced, and how, one file at a time and the page last.

The folder itself is never moved, so that it may be a link, a mount or where a shell stands, and
what else lies in it is not touched. A report that is killed leaves a page whose links all lead
somewhere; what it had not finished is removed by the next one.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from orchestrator import files
from orchestrator.errors import UserError
from orchestrator.report_page import GENERATOR

PAGE = "index.html"
FIGURES = "figures"
_SUFFIXES = (".pdf", ".svg", ".csv")
_UNFINISHED = re.compile(r"\..+\.(?:html|pdf|svg|csv)\.[0-9a-f]{8}\.report")


def require_ours(folder: Path, *, own: bool) -> None:
    """Refuse to replace what no report wrote.

    Args:
        folder: where a report is to go.
        own: it is the one in the results, where other things may lie.

    Raises:
        UserError: it is a file, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder that does not exist yet")
    if not folder.is_dir():
        return
    if not own and any(folder.iterdir()) and not _is_ours(folder / PAGE):
        raise UserError(
            f"{folder} is not empty and holds no report; give a folder that does not exist yet"
        )
    if os.path.lexists(folder / FIGURES) and not (folder / FIGURES).is_dir():
        raise UserError(f"{folder / FIGURES} is no folder, where the figures go; move it elsewhere")


def _is_ours(page: Path) -> bool:
    return page.is_file() and GENERATOR in page.read_text(encoding="utf-8", errors="replace")


def replace(folder: Path, payloads: Mapping[str, bytes]) -> None:
    """Put the files of a report into a folder, and remove those of the one before.

    Nothing of the old report changes before everything new is on the disk. Files of our formats in
    `FIGURES` are of the one before; all other files stay.

    Args:
        folder: made if it is not there.
        payloads: path in the folder -> content: `PAGE`, and files in `FIGURES`.

    Raises:
        StoreError: the storage refuses.
    """
    with files.storage_errors(folder, "write"):
        Path(os.path.realpath(folder)).mkdir(parents=True, exist_ok=True)  # through a dead link too
        figures = folder / FIGURES
        if len(payloads) > 1:
            figures.mkdir(exist_ok=True)
        _remove_unfinished(folder)
        ending = f"{files.nonce()}.report"
        hidden = {}
        try:
            for name, payload in payloads.items():
                path = folder / name
                hidden[name] = path.with_name(f".{path.name}.{ending}")
                hidden[name].write_bytes(payload)
                files.sync(hidden[name])
            for name in sorted(payloads, key=lambda name: name == PAGE):
                hidden[name].replace(folder / name)
        finally:
            for path in hidden.values():
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        if figures.is_dir():
            for path in figures.iterdir():
                if path.suffix in _SUFFIXES and f"{FIGURES}/{path.name}" not in payloads:
                    path.unlink()
            files.sync(figures)
            if not any(figures.iterdir()):
                figures.rmdir()
        files.sync(folder)


def _remove_unfinished(folder: Path) -> None:
    """What an earlier report had written when it was killed."""
    for place in (folder, folder / FIGURES):
        for path in place.iterdir() if place.is_dir() else ():
            if _UNFINISHED.fullmatch(path.name):
                path.unlink(missing_ok=True)
