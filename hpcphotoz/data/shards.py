"""The shard format, version 1: schema, manifest, read, verify.

A dataset is a folder: `manifest.json` beside `shard-00000.h5`, `shard-00001.h5` ... Every array of a shard
is a contiguous, 1 MiB-aligned HDF5 dataset that h5py alone can read. The manifest is written last and
atomically: a folder without one is an unfinished dataset. Beside the columns of `Stamps` a shard holds
`image_unit` (N, band) float32 nMgy where the pixels are int16 (see `codec.py`), and `image_xxh3` (N,) uint64,
the XXH3-64 checksums of the images as stored; a shard that somebody else wrote may lack the latter.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from hpcphotoz.atomic import write_text
from hpcphotoz.data import codec
from hpcphotoz.errors import BadInput

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
FLUX_UNIT = "nanomaggy"
Array = npt.NDArray[Any]
Wanted = Callable[[Mapping[str, Array]], npt.NDArray[np.bool_]]  # columns -> which rows
FORMAT = "hpcphotoz-shards"
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


@dataclass(frozen=True)
class Shard:
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
    shards: tuple[Shard, ...]
    statistics: BandStatistics
    provenance: Mapping[str, Any]

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
        state = "an unfinished dataset" if list(folder.glob("shard-*.h5")) else "not a dataset"
        raise BadInput(f"{folder}: no {MANIFEST}: {state}; write it again, or name the folder that holds one")
    try:
        tree = json.loads(path.read_text())
        if tree["format"] != FORMAT or tree["version"] != FORMAT_VERSION:
            raise ValueError(
                f"format {tree['format']} version {tree['version']}, not {FORMAT} {FORMAT_VERSION}"
            )
        storage = tree.get("storage", STORAGE[0])
        if storage not in STORAGE:
            raise ValueError(f"storage {storage}: this version reads {', '.join(STORAGE)}")
        manifest = Manifest(
            Header(tuple(tree["bands"]), tree["stamp"], tree["pixel_scale"], storage),
            tuple(Shard(**entry) for entry in tree["shards"]),
            BandStatistics(**{k: tuple(v) for k, v in tree["statistics"].items()}),
            tree["provenance"],
        )
        _check_entries(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not a manifest of this format: {type(error).__name__}: {error}") from None
    for shard in manifest.shards:
        if Path(shard.file).name != shard.file or (folder / shard.file).resolve().parent != folder.resolve():
            raise BadInput(f"{path}: shard '{shard.file}' lies outside the dataset's folder: refused")
        if check and (problem := damage(folder, shard)):
            raise BadInput(problem)
    return manifest


def _check_entries(manifest: Manifest) -> None:
    """Raises ValueError where a line of the manifest cannot be true."""
    for shard in manifest.shards:
        if shard.rows < 1 or shard.bytes < 1:
            raise ValueError(f"{shard.file}: {shard.rows} rows, {shard.bytes} bytes")
        for name, (shape, dtype) in columns(manifest.header).items():
            size = shard.rows * int(np.prod(shape)) * np.dtype(dtype).itemsize
            start = 0 if shard.offsets is None else shard.offsets[name]
            if not 0 <= start <= shard.bytes - (0 if shard.offsets is None else size):
                raise ValueError(f"{shard.file}: '{name}' at byte {start} does not fit in {shard.bytes}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest atomically: this is what makes the dataset finished."""
    tree = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "rows": manifest.rows,
        "flux_unit": FLUX_UNIT,
        **asdict(manifest.header),
        "statistics": asdict(manifest.statistics),
        "shards": [asdict(shard) for shard in manifest.shards],
        "provenance": dict(manifest.provenance),
    }
    write_text(folder / MANIFEST, json.dumps(tree, indent=1) + "\n")


def read_rows(
    folder: Path, manifest: Manifest, batch: int = 256, wanted: Wanted | None = None
) -> Iterator[Stamps]:
    """All objects in the order they are stored, at most `batch` at a time.

    Args:
        folder, manifest: the dataset.
        batch: rows read at a time.
        wanted: from columns by name, which rows to give; None: all.

    Raises:
        BadInput: a shard that cannot be read or does not match the manifest.
    """
    for shard in manifest.shards:
        with open_shard(folder, manifest, shard) as file:
            for start in range(0, shard.rows, batch):
                rows = slice(start, min(start + batch, shard.rows))
                found = {name: file[name][rows] for name in columns(manifest.header)}
                unit = found.pop("image_unit", None)
                stamps = Stamps(**{**found, "images": codec.decode(found["images"], unit)})
                check_finite(stamps.images, f"{folder / shard.file}: row", start)
                if wanted is not None:
                    stamps = stamps[wanted(found)]
                if len(stamps):
                    yield stamps


def check_finite(images: Array, where: str, first_row: int = 0) -> None:
    """Refuse a NaN or infinite pixel, naming its row after `where`. One sum an image: NaN and infinity
    survive it.
    """
    sums = images.reshape(len(images), -1).sum(axis=1, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(sums))
    if len(bad):
        raise BadInput(
            f"{where} {first_row + bad[0]} has a pixel that is not finite: drop the object and write again"
        )


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


def open_shard(folder: Path, manifest: Manifest, shard: Shard) -> h5py.File:
    """Open one shard for reading and check its attributes and shapes against the manifest.

    Raises:
        BadInput: missing, not HDF5, or an array or attribute that differs from the manifest.
    """
    path = folder / shard.file
    h = manifest.header
    if problem := damage(folder, shard):
        raise BadInput(problem)
    try:
        # Locks fail on file systems mounted without them (Lustre's -o noflock), and nobody writes a shard.
        file = h5py.File(path, "r", locking=None if "HDF5_USE_FILE_LOCKING" in os.environ else False)
    except OSError as error:
        raise BadInput(f"{path}: not a readable HDF5 file ({error}): copy or write it again") from None
    try:
        for name, (row, dtype) in columns(h).items():
            shape, found = (shard.rows, *row), file.get(name)
            if found is None or found.shape != shape or found.dtype != dtype:
                what = "is missing" if found is None else f"is {found.dtype}{found.shape}"
                raise BadInput(f"{path}: '{name}' {what}, the manifest says {dtype}{shape}")
        if tuple(file.attrs.get("bands", ())) != h.bands:
            raise BadInput(
                f"{path}: bands {list(file.attrs.get('bands', ()))}, the manifest says {list(h.bands)}"
            )
    except BaseException:
        file.close()
        raise
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


def verify(folder: Path, manifest: Manifest) -> None:
    """Read every byte and check it against the manifest's checksums, then every pixel for being finite.

    Raises:
        BadInput: names the first shard that differs.
    """
    for shard in manifest.shards:
        if file_sha256(folder / shard.file) != shard.sha256:
            raise BadInput(
                f"{folder / shard.file}: checksum differs from the manifest: copy or write it again"
            )
    for _ in read_rows(folder, manifest):
        continue


def damage(folder: Path, shard: Shard) -> str | None:
    """What is wrong with a shard's file at a glance; None: nothing."""
    path = folder / shard.file
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return f"{path}: listed in the manifest (rows 0 to {shard.rows - 1}) but missing: copy it again"
    if size != shard.bytes:
        return f"{path}: {size} bytes, the manifest says {shard.bytes}: truncated or changed, copy it again"
    return None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


assert {field.name for field in fields(Stamps)} == set(COLUMNS)
