"""Frames of SDSS DR8 and later (`frame-B-RRRRRR-C-FFFF.fits[.bz2|.gz]`): nanomaggies, sky subtracted.

HDU 0 is the image, HDU 1 the calibration that it has been multiplied by (nMgy per count, one value a column),
HDU 2 a table with the sky that has been subtracted from it (columns ALLSKY, XINTERP, YINTERP). The last two
are only for going back to counts; a file without them is not whole.
"""

from pathlib import Path

import numpy as np

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.surveys.fits import open_fits
from hpcphotoz.sources.surveys.frame import Frame, read_geometry

_EXPECTED = "a frame of SDSS DR8 or later"


def read_frame(path: Path) -> Frame:
    """Read a frame; its image is taken as it is.

    Raises:
        BadInput: unreadable, truncated, not of the layout above, without a keyword of the WCS, or in another
            unit.
    """
    with open_fits(path) as hdus:
        header = hdus[0].header
        geometry = read_geometry(header, path, _EXPECTED)
        unit = str(header.get("BUNIT", "nanomaggy")).strip().lower()
        if not unit.startswith(("nanomagg", "nmgy")):
            raise BadInput(f"{path}: BUNIT = '{unit}', not nanomaggies: expected {_EXPECTED}")
        if len(hdus) < 3 or np.shape(hdus[1].data) != (geometry.shape[1],):
            raise BadInput(
                f"{path}: HDU 1 is no calibration of {geometry.shape[1]} columns, or HDU 2 is absent: "
                f"expected {_EXPECTED}"
            )
        table = getattr(hdus[2], "columns", None)
        lacking = {"ALLSKY", "XINTERP", "YINTERP"} - set(table.names if table is not None else ())
        if lacking:
            raise BadInput(f"{path}: HDU 2 lacks {', '.join(sorted(lacking))}: expected {_EXPECTED}")
        return Frame(path, np.asarray(hdus[0].data, np.float32), geometry)
