"""Properties that the sections of a report share."""

import struct

from hpcphotoz.evaluation.report.section import ReportSection

WIDEST_PX = 470  # CSS pixels of a picture: at 400 px of width, text of 10 points is still 11 pixels high


def check_section(section: ReportSection) -> None:
    """Assert that pictures have alternative texts with axes and numbers, and tables have captions."""
    assert set(section.alts) == set(section.figures)
    for name, alt in section.alts.items():
        assert len(alt) > 80 and any(c.isdigit() for c in alt), (name, alt)
        assert " against " in alt or " axis" in alt or "in each band" in alt or " over " in alt, (name, alt)
        png = section.figures[name]
        assert png.startswith(b"\x89PNG")
        at = png.index(b"pHYs") + 4
        pixels, per_metre = struct.unpack(">I", png[16:20])[0], struct.unpack(">I", png[at : at + 4])[0]
        assert pixels / per_metre / 0.0254 * 100 < WIDEST_PX, name
    assert len(section.captions) == len(section.tables)
    assert all(len(row) == len(table[0]) for table in section.tables for row in table)
