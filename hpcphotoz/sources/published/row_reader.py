"""Reads rows of published files, crops and calibrates them, and leaves out unusable ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.build import UnitStamps
from hpcphotoz.sources.catalogue import EBV_UNKNOWN, Z_MAX, nan_if_unknown, nan_if_unknown_ebv
from hpcphotoz.sources.constants import MASKED_FRACTION
from hpcphotoz.sources.identifiers import Ids, identifiers
from hpcphotoz.sources.noise import stamp_sky_sigma
from hpcphotoz.sources.published.array_file import ArrayFile, open_array_file
from hpcphotoz.sources.published.file_layouts import (
    FILE_LAYOUTS,
    IVAR_FIELD,
    MASK_FIELDS,
    SCALE_FIELD,
    FileLayout,
    band_names,
)

Array = npt.NDArray[Any]

_BLOCK_BYTES = 16 << 20  # read at a time: 200 stamps of 64 x 64 x 5
_FLOAT16 = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class SourceFile:
    """One input file, or a folder of npy files."""

    path: Path
    name: str  # in the provenance
    files: tuple[Path, ...]  # that are read: if one changes, its shards are made again


@dataclass(frozen=True)
class RowRange:
    """Rows `start` to `stop - 1` of a file."""

    source: SourceFile
    start: int
    stop: int
    z_spec: npt.NDArray[np.float32] | None  # (stop - start,) from a table of redshifts
    repeated: tuple[int, ...]  # rows, counted from `start`, whose object an earlier row has


@dataclass(frozen=True)
class ReadRows:
    """Makes the stamps of a unit, its ranges of rows; one block of rows is in memory at a time."""

    layout: str
    header: Header
    size: int  # of the images in the files, pixels a side
    nanomaggies_per_unit: float  # nanomaggies per unit of their pixels
    keep_unlabelled: bool

    def __call__(self, unit: Any) -> UnitStamps:
        """Returns a unit's stamps, and the rows that were left out, each with the reason."""
        count = sum(row_range.stop - row_range.start for row_range in unit)
        bands, stamp = len(self.header.bands), self.header.stamp
        images = np.empty((count, bands, stamp, stamp), np.float32)
        sigma = np.empty((count, bands), np.float32)
        labels: dict[str, list[Array]] = {name: [] for name in ("z_spec", "ebv", "object_id", "ra", "dec")}
        skipped: list[dict[str, Any]] = []
        at = unknown = 0
        for row_range in unit:
            source, layout = row_range.source, FILE_LAYOUTS[self.layout]
            with open_array_file(source.path, self.layout) as table:
                found = _read_labels(table, layout, row_range)
                reasons = self._label_reasons(found, row_range)
                for start, stop in _chunk_aligned_blocks(
                    table[layout.images], row_range.start, row_range.stop
                ):
                    rows = slice(start - row_range.start, stop - row_range.start)
                    block, sky = self._read_block(table, layout, start, stop, reasons[rows])
                    good = np.array([reason is None for reason in reasons[rows]])
                    kept = slice(at, at + int(good.sum()))
                    images[kept], sigma[kept] = block[good], sky[good]
                    at = kept.stop
            used = np.array([reason is None for reason in reasons])
            for name, values in found.items():
                labels[name].append(values[used])
            unknown += sum(reason == "" for reason in reasons)
            for k in np.flatnonzero(~used).tolist():
                if reasons[k]:
                    entry = {"object_id": int(found["object_id"][k]), "file": source.name}
                    skipped.append({**entry, "row": row_range.start + k, "reason": reasons[k]})
        if unknown:
            skipped.append({"count": unknown, "reason": "no redshift in the table"})
        columns: dict[str, Any] = {name: np.concatenate(parts) for name, parts in labels.items()}
        return UnitStamps(Stamps(images=images[:at], sky_sigma=sigma[:at], **columns), tuple(skipped))

    def _label_reasons(self, found: dict[str, Array], row_range: RowRange) -> "npt.NDArray[np.object_]":
        """Returns why the labels of a row forbid its use; "": counted, not listed; None: they do not."""
        reasons = np.full(row_range.stop - row_range.start, None, np.object_)
        if row_range.z_spec is not None and not self.keep_unlabelled:
            reasons[np.isnan(row_range.z_spec)] = ""
        reasons[~np.isfinite(found["ebv"])] = EBV_UNKNOWN
        reasons[found["z_spec"] > Z_MAX] = f"the redshift is above {Z_MAX:g}"
        reasons[list(row_range.repeated)] = "an earlier row has this object"
        return reasons

    def _read_block(
        self, table: ArrayFile, layout: FileLayout, start: int, stop: int, reasons: "npt.NDArray[np.object_]"
    ) -> tuple[Array, Array]:
        """Returns stamps and sky sigmas of rows, in nanomaggies; adds reasons why rows cannot be used."""
        raw = table.rows(layout.images, start, stop)
        with np.errstate(over="ignore", invalid="ignore"):
            full = np.ascontiguousarray(
                raw.transpose(0, 3, 1, 2) if layout.channels_last else raw, np.float32
            )
            if self.nanomaggies_per_unit != 1:
                full = full * np.float32(self.nanomaggies_per_unit)
            finite = np.isfinite(full.sum(axis=(2, 3), dtype=np.float64))
        if not finite.all():
            full = np.where(finite[:, :, None, None], full, np.float32(0))
        sigma = stamp_sky_sigma(full)
        corner = (self.size - self.header.stamp) // 2
        crop = slice(corner, corner + self.header.stamp)
        stamps = full[:, :, crop, crop]
        self._add_reason(reasons, ~finite, "a pixel is not finite in {}")
        self._add_reason(reasons, finite & ~(sigma > 0), "no noise in the outer pixels of {}")
        if self.header.storage == "float16":
            over = np.abs(stamps).max(axis=(2, 3)) > _FLOAT16
            self._add_reason(reasons, over, "a pixel is beyond float16's 65504 nMgy in {}")
        if not layout.bands:
            self._check_mmu_rows(table, start, stop, crop, reasons)
        return stamps, sigma

    def _check_mmu_rows(
        self, table: ArrayFile, start: int, stop: int, crop: slice, reasons: "npt.NDArray[np.object_]"
    ) -> None:
        """Checks bands, pixel scale, masks and inverse variance of Multimodal Universe rows."""
        bands = self.header.bands
        other = np.array(band_names(table, start, stop)) != np.array(bands)
        self._add_reason(reasons, other, "another band in place of {}")
        scale = table.rows(SCALE_FIELD, start, stop)
        self._add_reason(
            reasons, ~(np.abs(scale / self.header.pixel_scale - 1) < 1e-3), "another pixel scale in {}"
        )
        shape = (stop - start, len(bands), self.size, self.size)
        bad = np.zeros((*shape[:2], self.header.stamp, self.header.stamp), np.bool_)
        mask = table.first(MASK_FIELDS, optional=True)
        if mask is not None:
            clean = table.rows(mask, start, stop).astype(np.bool_)
            clean = clean[:, None] if clean.ndim == 3 else clean
            bad |= ~np.broadcast_to(clean, shape)[:, :, crop, crop]
        if IVAR_FIELD in table:
            bad |= ~(table.rows(IVAR_FIELD, start, stop)[:, :, crop, crop] > 0)
        masked = bad.mean(axis=(2, 3)) > MASKED_FRACTION
        self._add_reason(reasons, masked, "too many pixels are masked or without inverse variance in {}")

    def _add_reason(self, reasons: "npt.NDArray[np.object_]", bad: npt.NDArray[np.bool_], why: str) -> None:
        """Adds a reason, with the first bad band, to rows with a bad band (N, band) and no reason yet."""
        for k in np.flatnonzero(bad.any(axis=1)).tolist():
            if reasons[k] is None:
                reasons[k] = why.format(f"the {self.header.bands[int(np.argmax(bad[k]))]} band")


