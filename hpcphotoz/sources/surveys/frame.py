"""One calibrated frame of one band: its pixels, its place on the sky, and resampling."""

import math
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.noise import frame_sky_sigma, variance_sky_sigma
from hpcphotoz.sources.optional_imports import sources_extra
from hpcphotoz.sources.surveys.fits import Window, header_numbers

with sources_extra():
    from astropy.coordinates import angular_separation
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyWarning
    from astropy.wcs import WCS

Floats = npt.NDArray[np.floating[Any]]

LANCZOS_ORDER = 3
_PROJECTIONS = ("TAN", "TAN-SIP", "TPV")
# The keywords of a WCS, and no others: astropy warns of old spellings such as RADECSYS and EQUINOX, and
# surveys add alternative systems (CTYPE1A) in other units.
_WCS_KEYWORD = re.compile(
    r"(CTYPE|CRPIX|CRVAL|CUNIT|CDELT|CROTA)[12]|(CD|PC)[12]_[12]|PV[12]_\d+|LONPOLE|LATPOLE|"
    r"(A|B|AP|BP)_(ORDER|\d+_\d+)"
)
_ROUND_TRIP = 0.1  # pixels; where an iteration for a distortion did not converge


@dataclass(frozen=True)
class Geometry:
    """WCS and size of a frame."""

    wcs: Any  # astropy WCS; pixel positions count from 0 at the centre of the first pixel
    shape: tuple[int, int]  # rows, columns
    distorted: bool = False  # SIP or TPV: wcslib itself keeps no trace of the latter that can be asked for

    @property
    def pixel_area(self) -> float:
        """deg^2 of the tangent plane, without distortion."""
        return abs(float(np.linalg.det(self.wcs.pixel_scale_matrix)))

    def cropped(self, window: Window | None) -> "Geometry":
        """Returns the geometry of part of the frame; None: of all of it."""
        if window is None:
            return self
        rows, columns = (part.indices(size) for part, size in zip(window, self.shape, strict=True))
        return replace(self, wcs=self.wcs.slice(window), shape=(rows[1] - rows[0], columns[1] - columns[0]))

    def local_pixel_area(self, x: float, y: float) -> float:
        """Returns the area on the sky, deg^2, of the pixel at x, y, distortion included."""
        ends = np.array([[x + 0.5, y], [x - 0.5, y], [x, y + 0.5], [x, y - 0.5]])
        ra, dec = np.radians(self.sky(ends)).T
        n = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
        return float(np.degrees(np.degrees(np.linalg.norm(np.cross(n[0] - n[1], n[2] - n[3])))))

    def pixels(self, ra: Floats, dec: Floats) -> Floats:
        """Returns pixel positions x, y (N, 2) of places on the sky, deg, in the frame's half of the sky.

        NaN where the distortion cannot be inverted, which happens only outside the frame.
        """
        if not len(ra):
            return np.zeros((0, 2))
        xy = np.stack(self.wcs.all_world2pix(ra, dec, 0, quiet=True), axis=1)
        if self.distorted:
            off = np.degrees(angular_separation(*np.radians(self.sky(xy)).T, *np.radians([ra, dec])))
            xy[~(off < _ROUND_TRIP * self.pixel_area**0.5)] = np.nan
        return xy

    def sky(self, xy: Floats) -> Floats:
        """Returns ra, dec (N, 2), deg, of pixel positions x, y (N, 2)."""
        return np.stack(self.wcs.all_pix2world(xy[:, 0], xy[:, 1], 0), axis=1)


@dataclass(frozen=True)
class Frame:
    """A calibrated frame of one band."""

    path: Path
    band: str
    image: npt.NDArray[np.float32]  # (y, x) nanomaggies per pixel, sky subtracted
    geometry: Geometry
    # (y, x) bit k: plane k of the survey's `planes` flags the pixel, which is unusable. None: no mask.
    flags: npt.NDArray[np.uint8] | None = None
    variance: npt.NDArray[np.float32] | None = None  # (y, x) nanomaggies^2; 0 or not finite: no data
    psf_fwhm: float | npt.NDArray[np.float32] | None = None  # arcsec, or a map (y, x) of it

    @property
    def mask(self) -> npt.NDArray[np.bool_] | None:
        """(y, x) True: unusable."""
        return None if self.flags is None else self.flags != 0

    @property
    def wcs(self) -> Any:
        """astropy WCS, distortion included; pixel positions count from 0."""
        return self.geometry.wcs

    def holds(self, x: Floats, y: Floats) -> bool:
        """Returns whether `resample` at these positions stays inside the frame."""
        height, width = self.image.shape
        low, high = LANCZOS_ORDER - 1, LANCZOS_ORDER + 1
        inside_x = x.min() >= low and x.max() <= width - high
        return bool(inside_x and y.min() >= low and y.max() <= height - high)

    def sky_sigma(self, x: float, y: float) -> float:
        """Returns the sky sigma of a pixel around a place, nanomaggies.

        From the variance map where there is one, otherwise measured (`frame_sky_sigma`).

        Raises:
            BadInput: the pixels there show no noise, or the map has no variance.
        """
        if self.variance is None:
            sigma, problem = frame_sky_sigma(self.image, x, y), "no noise"
        else:
            sigma, problem = variance_sky_sigma(self.variance, self.mask, x, y), "no variance"
        if not sigma > 0:
            ((ra, dec),) = self.geometry.sky(np.array([[x, y]]))
            raise BadInput(
                f"{self.path}: {problem} around ra = {ra:.4f}, dec = {dec:.4f} deg: is this a sky image?"
            )
        return sigma

    def psf_fwhm_at(self, x: float, y: float) -> float:
        """Returns the PSF's full width at half maximum, arcsec, at a place; NaN: unknown."""
        if self.psf_fwhm is None:
            return math.nan
        if isinstance(self.psf_fwhm, float):
            return self.psf_fwhm
        value = float(self.psf_fwhm[round(y), round(x)])
        return value if value > 0 else math.nan


