"""The HTML page of a report, self-contained: pictures are embedded, and nothing is requested."""

import base64
import hashlib
import html
import re
import struct
from collections.abc import Sequence
from pathlib import Path

from hpcphotoz.evaluation.report.section import FigureFile, ReportSection, TextTable, plain_name

TITLE = "Photometric redshifts under attack: "
_NUMBER = re.compile(r"[<>≤≥~]?\s*[+−-]?\d[\d,]*\.?\d*(e[+-]?\d+)?(\s|%|/|±|$)")
_WRAPPED = 30  # characters of a cell that is no number
_LONG = 12  # rows of a table that comes after the figures
_NO_NUMBER = ("", "-", "–", "no z_spec")


def render_page(
    data: str,
    lead: str,
    sections: Sequence[ReportSection],
    figures: Sequence[Sequence[FigureFile]],
    footer: str,
) -> str:
    """Render the report as one HTML page.

    Args:
        data: name of the dataset.
        lead: what was measured, below the title.
        sections: from first to last.
        figures: of each section.
        footer: versions of the software.
    """
    links, bodies = [], []
    for i, (section, files) in enumerate(zip(sections, figures, strict=True), start=1):
        anchor = f"{i}-{plain_name(section.title)}"
        title = html.escape(section.title)
        links.append(f'<li><a href="#{anchor}">{title}</a></li>')
        captions = section.captions or [""] * len(section.tables)
        tables = zip(section.tables, captions, strict=True)
        parts = ["".join(_table(table, section.title, text) for table, text in tables), _panels(files)]
        if max(map(len, section.tables), default=0) > _LONG:
            parts.reverse()
        text = html.escape(section.text, quote=False)
        bodies.append(f'<section id="{anchor}"><h2>{title}</h2><p>{text}</p>{"".join(parts)}</section>')
    script = _beside("page.js")
    return _TEMPLATE.format(
        title=html.escape(TITLE + data),
        policy=_POLICY.format(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
        style=_beside("page.css"),
        lead=html.escape(lead),
        links="".join(links),
        sections="\n".join(bodies),
        footer=html.escape(footer),
        script=script,
    )


def _panels(files: Sequence[FigureFile]) -> str:
    return f'<div class="panels">{"".join(map(_image, files))}</div>' if files else ""


def _image(figure: FigureFile) -> str:
    data = base64.b64encode(figure.png).decode()
    alt = html.escape(figure.alt, quote=True)
    return f'<img alt="{alt}" {_size(figure.png)}src="data:image/png;base64,{data}">'


def _size(png: bytes) -> str:
    """Width and height in CSS pixels, 100 an inch, of a PNG that tells its pixels a metre; else empty."""
    at = png.find(b"pHYs")
    if at < 0:
        return ""
    pixels, dots = struct.unpack(">II", png[16:24]), struct.unpack(">II", png[at + 4 : at + 12])
    width, height = (round(100 * n / (per_metre * 0.0254)) for n, per_metre in zip(pixels, dots, strict=True))
    return f'width="{width}" height="{height}" '


def _table(rows: TextTable, title: str, caption: str) -> str:
    """A table in a box that scrolls, by keyboard too; columns of numbers are marked."""
    above = f'<p class="caption">{html.escape(caption)}</p>' if caption else ""  # does not scroll
    head, *body = rows
    kinds = [_kind([row[i] for row in body]) for i in range(len(head))]
    titles = "".join(
        f'<th scope="col"{kind}>{html.escape(cell)}</th>' for cell, kind in zip(head, kinds, strict=True)
    )
    lines = []
    for row in body:
        cells = [f"<td{kind}>{html.escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)]
        cells[0] = f'<th scope="row"{kinds[0]}>{html.escape(row[0])}</th>'
        lines.append(f"<tr>{''.join(cells)}</tr>")
    box = f'class="wide{" many" if len(head) > 7 else ""}" role="region" tabindex="0"'
    return (
        f'{above}<div {box} aria-label="Table: {html.escape(caption or title, quote=True)}"><table>'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _kind(cells: Sequence[str]) -> str:
    """The class of a column: `number`, with units or errors or missing, `long` for text that may wrap."""
    told = [cell for cell in cells if cell.strip() not in _NO_NUMBER]
    if max(map(len, told), default=0) > _WRAPPED:
        return ' class="long"'
    return ' class="number"' if told and all(_NUMBER.match(cell.strip()) for cell in told) else ""


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


# A browser runs the script of this hash alone, and requests nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'"
_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style></head><body><main>
<header><h1>Photometric redshifts under attack</h1>
<p>{lead}</p></header>
<nav aria-label="Contents"><h2>Contents</h2><ol>{links}</ol></nav>
{sections}
<footer>{footer}</footer>
</main>
<script>{script}</script>
</body></html>
"""
