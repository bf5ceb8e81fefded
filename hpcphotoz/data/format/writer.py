"""Writes a dataset: its shards and its manifest."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from hpcphotoz.atomic import atomic_write, flush_file
from hpcphotoz.data.format import encoding
from hpcphotoz.data.format.extra import stored_columns
from hpcphotoz.data.format.folder import check_dataset_folder, new_dataset_folder, shard_name
from hpcphotoz.data.format.manifest import (
    FLUX_UNIT,
    FORMAT,
    Header,
    Manifest,
    ShardEntry,
    columns,
    format_version,
    write_manifest,
)
from hpcphotoz.data.format.shards import file_sha256, image_digests, label_digest
from hpcphotoz.data.format.stamps import COLUMNS, BandMoments, Stamps, redshift_range
from hpcphotoz.errors import BadInput

ALIGNMENT = 1 << 20
_ROWS = 128  # encoded at a time: 10 MB of float32 for stamps of 64 x 64 x 5


class DatasetWriter:
    """Writes a dataset shard by shard; memory is bounded by one shard.

    Use it as a context manager. Entering makes the folder and locks it against other writers. Leaving
    normally writes the manifest; leaving by an exception does not, so that nothing half-written looks
    finished.

    Args:
        out: folder to create; may hold an unfinished dataset, which is replaced.
        header: bands, stamp size and pixel scale of every stamp.
        shard_rows: objects a shard; the last one may hold fewer.
        provenance: JSON-serialisable record of how the stamps were made.

    Raises:
        BadInput: `out` holds a finished dataset or other files, or another process is writing
            in it; stamps of the wrong shape, not finite or with a sky sigma that is not positive.
    """

    def __init__(self, out: Path, header: Header, shard_rows: int, provenance: Mapping[str, Any]) -> None:
        if shard_rows < 1:
            raise BadInput(f"shard rows {shard_rows}: must be at least 1")
        self._out, self._header, self._rows = out, header, shard_rows
        self._provenance = provenance
        self._pending: list[Stamps] = []
        self._shards: list[ShardEntry] = []
        self._moments = BandMoments(len(header.bands))
        self._folder_lock = ExitStack()
        check_dataset_folder(out)

    def __enter__(self) -> Self:
        self._folder_lock.enter_context(new_dataset_folder(self._out))
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._folder_lock:
            if kind is not None:
                return
            if sum(map(len, self._pending)):
                self._write(Stamps.concatenate(self._pending))
            finish_dataset(self._out, self._header, self._shards, self._moments, self._provenance)

    def append(self, stamps: Stamps) -> None:
        """Add any number of objects; whole shards are written as they fill."""
        self._pending.append(check_stamps(self._header, stamps, str(self._out)))
        while sum(map(len, self._pending)) >= self._rows:
            pending = Stamps.concatenate(self._pending)
            self._pending = [pending[self._rows :]]
            self._write(pending[: self._rows])

    def _write(self, stamps: Stamps) -> None:
        name = shard_name(len(self._shards))
        self._shards.append(write_shard(self._out / name, self._header, stamps))
        self._moments.add(stamps)


def check_stamps(header: Header, stamps: Stamps, where: str) -> Stamps:
    """Return the stamps in the types of the format, or refuse them.

    Raises:
        BadInput: a wrong shape, an extra column other than in the header, a pixel or E(B-V) that is not
            finite, or a sky sigma that is not positive; `where` begins the message.
    """
    n, converted = len(stamps), dict[str, Any]()
    for name, (row, _) in columns(replace(header, extra=())).items():
        if name == "image_unit":
            continue
        array = getattr(stamps, name)
        if array.shape != (n, *row):
            raise BadInput(
                f"{where}: {name} of shape {array.shape}, but {n} objects in bands "
                f"{''.join(header.bands)} of {header.stamp} pixels need {(n, *row)}"
            )
        converted[name] = np.ascontiguousarray(array, COLUMNS[name])
    try:
        stored = stored_columns(header.extra, stamps.extra, n)
    except ValueError as error:
        raise BadInput(f"{where}: {error}") from None
    loaded = {column.name: column.loaded(stored[column.name]) for column in header.extra}
    stamps = Stamps(**converted, extra=loaded)
    sigma = stamps.sky_sigma
    for what, bad in (
        ("a pixel that is not finite", ~np.isfinite(stamps.images).all(axis=(1, 2, 3))),
        ("an E(B-V) that is not finite", ~np.isfinite(stamps.ebv)),
        ("a sky sigma that is not finite and positive", ~(np.isfinite(sigma) & (sigma > 0)).all(axis=1)),
    ):
        if bad.any():
            raise BadInput(
                f"{where}: object {stamps.object_id[bad][0]} has {what} ({bad.sum()} such of {n}): "
                "mask or drop it before writing"
            )
    return stamps


def write_shard(path: Path, header: Header, stamps: Stamps) -> ShardEntry:
    """Write one shard under a temporary name, flush it to the disk, and rename it.

    Raises:
        BadInput: a pixel that the header's storage cannot hold.
    """
    labels = {name: getattr(stamps, name) for name in COLUMNS if name != "images"}
    labels |= stored_columns(header.extra, stamps.extra, len(stamps))
    with atomic_write(path) as temporary:
        with h5py.File(
            temporary,
            "w",
            libver="v110",
            fs_strategy=None,
            alignment_threshold=ALIGNMENT // 2,
            alignment_interval=ALIGNMENT,
        ) as file:
            version, scale = format_version(header), header.pixel_scale
            file.attrs.update(format=FORMAT, version=version, flux_unit=FLUX_UNIT, pixel_scale=scale)
            file.attrs["bands"] = list(header.bands)
            labels |= _write_images(file, header, stamps, path)
            for name, data in labels.items():
                _create_contiguous(file, name, data.shape, data.dtype)[...] = data
            for column in header.extra:
                if column.unit:
                    file[column.name].attrs["unit"] = column.unit
            offsets = {name: file[name].id.get_offset() for name in ("images", *labels)}
        with ThreadPoolExecutor(1) as pool:  # the disk writes while this thread reads what it has in memory
            flushed = pool.submit(flush_file, temporary)
            digest = file_sha256(temporary)
            flushed.result()
    z_min, z_max, unlabelled = redshift_range(stamps.z_spec)
    return ShardEntry(
        file=path.name,
        rows=len(stamps),
        bytes=path.stat().st_size,
        sha256=digest,
        z_min=z_min,
        z_max=z_max,
        unlabelled=unlabelled,
        offsets=offsets,
        labels_xxh3=label_digest(labels),
        ids_xxh3=label_digest({"object_id": stamps.object_id}),
    )


def finish_dataset(
    out: Path,
    header: Header,
    shards: Sequence[ShardEntry],
    moments: BandMoments,
    provenance: Mapping[str, Any],
) -> Manifest:
    """Write the manifest of shards that have been written; the folder is a dataset from then on."""
    manifest = Manifest(header, tuple(shards), moments.result(), provenance)
    write_manifest(out, manifest)
    return manifest


def _write_images(file: h5py.File, header: Header, stamps: Stamps, path: Path) -> dict[str, Any]:
    """Encode and write the images; return `image_xxh3` and, for int16, `image_unit`, still to be written."""
    row, dtype = columns(header)["images"]
    images = _create_contiguous(file, "images", (len(stamps), *row), dtype)
    units, digests = [], []
    for start in range(0, len(stamps), _ROWS):
        some = slice(start, start + _ROWS)
        try:
            stored, unit = encoding.encode(stamps.images[some], stamps.sky_sigma[some], header.storage, start)
        except ValueError as error:
            raise BadInput(f"{path}: {error}") from None
        images[some] = stored
        digests.append(image_digests(stored))
        if unit is not None:
            units.append(unit)
    found = {"image_xxh3": np.concatenate(digests)}
    if units:
        images.attrs["flux"] = np.bytes_(encoding.INT16_FLUX)
        found["image_unit"] = np.concatenate(units)
    return found


def _create_contiguous(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    # Early allocation: a contiguous dataset then has its file offset from the start, readable by preadv.
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_obj_track_times(False)  # time stamps would give equal shards different checksums
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, layout)
    return file[name]
