"""AB magnitudes of fluxes in nanomaggies, and the band in which one magnitude stands for a galaxy."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]

ZERO_POINT = 22.5  # AB magnitude of 1 nMgy


def band_letter(band: str) -> str:
    """The letter among u g r i z y at the end of a band's name (des-g, HSC-R2); empty if there is none."""
    found = re.search(r"(?:^|[^a-z0-9])([ugrizy])[^a-z]*$", band.lower())
    return found[1] if found else ""


def magnitude_band(bands: tuple[str, ...]) -> int:
    """Index of the band of magnitudes: r, also as des-r or HSC-R2, else the middle band."""
    names = [band_letter(band) for band in bands]
    return names.index("r") if "r" in names else len(bands) // 2


def ab_magnitude(flux: Floats) -> Floats:
    """AB magnitude of a flux in nMgy, 22.5 - 2.5 log10(flux); NaN where the flux is not positive."""
    positive = np.where(flux > 0, flux, np.nan)
    return np.asarray(ZERO_POINT - 2.5 * np.log10(positive))
