"""SDSS DR7 corrected frames (`fpC-RRRRRR-BC-FFFF.fit[.gz]`): counts in, nanomaggies out."""

from pathlib import Path

import numpy as np

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.surveys.fits import header_numbers, open_fits
from hpcphotoz.sources.surveys.frame import Frame, read_geometry

_EXPECTED = "an fpC frame of SDSS DR7"


def read_frame(path: Path) -> Frame:
    """Read and calibrate: nMgy = 10 (DN - SOFTBIAS - SKY) / FLUX20, FLUX20: the DN of a 20th-magnitude star.

    Raises:
        BadInput: unreadable, truncated, not a two-dimensional image, or without a keyword of the calibration
            or WCS.
    """
    with open_fits(path) as hdus:
        header = hdus[0].header
        geometry = read_geometry(header, path, _EXPECTED)
        counts = np.asarray(hdus[0].data, np.float32)
    value = header_numbers(header, ("SOFTBIAS", "SKY", "FLUX20"), path, _EXPECTED)
    if not value["FLUX20"] > 0:
        raise BadInput(f"{path}: FLUX20 = {value['FLUX20']:g}: the frame has no photometric calibration")
    image = (counts - (value["SOFTBIAS"] + value["SKY"])) * (10.0 / value["FLUX20"])
    return Frame(path, np.asarray(image, np.float32), geometry)
