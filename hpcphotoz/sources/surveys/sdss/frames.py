"""SDSS frames of DR7 and of DR8 and later.

DR7 corrected frames are `fpC-RRRRRR-BC-FFFF.fit[.gz]`, in counts. Frames of DR8 and later are
`frame-B-RRRRRR-C-FFFF.fits[.bz2|.gz]`: HDU 0 is the image in nanomaggies, with the sky subtracted; HDU 1 is
the calibration that it has been multiplied by (nMgy per count, one value a column); HDU 2 is a table with the
subtracted sky (columns ALLSKY, XINTERP, YINTERP). The last two only serve to go back to counts, but a file
without them is not whole.
"""

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.surveys.fits import header_numbers, open_fits, read_header
from hpcphotoz.sources.surveys.frame import Frame, Geometry, read_geometry
from hpcphotoz.sources.surveys.sdss.calibration import nmgy_per_count, psf_width
from hpcphotoz.sources.surveys.sdss.masks import read_mask
from hpcphotoz.sources.surveys.survey import BandFiles

FPC_EXPECTED = "an fpC frame of SDSS DR7"
_DR8_EXPECTED = "a frame of SDSS DR8 or later"


def read_fpc(files: BandFiles) -> Frame:
    """Reads and calibrates a DR7 frame: nMgy = `nmgy_per_count` (DN - SOFTBIAS - SKY).

    Raises:
        BadInput: unreadable, truncated, not a two-dimensional image, or without a keyword of the calibration
            or WCS.
    """
    path = files.image
    with open_fits(path) as hdus:
        header = hdus[0].header
        geometry = read_geometry(header, path, FPC_EXPECTED)
        counts = np.asarray(hdus[0].data, np.float32)
    value = header_numbers(header, ("SOFTBIAS", "SKY"), path, FPC_EXPECTED)
    image = (counts - (value["SOFTBIAS"] + value["SKY"])) * nmgy_per_count(files, header)
    return _frame(files, np.asarray(image, np.float32), geometry)


def read_dr8_frame(files: BandFiles) -> Frame:
    """Reads a frame of DR8 or later, whose image is calibrated already.

    Raises:
        BadInput: unreadable, truncated, not of the layout above, without a keyword of the WCS, or in another
            unit.
    """
    path = files.image
    with open_fits(path) as hdus:
        header = hdus[0].header
        geometry = read_geometry(header, path, _DR8_EXPECTED)
        unit = str(header.get("BUNIT", "nanomaggy")).strip().lower()
        if not unit.startswith(("nanomagg", "nmgy")):
            raise BadInput(f"{path}: BUNIT = '{unit}', not nanomaggies: expected {_DR8_EXPECTED}")
        if len(hdus) < 3 or np.shape(hdus[1].data) != (geometry.shape[1],):
            raise BadInput(
                f"{path}: HDU 1 is no calibration of {geometry.shape[1]} columns, or HDU 2 is absent: "
                f"expected {_DR8_EXPECTED}"
            )
        table = getattr(hdus[2], "columns", None)
        lacking = {"ALLSKY", "XINTERP", "YINTERP"} - set(table.names if table is not None else ())
        if lacking:
            raise BadInput(f"{path}: HDU 2 lacks {', '.join(sorted(lacking))}: expected {_DR8_EXPECTED}")
        return _frame(files, np.asarray(hdus[0].data, np.float32), geometry)


def read_frame_geometry(files: BandFiles) -> Geometry:
    """Reads the place of a frame of either kind from its header."""
    return read_geometry(read_header(files.image), files.image, "an SDSS frame")


def _frame(files: BandFiles, image: npt.NDArray[np.float32], geometry: Geometry) -> Frame:
    flags = None if files.mask is None else read_mask(files.mask, geometry.shape)
    return Frame(files.image, files.band, image, geometry, flags, psf_fwhm=psf_width(files))
