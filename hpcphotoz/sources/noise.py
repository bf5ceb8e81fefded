"""The sky noise of a stamp without a frame around it, from its outer pixels."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_PIXELS = 2048  # 1.6 % of noise in the answer; the outer eighth of 152 x 152 has five times as many
_ROUNDS = 4
# Standard deviation of a unit normal distribution cut at 3 sigma.
_CLIPPED_STD = 0.98658


def outer_pixels(size: int) -> npt.NDArray[np.intp]:
    """Places in a flat image of `size` x `size` pixels: the outer eighth on each side, thinned to 2048."""
    width = max(size // 8, 1)
    outer = np.ones((size, size), np.bool_)
    outer[width : size - width, width : size - width] = False
    places = np.flatnonzero(outer)
    return places[:: -(-len(places) // _PIXELS)]


def sky_sigma(images: Array) -> npt.NDArray[np.float32]:
    """Standard deviation of the sky per pixel, clipped at 3 sigma about the median.

    The first guess is the distance from the median down to the 16th percentile, which neighbours, all
    brighter than the sky, move least. Correlated noise, of resampled images, counts as the pixels have it.

    Args:
        images: (N, band, y, x) float32, finite.

    Returns:
        (N, band) in the images' unit; 0 where most of the outer pixels are equal.
    """
    n, bands, size, _ = images.shape
    x = images.reshape(n, bands, -1)[:, :, outer_pixels(size)]
    low, middle = int(0.1587 * x.shape[2]), x.shape[2] // 2
    ordered = np.partition(x, (low, middle), axis=2)
    x -= ordered[:, :, middle, None]
    sigma: npt.NDArray[np.float32] = ordered[:, :, middle] - ordered[:, :, low]
    centre = np.zeros_like(sigma)
    for _ in range(_ROUNDS):
        kept = np.where(np.abs(x - centre[:, :, None]) <= 3 * sigma[:, :, None], x, np.float32(np.nan))
        count = np.isfinite(kept).sum(axis=2)
        np.nan_to_num(kept, copy=False)
        centre = kept.sum(axis=2) / np.maximum(count, 1)
        square = np.einsum("nbp,nbp->nb", kept, kept) / np.maximum(count, 1)
        sigma = np.sqrt(np.maximum(square - centre**2, 0)).astype(np.float32) / np.float32(_CLIPPED_STD)
    return sigma
