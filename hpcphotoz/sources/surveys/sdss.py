"""SDSS frames of DR7 and of DR8 and later, and the mask planes and point spread functions of DR7.

DR7 corrected frames are `fpC-RRRRRR-BC-FFFF.fit[.gz]`, in counts. Frames of DR8 and later are
`frame-B-RRRRRR-C-FFFF.fits[.bz2|.gz]`: HDU 0 is the image in nanomaggies, with the sky subtracted; HDU 1 is
the calibration that it has been multiplied by (nMgy per count, one value a column); HDU 2 is a table with the
subtracted sky (columns ALLSKY, XINTERP, YINTERP). The last two only serve to go back to counts, but a file
without them is not whole.

Mask planes, `fpM-RRRRRR-BC-FFFF.fit[.gz]`, flag the pixels of a corrected frame that are not to be trusted.
HDU k + 1 is the plane of value k in the last HDU's table of names. A plane is a list of object masks; the
column `s` of a mask holds its spans as triples of big-endian int16: row, first and last column, from 0.

The point spread function of a field is in `psField-RRRRRR-C-FFFF.fit`. HDU 1 to 5 (u, g, r, i, z) hold
Karhunen-Loeve eigenimages and, for each, a polynomial of the position in the frame (Lupton et al. 2001, "The
SDSS Imaging Pipelines"); HDU 6 holds one row of figures of the whole field. It was fitted to pixels of stars
in the frame, so it includes the response of the square pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.constants import BANDS
from hpcphotoz.sources.surveys.fits import header_numbers, open_fits
from hpcphotoz.sources.surveys.frame import Floats, Frame, read_geometry

_FPC_EXPECTED = "an fpC frame of SDSS DR7"
_DR8_EXPECTED = "a frame of SDSS DR8 or later"
# Planes of pixels that were filled in instead of measured, or that are not sky, whatever galaxy is there.
# INTERP contains SATUR and CR, and also the camera's dead columns, 11 to 19 of 2048 in u, g, r and i: it
# would lose one 64-pixel stamp in three, for columns that the survey interpolated well. NOTCHECKED is the
# frame's edge.
BAD_PLANES = ("SATUR", "CR", "GHOST")
_PREFIX = "S_MASK_"
_PSF_SCALE = 0.001  # its polynomials are in thousands of pixels
_PSF_SUMMARY = 6
MaskFlags = npt.NDArray[np.uint8]  # (y, x), bit k: plane k


def read_fpc(path: Path) -> Frame:
    """Reads and calibrates a DR7 frame.

    nMgy = 10 (DN - SOFTBIAS - SKY) / FLUX20, where FLUX20 is the DN of a star of magnitude 20.

    Raises:
        BadInput: unreadable, truncated, not a two-dimensional image, or without a keyword of the calibration
            or WCS.
    """
    with open_fits(path) as hdus:
        header = hdus[0].header
        geometry = read_geometry(header, path, _FPC_EXPECTED)
        counts = np.asarray(hdus[0].data, np.float32)
    value = header_numbers(header, ("SOFTBIAS", "SKY", "FLUX20"), path, _FPC_EXPECTED)
    if not value["FLUX20"] > 0:
        raise BadInput(f"{path}: FLUX20 = {value['FLUX20']:g}: the frame has no photometric calibration")
    image = (counts - (value["SOFTBIAS"] + value["SKY"])) * (10.0 / value["FLUX20"])
    return Frame(path, np.asarray(image, np.float32), geometry)


def read_dr8_frame(path: Path) -> Frame:
    """Reads a frame of DR8 or later, whose image is calibrated already.

    Raises:
        BadInput: unreadable, truncated, not of the layout above, without a keyword of the WCS, or in another
            unit.
    """
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
        return Frame(path, np.asarray(hdus[0].data, np.float32), geometry)


def read_mask(path: Path, shape: tuple[int, int], planes: Sequence[str] = BAD_PLANES) -> MaskFlags:
    """Reads mask planes: an image (y, x) with bit k set where plane k of these flags the pixel.

    Args:
        path: the fpM file of the frame's band.
        shape: rows and columns of the frame.
        planes: at most eight of INTERP, SATUR, NOTCHECKED, OBJECT, BRIGHTOBJECT, BINOBJECT, CATOBJECT,
            SUBTRACTED, GHOST, CR.

    Raises:
        BadInput: unreadable, not mask planes, a plane that the file does not have, or a span outside `shape`.
    """
    flags = np.zeros(shape, np.uint8)
    with open_fits(path) as hdus:
        values = _plane_numbers(hdus, path)
        for k, plane in enumerate(planes):
            if plane not in values:
                raise BadInput(f"{path}: no mask plane {plane}: it has {', '.join(values)}")
            for y, start, stop in _spans(hdus[values[plane] + 1].data, shape, path):
                flags[y, start:stop] |= 1 << k
    return flags


def _plane_numbers(hdus: Any, path: Path) -> dict[str, int]:
    """Returns the number of each plane by its name."""
    table = hdus[-1].data
    names = getattr(getattr(table, "dtype", None), "names", None) or ()
    if not {"attributeName", "Value"} <= set(names):
        raise BadInput(f"{path}: its last HDU names no mask planes: expected an fpM file of SDSS DR7")
    pairs = zip(table["attributeName"], table["Value"], strict=True)
    found = {str(name).removeprefix(_PREFIX): int(k) for name, k in pairs if str(name).startswith(_PREFIX)}
    if max(found.values(), default=0) + 2 > len(hdus) - 1:
        raise BadInput(f"{path}: {len(hdus) - 2} mask planes but {len(found)} names: fetch it again")
    return found


def _spans(table: Any, shape: tuple[int, int], path: Path) -> npt.NDArray[np.intp]:
    """Returns row, first column and the column after the last of each span of a plane."""
    if table is None or not len(table):
        return np.zeros((0, 3), np.intp)
    if not {"nspan", "row0", "col0", "s"} <= set(table.dtype.names):
        raise BadInput(f"{path}: a mask plane without columns nspan, row0, col0, s: expected an fpM file")
    spans = np.frombuffer(b"".join(np.asarray(s, np.uint8).tobytes() for s in table["s"]), ">i2")
    if spans.size != 3 * int(table["nspan"].sum()):
        raise BadInput(f"{path}: {spans.size} span values for {table['nspan'].sum()} spans: fetch it again")
    if np.any(table["row0"]) or np.any(table["col0"]):
        raise BadInput(f"{path}: a mask with an offset (row0, col0): only masks of whole frames are read")
    row, first, last = spans.reshape(-1, 3).T.astype(np.intp)
    # A NOTCHECKED span of run 6377 camcol 4 field 399 in g starts at column -1: cut it off, do not refuse it.
    first = np.maximum(first, 0)
    if row.min() < 0 or row.max() >= shape[0] or last.max() >= shape[1]:
        raise BadInput(f"{path}: a masked pixel outside the frame of {shape[1]} x {shape[0]} pixels")
    return np.stack([row, first, last + 1], axis=1)


@dataclass(frozen=True)
class BandPSF:
    """One band's point spread function anywhere in the frame."""

    images: Floats  # (component, y, x) eigenimages, odd sides
    coefficients: Floats  # (component, power of row, power of column)

    def at(self, x: float, y: float) -> Floats:
        """Returns the image (side, side) of a star of unit flux at column x, row y, in the middle pixel."""
        rows = (y * _PSF_SCALE) ** np.arange(self.coefficients.shape[1])
        columns = (x * _PSF_SCALE) ** np.arange(self.coefficients.shape[2])
        image = np.einsum("kij,i,j,kyx->yx", self.coefficients, rows, columns, self.images, optimize=True)
        return np.asarray(image / image.sum())


