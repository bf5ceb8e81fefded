"""The shard format, versions 1 and 2: schema, manifest, read, verify.

A dataset is a folder: `manifest.json` beside `shard-00000.h5`, `shard-00001.h5` ... Every array of a shard
is a contiguous, 1 MiB-aligned HDF5 dataset that h5py alone can read. The manifest is written last and
atomically: a folder without one is an unfinished dataset. Beside the columns of `Stamps` a shard holds
`image_unit` (N, band) float32 nMgy where the pixels are int16 (see `codec.py`), and `image_xxh3` (N,) uint64,
the XXH3-64 checksums of the images as stored. A shard that somebody else wrote lacks the latter: its
checksums lie beside it in `shard-00000.h5.xxh3`, little-endian.
"""

import hashlib
import json
import math
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from hpcphotoz.atomic import write_text
from hpcphotoz.data import hdf5
from hpcphotoz.data.format.manifest_schema import ShardEntryModel, validate_entries, validate_manifest
from hpcphotoz.errors import BadInput

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
CHECKSUM_SUFFIX = ".xxh3"  # after the name of a shard that lacks `image_xxh3`: the file that holds it
FLUX_UNIT = "nanomaggy"
Array = npt.NDArray[Any]
FORMAT = "hpcphotoz-shards"
LARGEST_MANIFEST = 1 << 28  # bytes: 400,000 shards; reading it takes up to twenty times that
STORAGE = ("float32", "float16", "int16")


@dataclass(frozen=True)
class Header:
    """What every shard of a dataset has in common."""

    bands: tuple[str, ...]  # e.g. ("u", "g", "r", "i", "z")
    stamp: int  # pixels a side
    pixel_scale: float  # arcsec
    storage: str = "float32"  # of the images: one of STORAGE


@dataclass(frozen=True)
class Stamps:
    """Objects in memory, equal lengths N."""

    images: Array  # (N, band, y, x) float32, nanomaggies
    z_spec: Array  # (N,) float32, NaN: unknown
    ebv: Array  # (N,) float32, mag
    object_id: Array  # (N,) int64
    sky_sigma: Array  # (N, band) float32, nanomaggies per pixel
    ra: Array  # (N,) float64, deg
    dec: Array  # (N,) float64, deg

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | Array) -> "Stamps":
        return Stamps(**{name: getattr(self, name)[rows] for name in COLUMNS})

    @classmethod
    def concatenate(cls, parts: "list[Stamps]") -> "Stamps":
        """All parts, one after the other."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS})


COLUMNS = {
    "images": np.float32,
    "z_spec": np.float32,
    "ebv": np.float32,
    "object_id": np.int64,
    "sky_sigma": np.float32,
    "ra": np.float64,
    "dec": np.float64,
}


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One line of the manifest."""

    file: str
    rows: int
    bytes: int
    sha256: str
    z_min: float | None  # smallest known z_spec; None: none known
    z_max: float | None
    unlabelled: int  # rows whose z_spec is unknown
    offsets: Mapping[str, int] | None = None  # first byte of each array; None: ask HDF5
    labels_xxh3: str | None = None  # of all arrays but the images, see `label_digest`; None: unknown
    ids_xxh3: str | None = None  # of object_id alone, which decides on the split
    chunk_rows: int = 1  # images that are compressed together


@dataclass(frozen=True)
class BandStatistics:
    """Per-band figures over the whole dataset, nanomaggies."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    sky_sigma: tuple[float, ...]  # mean of the objects' sky sigmas


@dataclass(frozen=True)
class Manifest:
    """Everything known of a dataset without opening a shard."""

    header: Header
    shards: tuple[ShardEntry, ...]
    statistics: BandStatistics
    provenance: Mapping[str, Any]
    sha256: str = field(default="", compare=False)  # of the file; "": not read from one

    @property
    def rows(self) -> int:
        """Number of objects."""
        return sum(shard.rows for shard in self.shards)


def read_manifest(folder: Path, check: bool = True) -> Manifest:
    """Read a dataset's manifest and check that its shards are there with the sizes it lists.

    Args:
        folder: the dataset.
        check: look at every shard's size; False: a shard is looked at when it is opened.

    Raises:
        BadInput: no manifest (an unfinished dataset), one that cannot be read, a shard that is missing,
            truncated or
            outside the folder.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder, or not a dataset: name the one that holds {MANIFEST}")
    if not path.is_file():
        shards = any(folder.glob("shard-*.h5"))
        state = "an unfinished dataset" if shards else "not a dataset"
        index = ", or make one with `hpcphotoz index` if another program wrote the shards" if shards else ""
        again = f"write it again, or name the folder that holds one{index}"
        raise BadInput(f"{folder}: no {MANIFEST}: {state}; {again}")
    try:
        if (size := path.stat().st_size) > LARGEST_MANIFEST:
            raise ValueError(f"{size} bytes, at most {LARGEST_MANIFEST} are read")
        raw = path.read_bytes()
        manifest = parse_manifest(raw)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        reason = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
        raise BadInput(f"{path}: not a manifest of this format: {reason[:300]}") from None
    for shard in manifest.shards:
        if Path(shard.file).name != shard.file:
            raise BadInput(f"{path}: shard '{shard.file}' lies outside the dataset's folder: refused")
        if check and (problem := shard_file_problem(folder, shard)):
            raise BadInput(problem)
    return manifest


