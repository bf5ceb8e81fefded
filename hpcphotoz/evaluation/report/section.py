"""A further measurement in a report: its part of the page and of `metrics.json`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TextTable = Sequence[Sequence[str]]  # rows of cells, the head first


@dataclass(frozen=True)
class ReportSection:
    """What one measurement adds to a report.

    Attributes:
        key: its key in `metrics.json`, and the beginning of its files' names; a run of that name is refused.
        title: heading on the page.
        text: what was measured and how to read it, plain text of one paragraph.
        tables: the head first; cells are plain text. Columns of numbers are aligned, and sorted by value.
        figures: PNG images by a name that says what they show; `figure.figure_png` draws them.
        record: what `metrics.json` holds: numbers, text, lists and mappings, without NaN and infinities.
        alts: what is to be seen in a figure, by its name, for those who cannot see it; default: the name.
        captions: what each of the tables shows, with its units; default: none.
    """

    key: str
    title: str
    text: str
    tables: Sequence[TextTable] = ()
    figures: Mapping[str, bytes] = field(default_factory=dict)
    record: Any = None
    alts: Mapping[str, str] = field(default_factory=dict)
    captions: Sequence[str] = ()


@dataclass(frozen=True)
class FigureFile:
    """A figure of a report.

    Attributes:
        file: name of its PNG file.
        alt: what is to be seen.
        png: the image.
    """

    file: str
    alt: str
    png: bytes


def figure_files(sections: Sequence[ReportSection]) -> list[list[FigureFile]]:
    """The figures of each section, as files of different names such as `redshifts-standard-clean.png`."""
    taken: set[str] = set()
    found: list[list[FigureFile]] = []
    for section in sections:
        files = []
        for name, png in section.figures.items():
            stem = plain_name(f"{section.key} {name}")
            file, number = f"{stem}.png", 2
            while file in taken:
                file, number = f"{stem}-{number}.png", number + 1
            taken.add(file)
            files.append(FigureFile(file, section.alts.get(name, f"{section.title}: {name}"), png))
        found.append(files)
    return found


def plain_name(text: str) -> str:
    """Text as a part of a file's name or of a link: lower case, digits, `.`, `_` and `-`; at most 80."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-.")[:80]
