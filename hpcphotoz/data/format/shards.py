"""Opens a shard, checks it against the manifest, and computes and finds its checksums.

Every array of a shard is a contiguous, 1 MiB-aligned HDF5 dataset that h5py alone can read. Beside the
columns of `Stamps` a shard holds `image_unit` (N, band) float32 nMgy where the pixels are int16 (see
`encoding.py`), and `image_xxh3` (N,) uint64, the XXH3-64 checksums of the images as stored. A shard that
another program wrote has no `image_xxh3`: its checksums lie beside it in `shard-00000.hdf5.xxh3`,
little-endian.
"""

import hashlib
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from hpcphotoz.data import hdf5
from hpcphotoz.data.format.extra import PIXEL_TYPES
from hpcphotoz.data.format.manifest import Manifest, ShardEntry, columns, shard_file_problem
from hpcphotoz.errors import BadInput

CHECKSUM_SUFFIX = ".xxh3"  # after the name of a shard that lacks `image_xxh3`: the file that holds it
PIXEL_ARRAYS = frozenset({"images", *PIXEL_TYPES})  # not part of a shard's labels
Array = npt.NDArray[Any]


def labels_differ_message(path: Path, shard: ShardEntry, what: str) -> str:
    """Message for a shard of which `what` ("labels", "ids" or "the file") differs from its checksum."""
    return (
        f"{path}: {what} of rows 0 to {shard.rows - 1}: checksum differs from the manifest: "
        "copy or write the shard again"
    )


def images_differ_message(path: Path, wrong: npt.NDArray[np.int64]) -> str:
    """Message for images that differ from their checksums: rows `wrong` (n,) of a shard, ascending."""
    rows = f"row {wrong[0]}" if len(wrong) == 1 else f"rows {wrong[0]} to {wrong[-1]} ({len(wrong)} of them)"
    return f"{path}: {rows}: pixels differ from the checksums stored with them: copy or write the shard again"


@contextmanager
def naming_damage(path: Path, start: int | None = None, stop: int = 0) -> Iterator[None]:
    """Context manager that turns HDF5's exceptions on a damaged shard into one BadInput.

    It names the shard and the rows `start` to `stop - 1` that are read; None: no rows.
    """
    try:
        yield
    except hdf5.HDF5_ERRORS as error:
        rows = "" if start is None else f" rows {start} to {stop - 1}"
        reason = " ".join(str(error).split())
        raise BadInput(f"{path}:{rows} cannot be read ({reason}): copy or write the shard again") from None


def open_shard(folder: Path, manifest: Manifest, shard: ShardEntry) -> h5py.File:
    """Open one shard for reading and check its attributes and shapes against the manifest.

    Raises:
        BadInput: missing, not HDF5, or an array or attribute that differs from the manifest.
    """
    path = folder / shard.file
    h = manifest.header
    if problem := shard_file_problem(folder, shard):
        raise BadInput(problem)
    try:
        file = hdf5.open_file(path)
    except OSError as error:
        raise BadInput(f"{path}: not a readable HDF5 file ({error}): copy or write it again") from None
    try:
        for name, (row, dtype) in columns(h, digests="image_xxh3" in file).items():
            shape, found = (shard.rows, *row), hdf5.checked_array(file, name)
            # HDF5's booleans, which h5py writes, have the bytes of uint8.
            flags = dtype == np.uint8 and hdf5.is_stored_as(found, np.bool_)
            if found.shape != shape or not (flags or hdf5.is_stored_as(found, dtype)):
                raise BadInput(f"{path}: '{name}' is {found.dtype}{found.shape}, want {dtype}{shape}")
            if shard.offsets is not None and found.id.get_offset() != shard.offsets.get(name):
                raise BadInput(f"{path}: '{name}' lies elsewhere than the manifest says: copy both again")
        bands = hdf5.text_attribute(file, "bands") or ()
        if bands != h.bands:
            raise BadInput(f"{path}: bands {list(bands)}, the manifest says {list(h.bands)}")
    except BadInput:
        file.close()
        raise
    except hdf5.HDF5_ERRORS as error:
        file.close()
        raise BadInput(f"{path}: cannot be read ({error}): copy or write the shard again") from None
    return file


def label_digest(arrays: Mapping[str, Array]) -> str:
    """XXH3-64, in hexadecimal, of a shard's arrays without those of pixels, in the order of their names."""
    digest = xxhash.xxh3_64()
    for name in sorted(arrays):
        if name not in PIXEL_ARRAYS:
            digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def image_digests(images: Array) -> npt.NDArray[np.uint64]:
    """XXH3-64 of each image as stored, (N,)."""
    return np.array([xxhash.xxh3_64_intdigest(image) for image in np.ascontiguousarray(images)], np.uint64)


def stored_digests(folder: Path, shard: ShardEntry, file: h5py.File) -> npt.NDArray[np.uint64] | None:
    """Stored checksums of a shard's images, (N,); None where there are none.

    Raises:
        BadInput: the file beside the shard that should hold them is missing or of another size.
    """
    if "image_xxh3" in file:
        return np.asarray(hdf5.read(file["image_xxh3"]), np.uint64)
    if shard.labels_xxh3 is None:
        return None
    path = checksum_path(folder, shard)
    try:
        return np.fromfile(path, "<u8").astype(np.uint64, copy=False)
    except OSError as error:
        raise BadInput(f"{path}: the shard's checksums cannot be read: {error.strerror}") from None


def check_finite(images: Iterable[Array], path: Path, first_row: int) -> None:
    """Refuse NaN and infinite pixels in images, of any shape and float type, of rows from `first_row` on.

    Raises:
        BadInput: names the shard and the first row with such a pixel.
    """
    for row, image in enumerate(images, first_row):
        # The sum in the pixels' own type, four times quicker, is finite only if all pixels are, unless it
        # overflows.
        with np.errstate(over="ignore", invalid="ignore"):
            total = image.sum()
        if not (np.isfinite(total) or np.isfinite(image).all()):
            raise BadInput(f"{path}: row {row} has a pixel that is not finite: drop it and write again")


def checksum_path(folder: Path, shard: ShardEntry) -> Path:
    """Path of the file with a shard's image checksums, once its type and size are checked.

    Raises:
        BadInput: it is missing, a link or not a regular file, or of another size.
    """
    path, size = folder / (shard.file + CHECKSUM_SUFFIX), 8 * shard.rows
    try:
        found = path.lstat()
    except OSError as error:
        raise BadInput(f"{path}: the shard's checksums cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise BadInput(f"{path}: a link or no plain file: copy or hard-link it")
    if found.st_size != size:
        raise BadInput(f"{path}: {found.st_size} bytes of checksums, want {size}: copy it again")
    return path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
