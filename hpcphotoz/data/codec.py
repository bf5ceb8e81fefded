"""How pixels are stored: float32, float16, or int16 in units of a fixed fraction of the object's sky sigma.

int16: flux = unit * integer, where unit = sky_sigma / 32 of that object and band, doubled as often as its
brightest pixel needs. The error is at most half a unit: 1/64 sky sigma wherever no pixel exceeds 1024 sky
sigmas, and otherwise less than 2^-15 of the brightest pixel, far below its photon noise. float16 keeps 11
significant bits: a relative error of at most 2^-11.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

FRACTION = 1 / 32  # of a sky sigma: the int16 unit
_LARGEST = 32767


def encode(images: Array, sky_sigma: Array, storage: str) -> tuple[Array, Array | None]:
    """Pixels as they are stored, and the units of int16.

    Args:
        images: (N, B, y, x) float32 nMgy, finite.
        sky_sigma: (N, B) float32 nMgy, positive.
        storage: float32, float16 or int16.

    Returns:
        (N, B, y, x) of that type, and (N, B) float32 nMgy (int16) or None.

    Raises:
        ValueError: a pixel beyond the range of float16 (65504 nMgy), or a sky sigma too small for int16;
            names its row.
    """
    if storage == "float32":
        return images, None
    if storage == "float16":
        over = np.flatnonzero(np.abs(images).max(axis=(1, 2, 3), initial=0) > np.finfo(np.float16).max)
        if len(over):
            raise ValueError(f"row {over[0]} has a pixel beyond float16's 65504 nMgy: store float32 or int16")
        return images.astype(np.float16), None
    unit = (sky_sigma * np.float32(FRACTION)).astype(np.float64)
    bad = unit < np.finfo(np.float32).tiny
    peak = np.abs(images).max(axis=(2, 3), initial=0) / (np.where(bad, 1, unit) * _LARGEST)
    unit = unit * np.exp2(np.ceil(np.log2(np.maximum(peak, 1))))
    found = np.flatnonzero((bad | (unit > np.finfo(np.float32).max)).any(axis=1))
    if len(found):
        raise ValueError(f"row {found[0]} has a sky sigma too small or a pixel too large for int16")
    unit = unit.astype(np.float32)  # exact: a float32 times a power of two
    return np.rint(images / unit[:, :, None, None]).astype(np.int16), unit


def decode(stored: Array, unit: Array | None) -> Array:
    """Pixels in nMgy, (N, B, y, x) float32, from what `encode` gave."""
    if stored.dtype == np.float32:
        return stored
    images = stored.astype(np.float32)
    return images if unit is None else images * unit[:, :, None, None]
