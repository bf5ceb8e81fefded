"""Reads rows of files of image arrays, crops and calibrates them, and leaves out unusable ones."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.arrays.array_map import ArrayMap
from hpcphotoz.sources.arrays.files.array_file import ArrayFile, open_array_file
from hpcphotoz.sources.arrays.image_kind import ImageKind, band_names
from hpcphotoz.sources.arrays.kept_arrays import read_kept
from hpcphotoz.sources.arrays.pixels import read_block
from hpcphotoz.sources.build import UnitStamps
from hpcphotoz.sources.catalogue import EBV_UNKNOWN, Z_MAX, nan_if_unknown, nan_if_unknown_ebv
from hpcphotoz.sources.constants import MASKED_FRACTION
from hpcphotoz.sources.engine.damage import damage_entry
from hpcphotoz.sources.identifiers import Ids, identifiers

Array = npt.NDArray[Any]

_BLOCK_BYTES = 4 << 20  # read at a time, so that it stays in a cache: 50 stamps of 64 x 64 x 5
_FLOAT16 = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class SourceFile:
    """One input file, or a folder of npy files, or a Zarr store."""

    path: Path
    name: str  # in the provenance
    files: tuple[Path, ...]  # that are read: if one changes, its shards are made again
    digest: str  # of a Zarr store, which changes with it
    first_row: int  # the number of its first row, over all files


@dataclass(frozen=True)
class RowRange:
    """Rows `start` to `stop - 1` of a file."""

    source: SourceFile
    start: int
    stop: int
    z_spec: npt.NDArray[np.float32] | None  # (stop - start,) from a table of redshifts
    ebv: npt.NDArray[np.float32] | None  # (stop - start,) from a map of dust
    repeated: tuple[int, ...]  # rows, counted from `start`, whose object an earlier row has
    there: tuple[int, ...] = ()  # rows, counted from `start`, whose object the dataset to append to has


@dataclass(frozen=True)
class ReadRows:
    """Makes the stamps of a unit, its ranges of rows; one block of rows is in memory at a time."""

    array_map: ArrayMap
    header: Header
    kind: ImageKind
    nanomaggies_per_unit: tuple[float, ...]  # of the pixels of each band
    keep_unlabelled: bool
    keep: Mapping[str, str] = field(default_factory=dict)  # as in `describe_kept`
    damaged: str = field(default="fail", compare=False)  # of DAMAGED; finished shards stay, whatever it is

    def __call__(self, unit: Any) -> UnitStamps:
        """Returns a unit's stamps, and the rows that were left out, each with the reason."""
        count = sum(row_range.stop - row_range.start for row_range in unit)
        bands, stamp = len(self.header.bands), self.header.stamp
        images = np.empty((count, bands, stamp, stamp), np.float32)
        sigma = np.empty((count, bands), np.float32)
        labels: dict[str, list[Array]] = {name: [] for name in ("z_spec", "ebv", "object_id", "ra", "dec")}
        extra: dict[str, list[Array]] = {name: [] for name in self.keep}
        skipped: list[dict[str, Any]] = []
        at = unknown = 0
        for row_range in unit:
            source, before = row_range.source, at
            try:
                with open_array_file(source.path, self.array_map.bands) as table:
                    found = _read_labels(table, self.array_map, row_range)
                    kept_arrays = read_kept(table, self.keep, self.kind, row_range.start, row_range.stop)
                    reasons = self._label_reasons(found, row_range)
                    stored = table[str(table.first(self.array_map.images))]
                    for start, stop in _chunk_aligned_blocks(stored, row_range.start, row_range.stop):
                        rows = slice(start - row_range.start, stop - row_range.start)
                        block, sky = self._read_block(table, start, stop, reasons[rows])
                        good = np.array([reason is None for reason in reasons[rows]])
                        kept = slice(at, at + int(good.sum()))
                        chosen = slice(None) if good.all() else good  # without a copy
                        images[kept], sigma[kept] = block[chosen], sky[chosen]
                        at = kept.stop
            except BadInput as error:
                at, count = before, row_range.stop - row_range.start
                skipped.append(damage_entry(self.damaged, source.name, error, count))
                continue
            used = np.array([reason is None for reason in reasons])
            for name, values in found.items():
                labels[name].append(values[used])
            for name, values in kept_arrays.items():
                extra[name].append(values[used])
            unknown += sum(reason == "" for reason in reasons)
            for k in np.flatnonzero(~used).tolist():
                if reasons[k]:
                    entry = {"object_id": int(found["object_id"][k]), "file": source.name}
                    skipped.append({**entry, "row": row_range.start + k, "reason": reasons[k]})
        if unknown:
            skipped.append({"count": unknown, "reason": "no redshift in the table"})
        if not labels["ebv"]:
            return UnitStamps(None, tuple(skipped))
        columns: dict[str, Any] = {name: np.concatenate(parts) for name, parts in labels.items()}
        columns["extra"] = {name: np.concatenate(parts) for name, parts in extra.items()}
        return UnitStamps(Stamps(images=images[:at], sky_sigma=sigma[:at], **columns), tuple(skipped))

    def _label_reasons(self, found: dict[str, Array], row_range: RowRange) -> "npt.NDArray[np.object_]":
        """Returns why the labels of a row forbid its use; None: they do not.

        "": counted, not listed; False: neither, as the dataset to append to has the object.
        """
        reasons = np.full(row_range.stop - row_range.start, None, np.object_)
        if row_range.z_spec is not None and not self.keep_unlabelled:
            reasons[np.isnan(row_range.z_spec)] = ""
        reasons[~np.isfinite(found["ebv"])] = EBV_UNKNOWN
        reasons[found["z_spec"] > Z_MAX] = f"the redshift is above {Z_MAX:g}"
        reasons[list(row_range.repeated)] = "an earlier row has this object"
        reasons[list(row_range.there)] = False
        return reasons

    def _read_block(
        self, table: ArrayFile, start: int, stop: int, reasons: "npt.NDArray[np.object_]"
    ) -> tuple[Array, Array]:
        """Returns stamps and sky sigmas of rows, in nanomaggies; adds reasons why rows cannot be used."""
        block = read_block(table, self.array_map, self.kind, self.nanomaggies_per_unit, start, stop)
        corner = (self.kind.size - self.header.stamp) // 2
        crop = slice(corner, corner + self.header.stamp)
        stamps = block.images[:, :, crop, crop]
        self._add_reason(reasons, ~block.finite, "a pixel is not finite in {}")
        if self.array_map.sky_sigma_from == "outer pixels":
            why = "no noise in the outer pixels of {}"
        else:
            why = "the sky sigma is not known in {}"
        known = (block.sky_sigma > 0) & np.isfinite(block.sky_sigma)
        self._add_reason(reasons, block.finite & ~known, why)
        if self.header.storage == "float16":
            over = np.abs(stamps).max(axis=(2, 3)) > _FLOAT16
            self._add_reason(reasons, over, "a pixel is beyond float16's 65504 nMgy in {}")
        if self.array_map.band_column:
            named = np.array(band_names(table, self.array_map, start, stop))
            other = named != np.array(self.kind.named)
            self._add_reason(reasons, other, "another band in place of {}", self.kind.named)
        if self.array_map.pixel_scale_column:
            scale = table.rows(self.array_map.pixel_scale_column, start, stop).reshape(stop - start, -1)
            stored = len(self.kind.named or self.kind.bands)
            scale = np.broadcast_to(scale, (stop - start, stored))
            if self.kind.named:
                scale = scale[:, [self.kind.named.index(band) for band in self.kind.bands]]
            other = ~(np.abs(scale / self.header.pixel_scale - 1) < 1e-3)
            self._add_reason(reasons, other, "another pixel scale in {}")
        if block.unusable is not None:
            masked = block.unusable[:, :, crop, crop].mean(axis=(2, 3)) > MASKED_FRACTION
            self._add_reason(reasons, masked, "too many pixels are masked or without inverse variance in {}")
        return stamps, block.sky_sigma

    def _add_reason(
        self,
        reasons: "npt.NDArray[np.object_]",
        bad: npt.NDArray[np.bool_],
        why: str,
        bands: tuple[str, ...] = (),
    ) -> None:
        """Adds a reason, with the first bad band, to rows with a bad band (N, band) and no reason yet."""
        for k in np.flatnonzero(bad.any(axis=1)).tolist():
            if reasons[k] is None:
                reasons[k] = why.format(f"the {(bands or self.header.bands)[int(np.argmax(bad[k]))]} band")


