"""Colour images from bands, and the colours of bands in plots.

The colour images stretch the mean of three bands by an asinh, which keeps the ratio of the bands in a pixel,
and so its colour (Lupton et al. 2004, doi:10.1086/382245).
"""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.evaluation.magnitudes import band_letter
from hpcphotoz.evaluation.metrics import NMAD

Floats = npt.NDArray[Any]
# Factors of red, green and blue: a typical galaxy (g - i about 1) becomes grey.
_BALANCE = np.array([0.65, 1.0, 1.7])
_COLOURS = {"u": "#7B3FA0", "g": "#2166C4", "r": "#1A9850", "i": "#E08214", "z": "#C51B1B", "y": "#5A3A22"}
_OTHER_COLOURS = ("#0E9AA7", "#D6479A", "#7A7A00", "#4A5568", "#B08BD9", "#6BBF59")  # of other bands, in turn


def rgb_images(images: Floats, sky_sigma: Floats, bands: tuple[str, ...]) -> Floats:
    """Colour images of many stamps, (N, y, x, 3) on [0, 1], all with the same stretch.

    No background is subtracted: sky that was left in a stamp is visible.

    Args:
        images: (N, B, y, x) nMgy.
        sky_sigma: (N, B) nMgy; sets the faintest visible shade.
        bands: names; `three_bands` says which are red, green and blue.
    """
    three = three_bands(bands)
    names = tuple(band_letter(bands[k]) for k in three)
    x = images[:, three].astype(np.float64)
    balance = _BALANCE
    if names != ("i", "r", "g"):  # grey is the mean colour of the stamps
        light = np.maximum(np.percentile(x, 99, axis=(2, 3)).mean(axis=0), 1e-12)
        balance = light.mean() / light
    x *= balance[:, None, None]
    noise = np.median(np.sqrt(((sky_sigma[:, three] * balance) ** 2).sum(axis=1))) / 3
    peaks = x.mean(axis=1).max(axis=(1, 2))
    top = np.arcsinh(max(float(np.percentile(peaks, 75)), 20 * noise) / (3 * noise))
    colour = np.clip(_stretch(x, 3 * noise, top), 0, None)
    return np.asarray(colour / np.maximum(colour.max(axis=3, keepdims=True), 1))


def rgb_image(image: Floats, reference: Floats, bands: tuple[str, ...]) -> Floats:
    """A colour image of one stamp, (y, x, 3) on [0, 1], above the background of a reference image.

    Args:
        image: (B, y, x) nMgy.
        reference: (B, y, x) nMgy, sets background and stretch: the same for images to be compared.
        bands: names; `three_bands` says which are red, green and blue.
    """
    three = three_bands(bands)
    channels, base = (x[three].astype(np.float64) * _BALANCE[:, None, None] for x in (image, reference))
    intensity = base.mean(axis=0)
    floor = np.median(intensity)
    noise = max(float(np.median(np.abs(intensity - floor))) * NMAD, 1e-12)
    top = np.arcsinh(max(float(intensity.max()) - floor, 10 * noise) / (5 * noise))
    background = np.median(base, axis=(1, 2))[:, None, None]
    return np.clip(_stretch(channels - background, 5 * noise, top), 0, 1)


def _stretch(channels: Floats, softening: float, top: float) -> Floats:
    """(..., 3, y, x) to (..., y, x, 3), a pixel scaled so that its mean is asinh(mean / softening) / top."""
    intensity = np.maximum(channels.mean(axis=-3), 1e-12)
    shade = np.arcsinh(intensity / softening) / top
    return np.asarray(np.moveaxis(channels * (shade / intensity)[..., None, :, :], -3, -1))


def three_bands(bands: tuple[str, ...]) -> list[int]:
    """Indices of red, green and blue: i, r, g if all are present, else the last, middle and first band."""
    names = [band_letter(band) for band in bands]
    if {"i", "r", "g"} <= set(names):
        return [names.index(band) for band in ("i", "r", "g")]
    return [len(bands) - 1, len(bands) // 2, 0]


def band_colours(bands: tuple[str, ...]) -> list[str]:
    """One colour per band: u g r i z y have colours of their own, other bands take the rest in turn."""
    others = itertools.cycle(_OTHER_COLOURS)
    return [_COLOURS[band_letter(band)] if band_letter(band) else next(others) for band in bands]
