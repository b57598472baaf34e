"""The report as one HTML page that needs nothing else: style, tables and images are inside it.

The page is also well-formed XML, so that any parser can check it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from urllib.parse import quote

from orchestrator.figures_text import permitted

GENERATOR = "spectral-sweeps report"
"""Marks a page as ours: what may be replaced."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --dim: #5b6570; --rule: #d8dde3;
  --link: #0b5cad; --shade: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --paper: #15181c; --dim: #a0a9b4;
  --rule: #363c44; --link: #7db7f2; --shade: #1e2329; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--rule);
  overflow-wrap: anywhere; }
h3 { font-size: 1rem; }
a { color: var(--link); }
p, li { max-width: 48rem; }
nav ul { columns: 2 20rem; padding-left: 1.2rem; }
.dim { color: var(--dim); font-size: 0.9rem; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
.wide + .wide { margin-top: 1rem; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.25rem 0.75rem 0.25rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; white-space: pre-wrap; }
td { min-width: 4rem; }
figure { margin: 1rem 0; }
figure img { display: block; width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
pre { background: var(--shade); padding: 0.75rem; overflow-x: auto; font-size: 0.8rem; }
@media print { nav { display: none; } figure { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        header: names of the columns.
        rows: as many texts each.
        about: what stands above it.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    about: str = ""


@dataclass(frozen=True)
class Image:
    """One figure as the page shows it.

    Attributes:
        png: the image.
        width: of it in pixels.
        height: likewise.
        alt: what it shows, for those who do not see it.
        how: how to read it.
        notes: what is hidden or left out.
        links: (text, relative path) of the same figure as files.
    """

    png: bytes
    width: int
    height: int
    alt: str
    how: str
    notes: Sequence[str]
    links: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """A part of the page with an entry in the table of contents.

    Attributes:
        name: fit for a link.
        title: its heading.
        parts: paragraphs (text), tables and images, in order.
        source: a text shown verbatim at the end, folded away.
    """

    name: str
    title: str
    parts: Sequence[str | Table | Image]
    source: tuple[str, str] | None = field(default=None)


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    contents = "\n".join(
        f'<li><a href="#{escape(each.name)}">{_text(each.title)}</a></li>' for each in sections
    )
    body = "\n".join(_section(each) for each in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<meta name="generator" content="{GENERATOR}" />
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{_text(title)}</h1>
<nav aria-label="Contents"><ul>
{contents}
</ul></nav>
{body}
</main>
</body>
</html>
"""


def _section(section: Section) -> str:
    parts = "\n".join(map(_part, section.parts))
    if section.source is not None:
        summary, text = section.source
        parts += f"\n<details><summary>{_text(summary)}</summary><pre>{_text(text)}</pre></details>"
    head = f'<h2 id="{escape(section.name)}">{_text(section.title)}</h2>'
    return f"<section>\n{head}\n{parts}\n</section>"


def _part(part: str | Table | Image) -> str:
    if isinstance(part, str):
        return f"<p>{_text(part)}</p>"
    return _table(part) if isinstance(part, Table) else _image(part)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in table.header)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    about = f'<p class="dim">{_text(table.about)}</p>\n' if table.about else ""
    top = f"<thead><tr>{head}</tr></thead>" if any(table.header) else ""
    return f'{about}<div class="wide"><table>{top}<tbody>\n{rows}\n</tbody></table></div>'


def _image(image: Image) -> str:
    data = base64.b64encode(image.png).decode()
    least = min(round(image.width * 0.55), 720)  # on a phone: scroll rather than shrink to dust
    links = ", ".join(f'<a href="{quote(path)}">{_text(text)}</a>' for text, path in image.links)
    notes = f'<p class="dim">Hidden or left out: {_text("; ".join(image.notes))}.</p>'
    return (
        f'<figure><div class="wide"><img src="data:image/png;base64,{data}" '
        f'alt="{_text(image.alt)}" width="{image.width}" height="{image.height}" '
        f'style="min-width: {least}px; max-width: {image.width}px" /></div>\n'
        f"<figcaption><p><strong>How to read.</strong> {_text(image.how)}</p>"
        f"{notes if image.notes else ''}"
        + (f'<p class="dim">This figure as {links}.</p>' if links else "")
        + "</figcaption></figure>"
    )


def _text(text: str) -> str:
    """Escaped, without the characters that no page may hold."""
    return escape(permitted(text))
