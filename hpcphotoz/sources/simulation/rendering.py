"""Renders galaxies as a drift-scan camera like that of the SDSS sees them.

A galaxy is drawn in Fourier space. GalSim's transforms of a de Vaucouleurs bulge and an exponential disc are
weighted by their fluxes in each band and multiplied by the transforms of the band's point spread function and
of the pixel; one inverse transform a band gives the image. The grid is two stamps wide, or as wide as a large
galaxy needs, so that light that wraps around stays out of the stamp. A point spread function that was
measured in pixels includes the pixel already.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.sources.constants import BANDS, PIXEL_SCALE
from hpcphotoz.sources.optional_imports import sources_extra
from hpcphotoz.sources.simulation.exposure import CAMERA, Exposure
from hpcphotoz.sources.simulation.population import Galaxy
from hpcphotoz.sources.simulation.survey_tables import Floats

with sources_extra():
    import galsim

STAMP = 64  # pixels a side
# The wing of an untruncated de Vaucouleurs profile would wrap around any grid.
_TRUNCATION = 8.0  # half-light radii
_BULGE = galsim.DeVaucouleurs(half_light_radius=1.0, trunc=_TRUNCATION)
_DISC = galsim.Exponential(half_light_radius=1.0)
# Half-light radius in pixels above which the grid is four stamps wide instead of two.
_LARGE_RADIUS = 10.0
_CORE_RADIUS = 8.0  # pixels: radius of the part of a measured star image that gives its centre


def render(galaxy: Galaxy, exposure: Exposure) -> Floats:
    """Renders the noise-free stamp, (5, 64, 64) nanomaggies a pixel.

    The stamp's centre is the pixel position (31.5, 31.5), counting from 0; `exposure.offset` is from there.
    """
    grid = _grid(_grid_size(galaxy, STAMP))
    bulge, disc = _transforms(galaxy, grid.size)
    x, y = (STAMP / 2 - 0.5 + d for d in exposure.offset)
    placed = grid.pixel * grid.shift(x, y)
    images = np.empty((len(BANDS), STAMP, STAMP))
    for band in range(len(BANDS)):
        profile = galaxy.flux_bulge[band] * bulge + galaxy.flux_disc[band] * disc
        psf = _psf(exposure.fwhm[band] / PIXEL_SCALE, grid.k_squared)
        images[band] = grid.image(profile * psf * placed)[:STAMP, :STAMP]
    return images


def render_in_pixels(
    galaxy: Galaxy,
    psfs: Sequence[Floats],  # a band: (side, side), odd, unit flux, of a star measured in pixels
    centres: Sequence[tuple[float, float]],  # a band: x, y of the galaxy in pixels from 0
    side: int,  # pixels of the image
) -> Floats:
    """Renders the noise-free galaxy, (band, side, side) nanomaggies a pixel, through measured star images.

    The centre of light of a star image (`centre_of_light`) is put on the galaxy's place.
    """
    grid = _grid(_grid_size(galaxy, side))
    bulge, disc = _transforms(galaxy, grid.size)
    images = np.empty((len(psfs), side, side))
    for band, (psf, (x, y)) in enumerate(zip(psfs, centres, strict=True)):
        profile = galaxy.flux_bulge[band] * bulge + galaxy.flux_disc[band] * disc
        padded = np.zeros((grid.size, grid.size))
        padded[: len(psf), : len(psf)] = psf
        dx, dy = centre_of_light(psf)
        images[band] = grid.image(profile * np.fft.rfft2(padded) * grid.shift(x - dx, y - dy))[:side, :side]
    return images


def centre_of_light(image: Floats) -> tuple[float, float]:
    """Returns the first moment x, y (pixels from 0) of a star image within 3.2" of its middle."""
    y, x = np.indices(image.shape)
    light = np.where(np.hypot(y - image.shape[0] // 2, x - image.shape[1] // 2) <= _CORE_RADIUS, image, 0.0)
    return float((light * x).sum() / light.sum()), float((light * y).sum() / light.sum())


@dataclass(frozen=True)
class _Grid:
    size: int  # pixels a side
    kx: Floats  # (1, size/2 + 1) rad per pixel
    ky: Floats  # (size, 1)
    k_squared: Floats
    pixel: Floats  # transform of the square pixel

    def shift(self, x: float, y: float) -> npt.NDArray[np.complex128]:
        """Returns the transform of a point at the pixel position x, y from 0."""
        return np.asarray(np.exp(-1j * self.kx * x) * np.exp(-1j * self.ky * y))

    def image(self, transform: npt.NDArray[np.complex128]) -> Floats:
        """Transforms back to pixels (size, size)."""
        return np.fft.irfft2(transform, s=(self.size, self.size))


@cache
def _grid(size: int) -> _Grid:
    kx = 2 * math.pi * np.fft.rfftfreq(size)[None, :]
    ky = 2 * math.pi * np.fft.fftfreq(size)[:, None]
    pixel = np.sinc(kx / (2 * math.pi)) * np.sinc(ky / (2 * math.pi))
    return _Grid(size, kx, ky, kx**2 + ky**2, pixel)


def _grid_size(galaxy: Galaxy, side: int) -> int:
    """Returns the pixels a side of the grid for an image of `side` pixels around the galaxy."""
    radius = max(galaxy.radius_bulge, galaxy.radius_disc) / PIXEL_SCALE
    size = STAMP * (4 if radius > _LARGE_RADIUS else 2)
    while size < _TRUNCATION * radius + side / 2:  # or light from beyond its far edge would reach the image
        size *= 2
    return size


def _transforms(galaxy: Galaxy, size: int) -> tuple[Floats, Floats]:
    """Returns the transforms of the galaxy's bulge and disc, of unit flux each."""
    angle = galaxy.position_angle
    bulge = _transform(_BULGE, galaxy.radius_bulge, galaxy.axis_ratio_bulge, angle, size)
    return bulge, _transform(_DISC, galaxy.radius_disc, galaxy.axis_ratio_disc, angle, size)


def _transform(profile: Any, radius: float, axis_ratio: float, angle: float, size: int) -> Floats:
    """Returns the transform (size, size/2 + 1) of a profile of unit flux and half-light `radius`, arcsec."""
    pixels = radius / PIXEL_SCALE
    # Shear keeps the area, so for a major axis R and a ratio q the radius before shearing is R sqrt(q).
    shaped = profile.dilate(pixels * math.sqrt(axis_ratio)).shear(q=axis_ratio, beta=angle * galsim.radians)
    half = size // 2
    image = galsim.ImageCD(galsim.BoundsI(0, half, -half, half - 1))
    # Without recenter=False GalSim puts k = 0 in the middle of this half plane.
    shaped.drawKImage(image=image, scale=2 * math.pi / size, recenter=False)
    return np.fft.ifftshift(image.array.real, axes=0)


def _psf(fwhm: float, k_squared: Floats) -> Floats:
    """Returns the transform of a double Gaussian of unit flux and this width at half maximum (pixels)."""
    size, height = CAMERA.wide_size, CAMERA.wide_height
    sigma = fwhm / (2 * half_maximum(size, height))
    wide = height * size**2 / (1 + height * size**2)
    narrow_part = np.exp(-0.5 * sigma**2 * k_squared)
    return np.asarray((1 - wide) * narrow_part + wide * np.exp(-0.5 * (sigma * size) ** 2 * k_squared))


def half_maximum(size: float, height: float) -> float:
    """Returns x where exp(-x^2/2) + height exp(-x^2/2 size^2) is half its maximum."""
    x = math.sqrt(2 * math.log(2))
    for _ in range(20):  # Newton's method; converges in five
        narrow, wide = math.exp(-0.5 * x**2), height * math.exp(-0.5 * (x / size) ** 2)
        x += (narrow + wide - 0.5 * (1 + height)) / (x * (narrow + wide / size**2))
    return x
