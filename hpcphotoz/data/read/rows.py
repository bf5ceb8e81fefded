"""Reads a dataset in stored order, decoded and verified, for evaluation, prediction and `inspect`."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hpcphotoz.data import hdf5
from hpcphotoz.data.format import encoding
from hpcphotoz.data.format.manifest import Header, Manifest, ShardEntry, columns, shard_file_problem
from hpcphotoz.data.format.shards import (
    check_finite,
    file_sha256,
    image_digests,
    images_differ_message,
    naming_damage,
    open_shard,
    stored_digests,
)
from hpcphotoz.data.format.stamps import COLUMNS, Stamps
from hpcphotoz.data.read.shard_files import ShardFile, ShardFiles
from hpcphotoz.errors import BadInput
from hpcphotoz.output import number_of
from hpcphotoz.progress import track

Array = npt.NDArray[Any]
_MAX_NAMED = 5  # damaged shards described in the message
_MAX_GAP = 8  # rows from one chosen row to the next, up to which both are read together
RowFilter = Callable[[Mapping[str, Array]], npt.NDArray[np.bool_]]  # columns -> which rows


def read_rows(
    folder: Path,
    manifest: Manifest,
    batch: int = 256,
    row_filter: RowFilter | None = None,
    pixel_columns: Collection[str] = (),
    rows: range | None = None,
) -> Iterator[Stamps]:
    """Yield objects in stored order, at most `batch` at a time, after comparing checksums.

    With a `row_filter`, which takes columns by name and returns a mask of rows, only those. Of extra columns
    with a value a pixel, only those named in `pixel_columns` are read; they have no checksum of their own.
    With `rows`, only these consecutive rows of the dataset, counted over its shards, of which no others are
    opened.

    Raises:
        BadInput: a shard that cannot be read, is damaged or does not match the manifest.
    """
    names = columns_to_read(manifest.header, pixel_columns)
    rows, end = range(manifest.rows) if rows is None else rows, 0
    for number, shard in enumerate(manifest.shards):
        begin, end = end, end + shard.rows
        first, last = max(rows.start - begin, 0), min(rows.stop - begin, shard.rows)
        if first >= last:
            continue
        path = folder / shard.file
        with open_shard(folder, manifest, shard) as file:
            ShardFile(folder, manifest, number).verify_labels()
            with naming_damage(path):
                digests = stored_digests(folder, shard, file)
            for start in range(first, last, batch):
                stop = min(start + batch, last)
                found, stamps = _read_slab(file, path, manifest.header, names, digests, start, stop)
                if row_filter is not None:
                    stamps = stamps[row_filter(found)]
                if len(stamps):
                    yield stamps


def read_chosen_rows(
    folder: Path,
    manifest: Manifest,
    files: ShardFiles,
    number: int,
    rows: npt.NDArray[np.int64],
    pixel_columns: Collection[str] = (),
) -> Stamps:
    """Read some rows of one shard, after comparing checksums.

    Args:
        folder, manifest: the dataset.
        files: of the dataset; they compare the labels of a shard with their checksum at the first call.
        number: of the shard.
        rows: (n,) row numbers in the shard, increasing, n >= 1.
        pixel_columns: names of extra columns with a value a pixel that are read too.

    Raises:
        BadInput: the shard cannot be read, is damaged or does not match the manifest.
    """
    shard = manifest.shards[number]
    path, names = folder / shard.file, columns_to_read(manifest.header, pixel_columns)
    files.verify_labels(number)
    parts = []
    with open_shard(folder, manifest, shard) as file:
        with naming_damage(path):
            digests = stored_digests(folder, shard, file)
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > _MAX_GAP) + 1):
            first, last = int(run[0]), int(run[-1])
            _, stamps = _read_slab(file, path, manifest.header, names, digests, first, last + 1)
            parts.append(stamps[run - first])
    return Stamps.concatenate(parts)


def read_column(folder: Path, manifest: Manifest, files: ShardFiles, number: int, name: str) -> Array:
    """Read one column of a shard, (N, ...) as it is stored; labels are compared with their checksum.

    Raises:
        BadInput: the shard cannot be read, is damaged or does not match the manifest.
    """
    shard = manifest.shards[number]
    files.verify_labels(number)
    with open_shard(folder, manifest, shard) as file, naming_damage(folder / shard.file):
        return hdf5.read(file[name])


def _read_slab(
    file: h5py.File,
    path: Path,
    header: Header,
    names: Collection[str],
    digests: npt.NDArray[np.uint64] | None,
    start: int,
    stop: int,
) -> tuple[dict[str, Array], Stamps]:
    """Rows from `start` to `stop` - 1 of a shard, images compared with `digests`: as stored, and decoded."""
    with naming_damage(path, start, stop):
        found = {name: hdf5.read(file[name], start, stop) for name in names}
    if digests is not None:
        wrong = start + np.flatnonzero(image_digests(found["images"]) != digests[start:stop])
        if len(wrong):
            raise BadInput(images_differ_message(path, wrong))
    stamps = to_stamps(header, found)
    check_finite(stamps.images, path, start)
    return found, stamps


def columns_to_read(header: Header, pixel_columns: Collection[str] = ()) -> list[str]:
    """Names of the arrays that make `Stamps`; of extra columns of pixels, only those asked for."""
    left_out = {column.name for column in header.extra if column.is_pixels} - set(pixel_columns)
    return [name for name in columns(header) if name not in left_out]


def to_stamps(header: Header, stored: Mapping[str, Array]) -> Stamps:
    """Decode rows of a shard's arrays, read by name, to stamps."""
    images = encoding.decode(stored["images"], stored.get("image_unit"))
    fixed = {name: stored[name] for name in COLUMNS if name != "images"}
    extra = {one.name: one.loaded(stored[one.name]) for one in header.extra if one.name in stored}
    return Stamps(images, **fixed, extra=extra)


def verify(folder: Path, manifest: Manifest) -> None:
    """Read every byte and check it against the manifest's checksums, then every pixel for being finite.

    Raises:
        BadInput: gives the number of damaged shards and describes the first few.
    """
    problems = []
    for shard in track(manifest.shards, "verifying shards", len(manifest.shards)):
        if problem := _problem(folder, manifest, shard):
            problems.append(problem)
    if problems:
        named = "; ".join(problems[:_MAX_NAMED])
        more = f"; and {len(problems) - _MAX_NAMED} more" if len(problems) > _MAX_NAMED else ""
        of = f"{len(problems)} of {number_of(len(manifest.shards), 'shard')}"
        raise BadInput(f"damage in {of}: {named}{more}")


def _problem(folder: Path, manifest: Manifest, shard: ShardEntry) -> str | None:
    path = folder / shard.file
    if problem := shard_file_problem(folder, shard):
        return problem
    try:
        with naming_damage(path):
            digest = file_sha256(path)
        for _ in read_rows(folder, replace(manifest, shards=(shard,))):  # names rows where it can
            continue
    except BadInput as error:
        return str(error)
    if digest == shard.sha256:
        return None
    return f"{path}: checksum differs from the manifest: copy or write it again"