@dataclass(frozen=True)
class FieldPSF:
    """All five bands of one field."""

    bands: tuple[BandPSF, ...]  # in the order of BANDS
    width: Floats  # (band,) the file's own `psf_width`: effective full width at half maximum, arcsec
    gain: Floats  # (band,) electrons per DN


def read_psf(path: Path) -> FieldPSF:
    """Read a psField file.

    Raises:
        BadInput: missing, unreadable, truncated, or not laid out as a psField file.
    """
    if not path.is_file():
        raise BadInput(f"{path}: missing: the field's psField file is needed for its PSF and gain")
    with open_fits(path) as hdus:
        bands = tuple(_read_band_psf(hdus[1 + b].data) for b in range(len(BANDS)))
        row = hdus[_PSF_SUMMARY].data[0]
        width, gain = (np.array(row[name], np.float64) for name in ("psf_width", "gain"))
    for name, values in (("psf_width", width), ("gain", gain)):
        if values.shape != (len(BANDS),) or not (np.isfinite(values) & (values > 0)).all():
            raise BadInput(f"{path}: {name} = {values.tolist()}: five positive numbers expected")
    return FieldPSF(bands, width, gain)


def _read_band_psf(table: Any) -> BandPSF:
    powers = {(int(row["nrow_b"]), int(row["ncol_b"])) for row in table}
    sides = {(int(row["rnrow"]), int(row["rncol"])) for row in table}
    if len(powers) != 1 or len(sides) != 1:
        raise ValueError(f"components of different sizes: {sorted(sides)} pixels, {sorted(powers)} powers")
    (n_row, n_column), (height, width) = powers.pop(), sides.pop()
    if height != width or height % 2 == 0:
        raise ValueError(f"eigenimages of {width} x {height} pixels: an odd square expected")
    # The rest of the 5 x 5 array is not initialised: NaN and 1e38 were seen there.
    coefficients = np.array([row["c"] for row in table], np.float64)[:, :n_row, :n_column]
    images = np.array([row["rrows"] for row in table], np.float64).reshape(-1, height, width)
    if coefficients.shape[1:] != (n_row, n_column) or not np.isfinite(coefficients).all():
        raise ValueError(f"no finite {n_row} x {n_column} polynomial coefficients")
    if not np.isfinite(images).all() or not (images[0].sum() * coefficients[0, 0, 0]) > 0:
        raise ValueError("eigenimages that are not finite or hold no light")
    return BandPSF(images, coefficients)
