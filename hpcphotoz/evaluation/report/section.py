"""A further measurement in a report: its part of the page and of `metrics.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TextTable = Sequence[Sequence[str]]  # rows of cells, the head first


@dataclass(frozen=True)
class ReportSection:
    """What one measurement adds to a report.

    Attributes:
        key: its key in `metrics.json`; a run of that name is refused.
        title: heading on the page.
        text: what was measured and how to read it, plain text of one paragraph.
        tables: the head first; cells are plain text.
        figures: PNG images by a name that says what they show.
        record: what `metrics.json` holds: numbers, text, lists and mappings, without NaN and infinities.
    """

    key: str
    title: str
    text: str
    tables: Sequence[TextTable] = ()
    figures: Mapping[str, bytes] = field(default_factory=dict)
    record: Any = None
