"""The point spread function of an SDSS field, from its `psField-RRRRRR-C-FFFF.fit`.

HDU 1 to 5 (u, g, r, i, z) hold Karhunen-Loeve eigenimages and, for each, a polynomial of the position in the
frame (Lupton et al. 2001, "The SDSS Imaging Pipelines"); HDU 6 holds one row of figures of the whole field.
It was fitted to pixels of stars in the frame, so it includes the response of the square pixel.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.constants import BANDS
from hpcphotoz.sources.surveys.fits import open_fits
from hpcphotoz.sources.surveys.frame import Floats

_SCALE = 0.001  # the polynomials are in thousands of pixels
_SUMMARY = 6


@dataclass(frozen=True)
class BandPSF:
    """One band's point spread function anywhere in the frame."""

    images: Floats  # (component, y, x) eigenimages, odd sides
    coefficients: Floats  # (component, power of row, power of column)

    def at(self, x: float, y: float) -> Floats:
        """Returns the image (side, side) of a star of unit flux at column x, row y, in the middle pixel."""
        rows = (y * _SCALE) ** np.arange(self.coefficients.shape[1])
        columns = (x * _SCALE) ** np.arange(self.coefficients.shape[2])
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
        bands = tuple(_read_band(hdus[1 + b].data) for b in range(len(BANDS)))
        row = hdus[_SUMMARY].data[0]
        width, gain = (np.array(row[name], np.float64) for name in ("psf_width", "gain"))
    for name, values in (("psf_width", width), ("gain", gain)):
        if values.shape != (len(BANDS),) or not (np.isfinite(values) & (values > 0)).all():
            raise BadInput(f"{path}: {name} = {values.tolist()}: five positive numbers expected")
    return FieldPSF(bands, width, gain)


def _read_band(table: Any) -> BandPSF:
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
