"""Tables in HTML, as notebooks show them for datasets, batches, networks and PDFs."""

import html
from collections.abc import Sequence


def html_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], more: int = 0) -> str:
    """A table below a title; no text in it is taken as HTML.

    Args:
        title: one line.
        heads: titles of the columns; empty: none, and the first cell of a row is its title.
        rows: texts of the cells.
        more: number of rows that are left out at the end.
    """
    head = "".join(f"<th>{html.escape(one)}</th>" for one in heads)
    lines = [f"<tr>{head}</tr>"] if heads else []
    for row in rows:
        cells = [f"<td>{html.escape(cell)}</td>" for cell in row]
        if not heads:
            cells[0] = f"<th>{html.escape(row[0])}</th>"
        lines.append(f"<tr>{''.join(cells)}</tr>")
    rest = f"<p>and {more:,} more</p>" if more > 0 else ""
    return f"<p><strong>{html.escape(title)}</strong></p><table>{''.join(lines)}</table>{rest}"