def read_ids(table: ArrayFile, array_map: ArrayMap, start: int, stop: int, first_row: int) -> Ids:
    """Reads the object identifiers of rows `start` to `stop - 1`.

    Without a column of them, an object's is the number of its row; `first_row`: that of the file's first.

    Raises:
        BadInput: an identifier is absent or cannot be used; the message names its row.
    """
    if not array_map.object_id:
        return np.arange(first_row + start, first_row + stop, dtype=np.int64)
    values = table.rows(array_map.object_id, start, stop)

    def fail(k: int, what: str) -> BadInput:
        return BadInput(f"{table.path}: row {start + k}: '{array_map.object_id}' {values[k]} {what}")

    return identifiers(values, fail)


def read_positions(table: ArrayFile, array_map: ArrayMap, start: int, stop: int) -> tuple[Array, Array]:
    """Reads ra and dec of rows `start` to `stop - 1`, deg; NaN: not there, or out of range."""
    ra, dec = (
        np.where(np.abs(values) <= limit, values, np.nan)
        for what, limit in (("ra", 360.0), ("dec", 90.0))
        for values in [_read_column(table, array_map, what, start, stop, absent=np.nan)]
    )
    return ra, dec


def impossible_positions(table: ArrayFile, array_map: ArrayMap, rows: int) -> tuple[int, str]:
    """Counts the positions out of range in a file's first rows, and gives the first one in words."""
    ra, dec = (_read_column(table, array_map, what, 0, rows, absent=np.nan) for what in ("ra", "dec"))
    found = np.flatnonzero((np.abs(ra) > 360) | (np.abs(dec) > 90)).tolist()
    return len(found), "".join(f"row {k}: ra {ra[k]:g}, dec {dec[k]:g}" for k in found[:1])


