"""Changes of aperture colours by a perturbation, in units of their photometric errors.

Colours and magnitude are those of the baseline (`baseline.photometry.features`). The error is that of the sky
noise in the aperture; the galaxy's own photon noise is not in the images' header and only adds to it, so that
"seen by photometry" errs on the side of being seen.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.evaluation.baseline.photometry import RADII, REDDENING, Photometry, apertures, features
from hpcphotoz.evaluation.magnitudes import magnitude_band

Floats = npt.NDArray[np.float64]


class ColourChange(NamedTuple):
    """Change of the colours and of the magnitude of each object, for every aperture of `RADII`."""

    change: Floats  # (N, radius, B) mag: B - 1 colours of neighbouring bands, then the magnitude
    error: Floats  # (N, radius, B) mag, of the clean image


def colour_names(bands: tuple[str, ...]) -> list[str]:
    """Names of the columns of a `ColourChange`, such as "u-g" or "HSC-G - HSC-R", the magnitude last."""
    minus = "-" if max(map(len, bands)) == 1 else " - "
    return [f"{a}{minus}{b}" for a, b in zip(bands, bands[1:], strict=False)] + [bands[magnitude_band(bands)]]


def colour_change(stamps: Stamps, attacked: npt.NDArray[np.float32], header: Header) -> ColourChange:
    """Measure clean and attacked images of a batch in the same apertures.

    Args:
        stamps: the clean images, sky sigmas and E(B-V) of N objects.
        attacked: (N, B, H, W) nMgy.
        header: of the dataset.
    """
    weights = apertures(header).astype(np.float64)
    area = np.sqrt((weights**2).sum(axis=(1, 2)))
    noise = area[:, None] * stamps.sky_sigma[:, None, :].astype(np.float64)  # (N, radius, band)
    flux = [np.einsum("nbyx,ryx->nrb", images, weights) for images in (stamps.images, attacked)]
    before, after = (
        Photometry(one, noise, stamps.ebv.astype(np.float64), stamps.z_spec, stamps.object_id, header.bands)
        for one in flux
    )
    change = np.stack([_values(after, k) - _values(before, k) for k in range(len(RADII))], axis=1)
    return ColourChange(change, _errors(before))


def _values(photometry: Photometry, radius: int) -> Floats:
    colours, rest = features(photometry, radius, photometry.noise)
    return np.concatenate([colours, rest[:, :1]], axis=1)


def _errors(photometry: Photometry) -> Floats:
    """First-order errors of colours and magnitude, from the derivative of the asinh magnitude."""
    dust = np.array([REDDENING.get(band, 0.0) for band in photometry.bands])
    factor = 10 ** (0.4 * photometry.ebv[:, None, None] * dust)
    flux, noise = photometry.flux * factor, photometry.noise
    one = 2.5 / np.log(10) * factor * noise / np.hypot(flux, 2 * noise)
    colours = np.hypot(one[..., :-1], one[..., 1:])
    band = magnitude_band(photometry.bands)
    return np.concatenate([colours, one[..., band : band + 1]], axis=-1)
