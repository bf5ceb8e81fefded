"""One SDSS DR7 corrected frame (`fpC-RRRRRR-BC-FFFF.fit[.gz]`): read, calibrate, resample, measure its
noise."""

import gzip
import io
import math
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.extra import sources_extra

with sources_extra():
    from astropy.io import fits
    from astropy.stats import sigma_clip
    from astropy.utils.exceptions import AstropyWarning
    from astropy.wcs import WCS

Floats = npt.NDArray[np.floating[Any]]

LANCZOS = 3
NEIGHBOURHOOD = 96  # half width, pixels, of the box in which the sky noise of a stamp is measured
# Standard deviation of a unit normal distribution cut at 3 sigma.
_CLIPPED_STD = 0.98658
_KEYS = (
    *("SOFTBIAS", "SKY", "FLUX20", "CTYPE1", "CTYPE2", "CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2"),
    *("CD1_1", "CD1_2", "CD2_1", "CD2_2"),
)


@dataclass(frozen=True)
class Frame:
    """A calibrated frame of one band."""

    path: Path
    image: npt.NDArray[np.float32]  # (y, x) nanomaggies per pixel, sky subtracted
    wcs: Any  # astropy WCS; pixel positions count from 0 at the centre of the first pixel
    pixel_area: float  # deg^2

    def holds(self, x: Floats, y: Floats) -> bool:
        """Whether `resample` at these positions needs no pixel beyond the edge."""
        height, width = self.image.shape
        low, high = LANCZOS - 1, LANCZOS + 1
        inside_x = x.min() >= low and x.max() <= width - high
        return bool(inside_x and y.min() >= low and y.max() <= height - high)


def read_frame(path: Path) -> Frame:
    """Read and calibrate: nMgy = 10 (DN - SOFTBIAS - SKY) / FLUX20, FLUX20: the DN of a 20th-magnitude star.

    Raises:
        BadInput: unreadable, truncated, not a two-dimensional image, or without a keyword of the calibration
            or WCS.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        with warnings.catch_warnings():
            # A truncated file is only a warning to astropy.
            warnings.simplefilter("error", AstropyWarning)
            with fits.open(io.BytesIO(raw)) as hdus:
                header = hdus[0].header
                counts = None if hdus[0].data is None else np.asarray(hdus[0].data, np.float32)
    except (OSError, EOFError, zlib.error, ValueError, TypeError, IndexError, AstropyWarning) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"{path}: not a readable FITS image ({reason}): fetch it again") from None
    if counts is None or counts.ndim != 2 or min(counts.shape) <= 2 * LANCZOS:
        raise BadInput(f"{path}: holds no two-dimensional image: expected an fpC frame")
    lacking = [key for key in _KEYS if key not in header]
    if lacking:
        raise BadInput(f"{path}: its header lacks {', '.join(lacking)}: expected an fpC frame of SDSS DR7")
    if not float(header["FLUX20"]) > 0:
        raise BadInput(f"{path}: FLUX20 = {header['FLUX20']}: the frame has no photometric calibration")
    image = (counts - float(header["SOFTBIAS"]) - float(header["SKY"])) * (10.0 / float(header["FLUX20"]))
    wcs = _wcs(header, path)
    return Frame(path, np.asarray(image, np.float32), wcs, abs(float(np.linalg.det(wcs.wcs.cd))))


def resample(frame: Frame, x: Floats, y: Floats) -> Floats:
    """The frame's values at any positions by Lanczos-3 interpolation, weights normalised to sum 1.

    Args:
        frame: must hold the positions.
        x, y: (...) pixel positions from 0.

    Returns:
        (...) nanomaggies per pixel of the frame.
    """
    x0, y0 = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    steps = range(1 - LANCZOS, LANCZOS + 1)
    wx = _normalised([_lanczos(x - x0 - step) for step in steps])
    wy = _normalised([_lanczos(y - y0 - step) for step in steps])
    answer = np.zeros(x.shape)
    for j, row in enumerate(steps):
        for i, column in enumerate(steps):
            answer += wy[j] * wx[i] * frame.image[y0 + row, x0 + column]
    return answer


def sky_sigma(frame: Frame, x: float, y: float) -> float:
    """Noise per pixel of the frame itself around a position, sources clipped at 3 sigma.

    Resampling smooths noise, so this is larger than the scatter in a resampled stamp. It is a standard
    deviation, not a MAD: counts are whole DN and the noise is 3 to 7 DN, so a MAD would come in coarse steps.

    Returns:
        nanomaggies; 0 where the frame is constant.
    """
    cx, cy = round(x), round(y)
    rows = slice(max(cy - NEIGHBOURHOOD, 0), cy + NEIGHBOURHOOD)
    columns = slice(max(cx - NEIGHBOURHOOD, 0), cx + NEIGHBOURHOOD)
    box = frame.image[rows, columns].astype(np.float64)
    kept = sigma_clip(box, sigma=3, maxiters=None, cenfunc="median", masked=False)
    return float(np.std(kept)) / _CLIPPED_STD


def _wcs(header: Any, path: Path) -> Any:
    # From the numbers alone: the frames' RADECSYS and EQUINOX are old spellings that astropy warns of.
    wcs = WCS(naxis=2)
    try:
        wcs.wcs.ctype = [str(header["CTYPE1"]), str(header["CTYPE2"])]
        wcs.wcs.crpix = [header["CRPIX1"], header["CRPIX2"]]
        wcs.wcs.crval = [header["CRVAL1"], header["CRVAL2"]]
        wcs.wcs.cd = [[header["CD1_1"], header["CD1_2"]], [header["CD2_1"], header["CD2_2"]]]
        wcs.wcs.set()
    except (ValueError, TypeError) as error:  # wcslib's errors are ValueErrors
        raise BadInput(f"{path}: no usable WCS in its header: {' '.join(str(error).split())}") from None
    if [kind[-3:] for kind in wcs.wcs.ctype] != ["TAN", "TAN"]:
        raise BadInput(f"{path}: projection {wcs.wcs.ctype[0]}: only TAN frames are read")
    return wcs


def _lanczos(offset: Floats) -> Floats:
    window = np.sinc(offset) * np.sinc(offset / LANCZOS)
    return np.where(np.abs(offset) < LANCZOS, window, 0.0)


def _normalised(weights: list[Floats]) -> Floats:
    stacked = np.stack(weights)
    return np.asarray(stacked / stacked.sum(axis=0))


def separation(ra: Floats, dec: Floats, ra0: float, dec0: float) -> Floats:
    """Angle on the sky, deg, between positions and one position, deg (haversine)."""
    d_ra, d_dec = np.radians(ra - ra0) / 2, np.radians(dec - dec0) / 2
    cosines = np.cos(np.radians(dec)) * math.cos(math.radians(dec0))
    square = np.sin(d_dec) ** 2 + cosines * np.sin(d_ra) ** 2
    return np.asarray(np.degrees(2 * np.arcsin(np.sqrt(np.clip(square, 0, 1)))))
