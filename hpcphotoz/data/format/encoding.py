"""How pixels are stored: float32, float16, or int16 in units of a fixed fraction of the object's sky sigma.

int16, of an object and band whose pixels lie within 1023 sky sigmas: flux = unit c, where c is the stored
number and unit = sky_sigma / 32. The error is at most half a unit, 1/64 sky sigma.

Where one of them is brighter, because of a bright neighbour for instance, `image_unit` is stored with a minus
sign, and flux = |unit| (c + sign(c) max(|c| - 16384, 0)^2 / 256). Up to 512 sky sigmas the steps are the
same: the pixels beside the bright ones keep their 1/64 sky sigma. Beyond, steps grow with the square
root of the flux, as photon noise does: a pixel of F sky sigmas has an error of at most sqrt(F/2 - 255) / 64
sky sigmas (0.24 at F = 1,000, 1 at 8,700, 2 at 33,000). That is sqrt(e) / 90 of its photon noise, where e is
the sky sigma in electrons: a sixteenth in SDSS's bands, whose sky sigmas are 7 to 32 electrons. The code
ends at 33,788 sky sigmas; for a pixel beyond, where SDSS's detectors are saturated, the unit is doubled as
often as it needs.

float16 keeps 11 significant bits: a relative error of at most 2^-11.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

UNIT_PER_SKY_SIGMA = 1 / 32  # of a sky sigma: the int16 unit
_MAX_CODE = 32767
LINEAR = 16384  # largest stored number that is a plain number of units where the unit is negative
CURVE = 256  # the square of what lies beyond is divided by it
_MAX_UNITS = _MAX_CODE + (_MAX_CODE - LINEAR) ** 2 / CURVE  # units
# Stands in every int16 shard, as the attribute `flux` of `images`: h5py shows numbers that are no fluxes.
INT16_FLUX = (
    "nanomaggies of a stored number c in a band of unit u = image_unit: u c where u > 0; where u < 0, "
    f"|u| (c + sign(c) max(|c| - {LINEAR}, 0)^2 / {CURVE})"
)


def encode(images: Array, sky_sigma: Array, storage: str, first_row: int = 0) -> tuple[Array, Array | None]:
    """Encode pixels for storage.

    Args:
        images: (N, B, y, x) float32 nMgy, finite.
        sky_sigma: (N, B) float32 nMgy, positive.
        storage: float32, float16 or int16.
        first_row: number of the first of these rows in its shard, for the message.

    Returns:
        Pixels (N, B, y, x) of that type, and the units of int16, (N, B) float32 nMgy, or None. Where a unit
        is negative, bright pixels are compressed: see above.

    Raises:
        ValueError: a pixel beyond the range of float16 (65504 nMgy), or a sky sigma too small for int16;
            names its row.
    """
    if storage == "float32":
        return images, None
    if storage == "float16":
        over = np.flatnonzero(np.abs(images).max(axis=(1, 2, 3), initial=0) > np.finfo(np.float16).max)
        if len(over):
            row = first_row + over[0]
            raise ValueError(f"row {row} has a pixel beyond float16's 65504 nMgy: store float32 or int16")
        return images.astype(np.float16), None
    unit = (sky_sigma * np.float32(UNIT_PER_SKY_SIGMA)).astype(np.float64)
    bad = unit < CURVE * np.finfo(np.float32).tiny
    peak = np.abs(images).max(axis=(2, 3), initial=0) / np.where(bad, 1, unit)
    unit = unit * np.exp2(np.ceil(np.log2(np.maximum(peak / _MAX_UNITS, 1))))
    found = np.flatnonzero((bad | (unit > np.finfo(np.float32).max)).any(axis=1))
    if len(found):
        row = first_row + found[0]
        raise ValueError(f"row {row} has a sky sigma too small or a pixel too large for int16")
    curved = peak > _MAX_CODE
    unit = unit.astype(np.float32)  # exact: a float32 times a power of two
    scaled = images / unit[:, :, None, None]
    scaled[curved] = np.rint(_compress_bright(scaled[curved]))  # in float64: float32 would round before
    np.rint(scaled, out=scaled)
    return scaled.astype(np.int16), np.where(curved, -unit, unit)


def decode(stored: Array, unit: Array | None) -> Array:
    """Decode the results of `encode` to nMgy, (N, B, y, x) float32, as `kernels.reference.load` does."""
    if stored.dtype == np.float32:
        return stored
    images = stored.astype(np.float32)
    if unit is None:
        return images
    images *= np.abs(unit)[:, :, None, None]
    curved = unit < 0
    images[curved] = _expand_bright(stored[curved], unit[curved][:, None, None])
    return images


def _compress_bright(scaled: Array) -> Array:
    """Convert fluxes in units to the numbers that are stored, before rounding."""
    size = np.abs(scaled, dtype=np.float64)
    beyond = np.maximum(size - LINEAR, 0)
    root = (np.sqrt(1 + beyond * (4 / CURVE)) - 1) * (CURVE / 2)
    bent: Array = np.copysign(np.minimum(size, LINEAR) + root, scaled)
    return bent


def _expand_bright(stored: Array, unit: Array) -> Array:
    """Undo `_compress_bright` and give nMgy: exact in integers, rounded once."""
    numbers = stored.astype(np.int32)
    beyond = np.maximum(np.abs(numbers) - LINEAR, 0)
    found: Array = (numbers * CURVE + np.sign(numbers) * beyond * beyond).astype(np.float32)
    return found * (unit / -CURVE)