def read_ids(table: ArrayFile, layout: FileLayout, start: int, stop: int) -> Ids:
    """Reads the object identifiers of rows `start` to `stop - 1`.

    Raises:
        BadInput: an identifier is absent or cannot be used; the message names its row.
    """
    values = table.rows(layout.object_id, start, stop)

    def fail(k: int, what: str) -> BadInput:
        return BadInput(f"{table.path}: row {start + k}: '{layout.object_id}' {values[k]} {what}")

    return identifiers(values, fail)


def _read_labels(table: ArrayFile, layout: FileLayout, row_range: RowRange) -> dict[str, Array]:
    """Reads the labels of rows, with NaN for an unknown redshift, E(B-V), ra or dec."""
    start, stop = row_range.start, row_range.stop
    found: dict[str, Array] = {"object_id": read_ids(table, layout, start, stop)}
    for what, absent in (("ebv", 0.0), ("ra", np.nan), ("dec", np.nan)):
        name = table.first(getattr(layout, what), what in layout.optional)
        values = np.full(stop - start, absent) if name is None else table.rows(name, start, stop)
        found[what] = values.astype(np.float64)
    ebv = found["ebv"]
    if layout.per_band:
        ebv = (nan_if_unknown(ebv) / np.array(layout.per_band)).mean(axis=1)
    found["ebv"] = nan_if_unknown_ebv(ebv)
    for what, limit in (("ra", 360.0), ("dec", 90.0)):  # a value beyond means unknown
        found[what] = np.where(np.abs(found[what]) <= limit, found[what], np.nan)
    z: Array = np.full(stop - start, np.nan) if row_range.z_spec is None else row_range.z_spec
    if layout.z_spec is not None:
        z = table.rows(layout.z_spec, start, stop)
    found["z_spec"] = nan_if_unknown(z.astype(np.float64))
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
