"""Checks shapes and types of a file's columns against its map: bands, size and pixel scale of the images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.arrays.array_map import PIXEL_SCALES, ArrayMap
from hpcphotoz.sources.arrays.files.array_file import ArrayFile
from hpcphotoz.sources.constants import ZERO_POINT

Array = npt.NDArray[Any]
NANOJANSKY = 31.4  # AB magnitude of 1 nJy


@dataclass(frozen=True)
class ImageKind:
    """Bands, size and pixel scale of images, which all files of a set must share."""

    bands: tuple[str, ...]
    size: int
    pixel_scale: float
    named: tuple[str, ...] = ()  # all bands in the files' order, where a column names them

    @property
    def stored_bands(self) -> int:
        """How many bands the files hold."""
        return len(self.named or self.bands)

    def choose(self, values: Array) -> Array:
        """Returns the chosen bands (axis 1) of values of all bands of a file."""
        if not self.named or self.named == self.bands:
            return values
        return values[:, [self.named.index(band) for band in self.bands]]

    def __str__(self) -> str:
        return f"{','.join(self.bands)} of {self.size} pixels of {self.pixel_scale:g} arcsec"


def inspect_file(table: ArrayFile, array_map: ArrayMap) -> tuple[ImageKind | None, int]:
    """Checks shapes and types of a file's columns without reading them.

    It returns bands, size and scale of the images (None: the file is empty), and the number of rows.

    Raises:
        BadInput: a column is missing, or its shape or type does not fit.
    """
    name = str(table.first(array_map.images))
    images = table[name]
    rows, bands, height, width = _image_shape(table, array_map, name)
    _check_columns(table, array_map, name, rows, bands)
    if height != width or height < 4:
        raise BadInput(
            f"{table.path}: '{name}' holds images of {height} x {width} pixels: need squares; its shape is "
            f'{tuple(images.shape)}, read by axes = "{array_map.axes}"'
        )
    if array_map.bands and not array_map.band_column and bands != len(array_map.bands):
        raise BadInput(
            f"{table.path}: '{name}' has shape {tuple(images.shape)}: {bands} bands, "
            f"not {len(array_map.bands)} ({', '.join(array_map.bands)})"
        )
    if not rows:
        return None, 0
    if array_map.planes:
        names = tuple(band for planes in array_map.planes for band in planes.bands)
        return ImageKind(names, height, min(one.pixel_scale for one in array_map.planes)), rows
    named = band_names(table, array_map, 0, 1)[0] if array_map.band_column else ()
    chosen = array_map.bands or named
    if lacking := [band for band in chosen if named and band not in named]:
        raise BadInput(f"{table.path}: no band {lacking[0]} in its first row, which has {', '.join(named)}")
    scale = array_map.pixel_scale
    if array_map.pixel_scale_column:
        first = table.rows(array_map.pixel_scale_column, 0, 1).reshape(-1)
        at = named.index(chosen[0]) if named and len(first) > 1 else 0
        scale = round(float(first[at]), 6)
        if not PIXEL_SCALES[0] <= scale <= PIXEL_SCALES[1]:
            raise BadInput(
                f"{table.path}: '{array_map.pixel_scale_column}' is {scale:g} in its first row: must be from "
                "0.001 to 100 arcsec"
            )
    if len(set(named)) < len(named):
        raise BadInput(f"{table.path}: the bands of its first row, {', '.join(named)}, are not unique")
    return ImageKind(chosen, height, scale, named), rows


def _image_shape(table: ArrayFile, array_map: ArrayMap, name: str) -> tuple[int, int, int, int]:
    """Rows, bands, height and width of the images; of flattened ones, the size of the finest."""
    images = table[name]
    shape = tuple(int(n) for n in images.shape)
    axes = len(array_map.order) or 1
    if len(shape) != 1 + axes or images.dtype.kind not in "fiu":
        want = (
            "flattened images (N, pixel)" if array_map.flat else f"images (N, {', '.join(array_map.order)})"
        )
        raise BadInput(f"{table.path}: '{name}' is {images.dtype}{shape}, not {want}")
    if array_map.flat:
        pixels = sum(len(one.bands) * one.size**2 for one in array_map.planes)
        if shape[1] != pixels:
            raise BadInput(
                f"{table.path}: '{name}' has {shape[1]} pixels a row, but its planes have {pixels}"
            )
        finest = min(array_map.planes, key=lambda one: one.pixel_scale)
        return shape[0], sum(len(one.bands) for one in array_map.planes), finest.size, finest.size
    found = dict(zip(array_map.order, shape[1:], strict=True))
    return shape[0], found.get("band", 1), found["y"], found["x"]


def _check_columns(table: ArrayFile, array_map: ArrayMap, images: str, rows: int, bands: int) -> None:
    """Checks that every column in use is there, of numbers where it must be, in a shape it may have."""
    shape = tuple(int(n) for n in table[images].shape[1:])
    spatial = tuple(n for axis, n in zip(array_map.order, shape, strict=False) if axis != "band")
    per_band: list[tuple[int, ...]] = [(bands,)]
    expected: dict[str, list[tuple[int, ...]]] = {}
    for column in (array_map.object_id, array_map.z_spec, array_map.z_known):
        expected |= {column: [()]} if column else {}
    for what in ("ebv", "ra", "dec"):
        column = table.first(getattr(array_map, what), what in array_map.optional) or ""
        extinctions = array_map.extinction_per_ebv if what == "ebv" else ()
        expected |= {column: [(len(extinctions),) if extinctions else ()]} if column else {}
    expected |= {array_map.band_column: per_band} if array_map.band_column else {}
    for column in (array_map.pixel_scale_column, array_map.sky_sigma):
        expected |= {column: [*per_band, ()]} if column else {}
    for what in ("mask", "inverse_variance"):
        column = table.first(getattr(array_map, what), what in array_map.optional) or ""
        expected |= {column: [shape, *([spatial] if what == "mask" else [])]} if column else {}
    for column, shapes in expected.items():
        found: Any = tuple(int(n) for n in table[column].shape)
        if found not in [(rows, *one) for one in shapes]:
            need = " or ".join(str((rows, *one)) for one in shapes)
            raise BadInput(
                f"{table.path}: '{column}' has shape {found}, but {rows} images in '{images}' need {need}"
            )
        text = (array_map.object_id, array_map.band_column)
        if column not in text and table[column].dtype.kind not in "fiub":
            raise BadInput(f"{table.path}: '{column}' is {table[column].dtype}, not numbers")


def band_names(table: ArrayFile, array_map: ArrayMap, start: int, stop: int) -> list[tuple[str, ...]]:
    """Returns the bands that rows `start` to `stop - 1` name."""
    return [
        tuple(v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in row)
        for row in table.rows(array_map.band_column, start, stop).tolist()
    ]


def zero_points(one: ArrayMap, bands: tuple[str, ...], path: Path) -> tuple[float, ...]:
    """Returns the AB magnitude of one unit of each band's pixels.

    Raises:
        BadInput: the map gives it by survey, and not for that of a band.
    """
    if one.unit == "nMgy" and not one.planes:
        return (ZERO_POINT,) * len(bands)
    if one.unit == "nJy":
        return (NANOJANSKY,) * len(bands)
    if one.planes:
        given: dict[str, float] = {}
        for planes in one.planes:
            values = planes.zero_point or (ZERO_POINT,)
            values = values if len(values) > 1 else values * len(planes.bands)
            given |= dict(zip(planes.bands, values, strict=True))
        return tuple(given[band] for band in bands)
    if one.zero_points:
        found = [one.zero_points.get(band.lower().split("-")[0]) for band in bands]
        if len(set(found)) > 1 or None in found:
            raise BadInput(
                f"{path}: bands {', '.join(bands)}: give the pixels' --zero-point (AB mag of one unit)"
            )
        return tuple(value for value in found if value is not None)
    return one.zero_point if len(one.zero_point) > 1 else one.zero_point * len(bands)