def parse_manifest(raw: bytes) -> Manifest:
    """A manifest from the bytes of its file.

    Raises:
        ValueError: what is wrong, in one line.
    """
    content = json.loads(raw, object_pairs_hook=_without_duplicate_keys)
    lines = content.pop("shards", None) if isinstance(content, dict) else None
    tree = validate_manifest(content)
    header = Header(tuple(tree.bands), tree.stamp, float(tree.pixel_scale), tree.storage)
    sizes = {
        name: math.prod(row) * dtype.itemsize
        for name, (row, dtype) in {**columns(header), "image_xxh3": ((), np.dtype(np.uint64))}.items()
    }
    shared: dict[tuple[tuple[str, int], ...], Mapping[str, int]] = {}  # ten thousand equal ones took 10 MB
    entries = []
    for line in validate_entries(lines):
        offsets = line.offsets
        _check_offsets(line, sizes)
        kept = None if offsets is None else shared.setdefault(tuple(offsets.items()), offsets)
        entries.append(ShardEntry(**{**dict(line), "offsets": kept}))
    if len({entry.file for entry in entries}) < len(entries):
        raise ValueError("shards: one file is listed twice")
    if sum(entry.rows for entry in entries) != tree.rows:
        raise ValueError(f"rows: {tree.rows}, but the shards have {sum(entry.rows for entry in entries)}")
    statistics = BandStatistics(**{k: tuple(map(float, v)) for k, v in dict(tree.statistics).items()})
    return Manifest(header, tuple(entries), statistics, tree.provenance, hashlib.sha256(raw).hexdigest())


def _without_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"one of the names {', '.join(sorted(found))} is there twice")
    return found


