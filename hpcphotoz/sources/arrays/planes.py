"""Brings flattened images of several sizes and pixel scales onto the grid of the finest of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.arrays.array_map import Planes
from hpcphotoz.sources.noise import stamp_sky_sigma

Array = npt.NDArray[Any]


def finest(planes: Sequence[Planes]) -> Planes:
    """Returns the planes of the smallest pixel scale."""
    return min(planes, key=lambda one: one.pixel_scale)


def check_coverage(planes: Sequence[Planes], stamp: int) -> None:
    """Checks that every band's image reaches the centres of all pixels of a stamp.

    Raises:
        BadInput: one is too small.
    """
    fine = finest(planes)
    need = (stamp - 1) * fine.pixel_scale
    for one in planes:
        held = one.size * one.pixel_scale
        if need > held:
            raise BadInput(
                f"{', '.join(one.bands)}: {held:g} arcsec wide, but a stamp of {stamp} pixels of "
                f"{fine.pixel_scale:g} arcsec is wider: --crop to at most {int(held / fine.pixel_scale)}"
            )


def interpolation(planes: Planes, grid: Planes) -> npt.NDArray[np.float32]:
    """Returns the matrix (pixel of the grid, pixel) of linear interpolation along one axis.

    Both images have one centre. Weights add up to the ratio of the pixel scales, so that flux is kept: a
    pixel of the grid gets the flux that falls on its area.
    """
    ratio = grid.pixel_scale / planes.pixel_scale
    place = (np.arange(grid.size) - (grid.size - 1) / 2) * ratio + (planes.size - 1) / 2
    place = np.clip(place, 0, planes.size - 1)  # pixels cropped later, or within half a pixel of the edge
    low = np.minimum(place.astype(np.intp), planes.size - 2)
    weights = np.zeros((grid.size, planes.size))
    weights[np.arange(grid.size), low] = 1 - (place - low)
    weights[np.arange(grid.size), low + 1] = place - low
    return (weights * ratio).astype(np.float32)


def regrid(
    flat: Array, planes: Sequence[Planes], unit: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Returns images (N, band, y, x) and sky sigmas (N, band) of flattened images (N, pixel), in nanomaggies.

    Sky sigmas are measured before the interpolation, which smooths noise, and refer to a pixel of the grid. A
    band with a pixel that is not finite is NaN all over, and its sky sigma 0.

    Args:
        flat: planes one after the other, each (band, y, x).
        planes: in that order.
        unit: nanomaggies per unit of the pixels (band,).
    """
    grid = finest(planes)
    bands = sum(len(one.bands) for one in planes)
    images = np.empty((len(flat), bands, grid.size, grid.size), np.float32)
    sigma = np.empty((len(flat), bands), np.float32)
    pixel = band = 0
    for one in planes:
        rows = slice(band, band + len(one.bands))
        count = len(one.bands) * one.size**2
        part = flat[:, pixel : pixel + count].astype(np.float32)
        part = part.reshape(-1, len(one.bands), one.size, one.size) * unit[rows, None, None]
        finite = np.isfinite(part.sum(axis=(2, 3), dtype=np.float64))
        part[~finite] = 0
        same = one.size == grid.size and one.pixel_scale == grid.pixel_scale
        weights = interpolation(one, grid)
        images[:, rows] = part if same else weights @ part @ weights.T
        sigma[:, rows] = stamp_sky_sigma(part) * np.float32((grid.pixel_scale / one.pixel_scale) ** 2)
        images[:, rows][~finite] = np.nan
        pixel, band = pixel + count, rows.stop
    return images, sigma
