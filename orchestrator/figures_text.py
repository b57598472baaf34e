"""Words in figures: a user's names and values as they stand, and short enough for a label."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from typing import Any

LONGEST = 40
"""Characters of a level in a label; tables and CSV have it in full."""
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def permitted(text: str) -> str:
    """Without the characters that XML 1.0 forbids, escaped or not (its section 2.2)."""
    return _FORBIDDEN.sub("", text)


def literal(text: object) -> str:
    r"""A text that matplotlib shows as it stands: no ``$`` in it begins a formula.

    The setting ``text.parse_math`` would do the same to the powers of ten beside an axis.
    """
    return permitted(str(text)).replace("$", r"\$")


def shorter(value: Any, longest: int = LONGEST) -> str:
    """A level on one line; of a long one its beginning and its end, `longest` characters."""
    text = " ".join(str(value).split())
    if len(text) <= longest:
        return text
    head = (longest - 1) * 5 // 8
    return f"{text[:head]}…{text[head + 1 - longest :]}"


def slug(name: str) -> str:
    """A name fit for a file."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def untaken(name: str, taken: set[str]) -> str:
    """The name of a file, numbered if it is taken in the folder; it is taken from here on.

    Args:
        name: fit for a file.
        taken: such names in lower case, as some file systems tell them apart no better.
    """
    numbered = (name, *(f"{name}_{number}" for number in range(2, len(taken) + 3)))
    free = next(each for each in numbered if each.lower() not in taken)
    taken.add(free.lower())
    return free


@contextlib.contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """Draw a character that the font lacks as an empty box, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        yield