def _check_offsets(line: ShardEntryModel, sizes: Mapping[str, int]) -> None:
    """Whether all arrays fit into the file.

    Args:
        line: of the manifest.
        sizes: bytes a row of every array.
    """
    rows, images = line.rows, sizes["images"]
    if line.chunk_rows > rows or line.chunk_rows * images > max(hdf5.LARGEST_CHUNK, images):
        raise ValueError(f"{line.file}: chunk_rows {line.chunk_rows} of {rows} rows: too many")
    if line.offsets is None:
        if rows * images > line.bytes * hdf5.MAX_GZIP_EXPANSION:
            raise ValueError(f"{line.file}: {rows} rows do not fit in {line.bytes} bytes")
        return
    if line.offsets.keys() != sizes.keys() or line.labels_xxh3 is None:
        raise ValueError(f"{line.file}: want labels_xxh3 and the offsets of {', '.join(sizes)} alone")
    for name, offset in line.offsets.items():
        if offset + rows * sizes[name] > line.bytes:
            raise ValueError(f"{line.file}: '{name}' at byte {offset} does not fit in {line.bytes}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest atomically: this is what makes the dataset finished.

    Raises:
        BadInput: it would not be read again, a shard's name that is no text for instance.
    """
    tree = {
        "format": FORMAT,
        "version": format_version(manifest.header),
        "rows": manifest.rows,
        "flux_unit": FLUX_UNIT,
        **asdict(manifest.header),
        "statistics": asdict(manifest.statistics),
        "shards": [asdict(shard) for shard in manifest.shards],
        "provenance": dict(manifest.provenance),
    }
    text = json.dumps(tree, indent=1) + "\n"
    try:
        parse_manifest(text.encode())
    except ValueError as error:
        raise BadInput(f"{folder}: its manifest would not be readable: {error}") from None
    write_text(folder / MANIFEST, text)


def labels_differ_message(path: Path, shard: ShardEntry, what: str) -> str:
    """The message for a checksum of a whole shard."""
    return (
        f"{path}: {what} of rows 0 to {shard.rows - 1}: checksum differs from the manifest: "
        "copy or write the shard again"
    )


def images_differ_message(path: Path, first: int, last: int, count: int) -> str:
    """The message for checksums of images."""
    rows = f"row {first}" if count == 1 else f"rows {first} to {last} ({count} of them)"
    return f"{path}: {rows}: pixels differ from the checksums stored with them: copy or write the shard again"


@contextmanager
def naming_damage(path: Path, start: int | None = None, stop: int = 0) -> Iterator[None]:
    """Turn what HDF5 raises on damaged files into one line.

    Args:
        path: the shard.
        start, stop: the rows that are read; None: others than rows.

    Raises:
        BadInput: names the shard and the rows.
    """
    try:
        yield
    except hdf5.HDF5_ERRORS as error:
        rows = "" if start is None else f" rows {start} to {stop - 1}"
        reason = " ".join(str(error).split())
        raise BadInput(f"{path}:{rows} cannot be read ({reason}): copy or write the shard again") from None


def format_version(header: Header) -> int:
    """The version of a dataset: 2 of int16, whose units may be negative (`codec.py`), else 1."""
    return FORMAT_VERSION if header.storage == "int16" else 1


def columns(header: Header) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Every array that a shard must have: the shape of a row, and the type."""
    bands = len(header.bands)
    shapes: dict[str, tuple[int, ...]] = {
        "images": (bands, header.stamp, header.stamp),
        "sky_sigma": (bands,),
    }
    found = {name: (shapes.get(name, ()), np.dtype(dtype)) for name, dtype in COLUMNS.items()}
    found["images"] = (shapes["images"], np.dtype(header.storage))
    if header.storage == "int16":
        found["image_unit"] = ((bands,), np.dtype(np.float32))
    return found


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
        wanted = columns(h)
        if "image_xxh3" in file:
            wanted["image_xxh3"] = ((), np.dtype(np.uint64))
        for name, (row, dtype) in wanted.items():
            shape, found = (shard.rows, *row), hdf5.array(file, name)
            if found.shape != shape or not hdf5.is_stored_as(found, dtype):
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
    """XXH3-64, in hexadecimal, of all of a shard's arrays but the images, in the order of their names."""
    digest = xxhash.xxh3_64()
    for name in sorted(arrays):
        if name != "images":
            digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def image_digests(images: Array) -> npt.NDArray[np.uint64]:
    """XXH3-64 of each image as stored, (N,)."""
    return np.array([xxhash.xxh3_64_intdigest(image) for image in np.ascontiguousarray(images)], np.uint64)


def stored_digests(folder: Path, shard: ShardEntry, file: h5py.File) -> npt.NDArray[np.uint64] | None:
    """The checksums of a shard's images that were stored with them, (N,); None: there are none.

    Raises:
        BadInput: the file beside the shard that should hold them is missing or of another size.
    """
    if "image_xxh3" in file:
        return np.asarray(hdf5.read(file["image_xxh3"]), np.uint64)
    if shard.labels_xxh3 is None:
        return None
    path = checksum_path(folder, shard)
    try:
        found = np.fromfile(path, "<u8").astype(np.uint64, copy=False)
    except OSError as error:
        raise BadInput(f"{path}: the shard's checksums cannot be read: {error.strerror}") from None
    return found


def checksum_path(folder: Path, shard: ShardEntry) -> Path:
    """The file of a shard's image checksums, with its size and type checked as by `shard_file_problem`.

    Raises:
        BadInput: it is missing, a link or no plain file, or of another size.
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


def shard_file_problem(folder: Path, shard: ShardEntry) -> str | None:
    """What is wrong with a shard's file at a glance; None: nothing.

    A link is refused: it may lead outside the dataset's folder.
    """
    path = folder / shard.file
    try:
        found = path.lstat()
    except FileNotFoundError:
        return f"{path}: listed in the manifest (rows 0 to {shard.rows - 1}) but missing: copy it again"
    except OSError as error:
        return f"{path}: cannot be looked at: {error.strerror}"
    if not stat.S_ISREG(found.st_mode):
        return (
            f"{path}: a link or no plain file: it may lead outside the dataset's folder: copy or hard-link it"
        )
    if found.st_size != shard.bytes:
        size = f"{found.st_size} bytes, the manifest says {shard.bytes}"
        return f"{path}: {size}: truncated or changed, copy it again"
    return None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


assert {field.name for field in fields(Stamps)} == set(COLUMNS)
