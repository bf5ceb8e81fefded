"""Brings a block of images from a file to nanomaggies (N, band, y, x), with their masks and sky sigmas."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.sources.arrays.array_map import ArrayMap
from hpcphotoz.sources.arrays.files.array_file import ArrayFile
from hpcphotoz.sources.arrays.image_kind import ImageKind
from hpcphotoz.sources.arrays.planes import regrid
from hpcphotoz.sources.noise import clipped_std, outer_pixels, stamp_sky_sigma

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ImageBlock:
    """Images of some rows, in nanomaggies."""

    images: npt.NDArray[np.float32]  # (N, band, y, x), 0 in bands that are not finite
    finite: Bools  # (N, band)
    sky_sigma: Array  # (N, band), 0 or below: not known
    unusable: Bools | None  # (N, band, y, x) pixels by mask or inverse variance; None: nothing says so


def read_block(
    table: ArrayFile, array_map: ArrayMap, kind: ImageKind, unit: tuple[float, ...], start: int, stop: int
) -> ImageBlock:
    """Reads rows `start` to `stop - 1`; `unit`: nanomaggies per unit of each band's pixels.

    Raises:
        BadInput: they cannot be read.
    """
    raw = table.rows(str(table.first(array_map.images)), start, stop)
    factor = np.array(unit, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if array_map.planes:
            full, measured = regrid(raw, array_map.planes, factor)
        else:
            full = np.ascontiguousarray(to_bands(raw, array_map, kind), np.float32)
            if not (factor == 1).all():
                full = full * factor[:, None, None]
        finite = np.isfinite(full.sum(axis=(2, 3)))
        if not finite.all():  # in float64, which the sum of finite pixels does not leave
            finite = np.isfinite(full.sum(axis=(2, 3), dtype=np.float64))
    if not finite.all():
        full = np.where(finite[:, :, None, None], full, np.float32(0))
    variance = _read(table, array_map, kind, array_map.inverse_variance, start, stop)
    mask = _read(table, array_map, kind, array_map.mask, start, stop)
    unusable = None
    if mask is not None:
        bad = mask.astype(np.bool_)  # so NaN is bad, unless true means usable
        if array_map.mask_true == "usable":
            bad = ~bad | np.isnan(mask)
        unusable = np.broadcast_to(bad, full.shape)
    if variance is not None:
        without = ~(variance > 0)
        unusable = without if unusable is None else unusable | without
    if array_map.sky_sigma_from == "column":
        stored = table.rows(array_map.sky_sigma, start, stop).astype(np.float64)
        stored = np.broadcast_to(stored.reshape(len(raw), -1), (len(raw), kind.stored_bands))
        sigma = (kind.choose(stored) * factor).astype(np.float32)
    elif array_map.sky_sigma_from == "inverse variance":
        sigma = _sigma_of_variance(variance, factor)
    elif array_map.sky_sigma_from == "unmasked pixels":
        sigma = _sigma_of_unmasked(full, unusable)
    else:
        sigma = measured if array_map.planes else stamp_sky_sigma(full)
    return ImageBlock(full, finite, sigma, unusable)


def to_bands(raw: Array, array_map: ArrayMap, kind: ImageKind) -> Array:
    """Returns a view (N, band, y, x) of images in the order of the file, of the chosen bands alone."""
    order = array_map.order
    if "band" not in order:
        raw, order = raw[:, None], ("band", *order)
    places = [1 + order.index(axis) for axis in ("band", "y", "x")]
    return kind.choose(raw.transpose(0, *places))


def _read(
    table: ArrayFile, array_map: ArrayMap, kind: ImageKind, names: tuple[str, ...], start: int, stop: int
) -> Array | None:
    """Reads an array of the images' shape, or of (N, y, x), as (N, band or 1, y, x); None: there is none."""
    name = table.first(names, optional=True)
    if name is None:
        return None
    values = table.rows(name, start, stop)
    if values.ndim == 3 and "band" in array_map.order:
        transposed = array_map.order.index("y") > array_map.order.index("x")
        return (values.transpose(0, 2, 1) if transposed else values)[:, None]
    return to_bands(values, array_map, kind)


def _sigma_of_variance(inverse: Array | None, factor: npt.NDArray[np.float32]) -> Array:
    """Median of 1 / sqrt(inverse variance) in the outer pixels with data; 0 without any."""
    assert inverse is not None  # the map names it and does not list it as optional
    outer = inverse.reshape(*inverse.shape[:2], -1)[:, :, outer_pixels(inverse.shape[-1])].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        sigma = np.where(outer > 0, 1 / np.sqrt(outer), np.nan)
    known = (outer > 0).any(axis=2)
    sigma[~known] = 0
    return (np.nanmedian(sigma, axis=2) * factor).astype(np.float32)


def _sigma_of_unmasked(images: npt.NDArray[np.float32], unusable: Bools | None) -> Array:
    """Sky sigma from the outer pixels that may be used; 0 without any."""
    sigma = stamp_sky_sigma(images)
    assert unusable is not None  # the map names a mask and does not list it as optional
    places = outer_pixels(images.shape[-1])
    bad = unusable.reshape(*images.shape[:2], -1)[:, :, places]
    for k, band in np.argwhere(bad.any(axis=2)).tolist():
        pixels = images[k, band].reshape(-1)[places][~bad[k, band]]
        sigma[k, band] = clipped_std(pixels[None])[0] if len(pixels) else 0
    return sigma
