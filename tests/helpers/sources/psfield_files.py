"""Writes psField files, the PSFs of an SDSS field, as the survey does."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from hpcphotoz.sources.constants import PIXEL_SCALE

Array = npt.NDArray[Any]
SIDE = 51
GAIN = (1.6, 4.0, 4.8, 4.9, 4.7)

# Full width at half maximum of the Gaussian with the same noise-equivalent area, in roots of that area.
_WIDTH = 2 * np.sqrt(2 * np.log(2)) / np.sqrt(4 * np.pi)


def effective_width(image: npt.NDArray[Any]) -> float:
    """Full width at half maximum, pixels, of the Gaussian with this image's noise-equivalent area
    (sum p)^2 / sum p^2: what SDSS calls `psf_width`."""
    return float(_WIDTH * image.sum() / np.sqrt((image**2).sum()))


def gaussian(sigma: float, dx: float = 0.0, dy: float = 0.0) -> Array:
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE // 2
    image = np.exp(-((x - dx) ** 2 + (y - dy) ** 2) / (2 * sigma**2))
    return np.asarray(image / image.sum())


def components(sigma: float) -> tuple[Array, Array]:
    """Eigenimages and polynomials of a Gaussian that widens with row^2 and leans with row times column."""
    images = np.stack([gaussian(sigma), gaussian(1.5 * sigma), gaussian(sigma, 0.5) - gaussian(sigma, -0.5)])
    polynomials = np.zeros((3, 3, 2))
    polynomials[0, 0, 0], polynomials[1, 2, 0], polynomials[2, 1, 1] = 1.0, 0.3, 0.2
    return images, polynomials


def write_psfield(path: Path, sigmas: tuple[float, ...] = (1.6, 1.5, 1.4, 1.3, 1.4), **changes: Any) -> Path:
    """Write a psField file like SDSS: 5 x 5 coefficients, of which those of the polynomial are set."""
    hdus: list[fits.PrimaryHDU | fits.BinTableHDU] = [fits.PrimaryHDU()]
    for sigma in sigmas:
        images, polynomials = components(sigma)
        stored = np.full((3, 5, 5), 1e30, np.float32)
        stored[:, 0, 4] = np.nan
        stored[:, :3, :2] = polynomials
        pixels = np.empty(3, object)
        for k, image in enumerate(images):
            pixels[k] = image.astype(np.float32).ravel()
        integers = {"nrow_b": 3, "ncol_b": 2, "RNROW": SIDE, "RNCOL": SIDE, **changes}
        columns = [fits.Column(name, "1J", array=np.full(3, value)) for name, value in integers.items()]
        columns += [
            fits.Column("c", "25E", dim="(5,5)", array=stored),
            fits.Column("RROWS", "1PE()", array=pixels),
        ]
        hdus.append(fits.BinTableHDU.from_columns(columns))
    widths = [effective_width(gaussian(sigma)) * PIXEL_SCALE for sigma in sigmas]
    summary = [fits.Column(name, "5E", array=[row]) for name, row in (("psf_width", widths), ("gain", GAIN))]
    hdus.append(fits.BinTableHDU.from_columns(summary))
    fits.HDUList(hdus).writeto(path)
    return path