def pack_planes(*planes: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.uint8] | None:
    """Returns the flags of a frame: bit k of a pixel is that of plane k.

    Args:
        planes: (y, x) True: unusable. None: the frame has no such plane.

    Returns:
        (y, x), or None if there is no plane at all.
    """
    flags = None
    for k, plane in enumerate(planes):
        if plane is not None:
            bits = plane.astype(np.uint8) << np.uint8(k)
            flags = bits if flags is None else flags | bits
    return flags


def read_geometry(header: Any, path: Path, expected: str) -> Geometry:
    """Reads the projection and the size from the header of an image.

    Args:
        header: of the image.
        path: for messages.
        expected: for messages: the kind of frame that is expected.

    Raises:
        BadInput: not a two-dimensional image, a keyword that is absent or unusable, or a projection other
            than TAN, TAN-SIP and TPV.
    """
    if header.get("NAXIS") != 2 or min(header["NAXIS1"], header["NAXIS2"]) <= 2 * LANCZOS_ORDER:
        raise BadInput(f"{path}: holds no two-dimensional image: expected {expected}")
    kinds = [str(header.get(key, "absent")) for key in ("CTYPE1", "CTYPE2")]
    if kinds not in [[f"RA---{name}", f"DEC--{name}"] for name in _PROJECTIONS]:
        raise BadInput(
            f"{path}: projection {', '.join(kinds)}: only TAN, TAN-SIP and TPV frames of RA and DEC are read"
        )
    if "A_ORDER" in header and not kinds[0].endswith("-SIP"):
        raise BadInput(
            f"{path}: has SIP coefficients, but CTYPE1 = '{kinds[0]}': write RA---TAN-SIP, DEC--TAN-SIP if "
            "they are to be applied, otherwise remove A_ORDER and B_ORDER"
        )
    needed = ["CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2"]
    if "CDELT1" not in header:
        needed += ["CD1_1", "CD1_2", "CD2_1", "CD2_2"]
    header_numbers(header, tuple(needed), path, expected)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            cards = fits.Header((key, header[key]) for key in header if _WCS_KEYWORD.fullmatch(key))
            wcs = WCS(cards, naxis=2)
            wcs.wcs.set()
            scale = float(np.linalg.det(wcs.pixel_scale_matrix))
    except (ValueError, MemoryError) as error:  # wcslib's errors are ValueErrors
        raise BadInput(f"{path}: no usable WCS in its header: {' '.join(str(error).split())}") from None
    if not abs(scale) > 0:
        raise BadInput(f"{path}: no usable WCS in its header: its pixels have no area")
    distorted = not kinds[0].endswith("-TAN") or any(key.startswith("PV") for key in cards)
    return Geometry(wcs, (int(header["NAXIS2"]), int(header["NAXIS1"])), distorted)


def resample(frame: Frame, x: Floats, y: Floats) -> Floats:
    """Interpolates the frame at any positions by Lanczos-3, with weights that sum to 1.

    Args:
        frame: must hold the positions.
        x, y: (...) pixel positions from 0.

    Returns:
        (...) nanomaggies per pixel of the frame.
    """
    x0, y0 = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    left, bottom = int(x0.min()) - LANCZOS_ORDER + 1, int(y0.min()) - LANCZOS_ORDER + 1
    box = np.ascontiguousarray(
        frame.image[bottom : int(y0.max()) + LANCZOS_ORDER + 1, left : int(x0.max()) + LANCZOS_ORDER + 1]
    )
    wx, wy = _lanczos_weights(x - x0), _lanczos_weights(y - y0)
    corner = (y0 - bottom - LANCZOS_ORDER + 1) * box.shape[1] + (x0 - left - LANCZOS_ORDER + 1)
    values, answer = box.ravel(), np.zeros(x.shape)
    for j in range(2 * LANCZOS_ORDER):
        row = np.zeros(x.shape)
        for i in range(2 * LANCZOS_ORDER):
            row += wx[i] * values.take(corner + (j * box.shape[1] + i))
        answer += wy[j] * row
    return answer


def _lanczos_weights(fraction: Floats) -> Floats:
    """Returns Lanczos-3 weights (6, ...) of the pixels from 2 before to 3 after a position.

    With d = fraction - k, sinc(d) sinc(d/3) is sin(pi fraction) (-1)^k sin(pi d/3) / d^2 times a constant.
    The first factor cancels when the weights are normalised, and sin(pi d/3) comes from one sine and cosine.
    Calls of sinc took 40 % of the whole ingest.
    """
    f = np.clip(fraction, 1e-9, 1 - 1e-9)  # at a pixel itself its weight is 1 to 1e-9, not 0/0
    sine, cosine = np.sin(f * (np.pi / LANCZOS_ORDER)), np.cos(f * (np.pi / LANCZOS_ORDER))
    weights = np.empty((2 * LANCZOS_ORDER, *f.shape))
    for j, k in enumerate(range(1 - LANCZOS_ORDER, LANCZOS_ORDER + 1)):
        turn = np.pi * k / LANCZOS_ORDER
        weights[j] = (-1) ** k * (sine * np.cos(turn) - cosine * np.sin(turn)) / (f - k) ** 2
    return np.asarray(weights / weights.sum(axis=0))