def _read_column(
    table: ArrayFile, array_map: ArrayMap, what: str, start: int, stop: int, absent: float
) -> Array:
    """Reads rows of the column of E(B-V), ra or dec, float64; `absent` in a file without it."""
    name = table.first(getattr(array_map, what), what in array_map.optional)
    values = np.full(stop - start, absent) if name is None else table.rows(name, start, stop)
    return values.astype(np.float64)


def _read_labels(table: ArrayFile, array_map: ArrayMap, row_range: RowRange) -> dict[str, Array]:
    """Reads the labels of rows, with NaN for an unknown redshift, E(B-V), ra or dec."""
    start, stop = row_range.start, row_range.stop
    ids = read_ids(table, array_map, start, stop, row_range.source.first_row)
    found: dict[str, Array] = {"object_id": ids}
    found["ra"], found["dec"] = read_positions(table, array_map, start, stop)
    if row_range.ebv is None:
        ebv = _read_column(table, array_map, "ebv", start, stop, absent=0.0)
        if array_map.extinction_per_ebv:
            ebv = (nan_if_unknown(ebv) / np.array(array_map.extinction_per_ebv)).mean(axis=1)
        found["ebv"] = nan_if_unknown_ebv(ebv)
    else:
        found["ebv"] = row_range.ebv
    z: Array = np.full(stop - start, np.nan) if row_range.z_spec is None else row_range.z_spec
    if array_map.z_spec:
        z = table.rows(array_map.z_spec, start, stop)
    found["z_spec"] = nan_if_unknown(z.astype(np.float64))
    if array_map.z_known:
        known = table.rows(array_map.z_known, start, stop)
        found["z_spec"][~known.astype(np.bool_) | np.isnan(known)] = np.nan
    return found


def _chunk_aligned_blocks(images: Any, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cuts rows into blocks that end where HDF5 chunks do, since a chunk cut in two is unpacked twice."""
    chunk = (getattr(images, "chunks", None) or (1,))[0]
    row = max(int(np.prod(images.shape[1:])) * images.dtype.itemsize, 1)
    step = chunk * max(_BLOCK_BYTES // (row * chunk), 1)
    while start < stop:
        end = min((start // step + 1) * step, stop)
        yield start, end
        start = end
