"""Reads and writes `manifest.json`, which describes a dataset of the shard format, versions 1 to 3.

A dataset is a folder: `manifest.json` beside `shard-00000.hdf5`, `shard-00001.hdf5` ... (older ones: `.h5`).
The manifest is written last and atomically: a folder without one is an unfinished dataset.
"""

import hashlib
import json
import math
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpcphotoz.atomic import write_text
from hpcphotoz.data import hdf5
from hpcphotoz.data.format.extra import ExtraColumn, check_extra
from hpcphotoz.data.format.manifest_schema import (
    BandStatistics,
    ShardEntry,
    validate_entries,
    validate_manifest,
)
from hpcphotoz.data.format.stamps import COLUMNS
from hpcphotoz.errors import BadInput

__all__ = ["BandStatistics", "Header", "Manifest", "ShardEntry", "columns", "format_version"]
__all__ += ["find_shards", "parse_manifest", "read_manifest", "shard_file_problem", "write_manifest"]
FORMAT_VERSION = 3
MANIFEST = "manifest.json"
FLUX_UNIT = "nanomaggy"
FORMAT = "hpcphotoz-shards"
LARGEST_MANIFEST = 1 << 28  # bytes: 400,000 shards; reading it takes up to twenty times that
STORAGE = ("float32", "float16", "int16")
DEFAULT_STORAGE = "int16"  # of new datasets: half the bytes, metrics equal (benchmarks/LOG.md)
SHARD_SUFFIXES = (".hdf5", ".h5")  # the first is written, both are read


@dataclass(frozen=True)
class Header:
    """Bands, stamp size, pixel scale, storage type and extra columns, the same in all shards of a dataset.

    Raises:
        BadInput: an extra column that such stamps cannot have.
    """

    bands: tuple[str, ...]  # e.g. ("u", "g", "r", "i", "z")
    stamp: int  # pixels a side
    pixel_scale: float  # arcsec
    storage: str = "float32"  # of the images: one of STORAGE
    extra: tuple[ExtraColumn, ...] = ()

    def __post_init__(self) -> None:
        check_extra(self.extra, self.bands, self.stamp)

    def difference(self, other: "Header") -> str:
        """The first thing that differs from another header, in words; "": nothing does."""
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(other, one.name)
            if mine == theirs:
                continue
            if one.name == "extra":
                return _differing_columns(mine, theirs)
            if one.name == "bands":
                mine, theirs = ",".join(mine), ",".join(theirs)
            return f"{one.name.replace('_', ' ')} {mine}, but {theirs}"
        return ""


def _differing_columns(mine: Sequence[ExtraColumn], theirs: Sequence[ExtraColumn]) -> str:
    """The extra columns that differ, in words."""
    here, there = ({column.name: column for column in columns} for columns in (mine, theirs))
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if not names:
        return f"extra columns in the order {', '.join(here)}, but {', '.join(there)}"
    found = [
        "; ".join(f"'{name}' {columns[name].words if name in columns else 'absent'}" for name in names)
        for columns in (here, there)
    ]
    return "extra columns {}, but {}".format(*found)


@dataclass(frozen=True)
class Manifest:
    """Contents of `manifest.json`: header, shard entries, band statistics and provenance."""

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

    With `check` False, a shard's file is checked when it is opened.

    Raises:
        BadInput: no manifest (an unfinished dataset), one that cannot be read, a shard that is missing,
            truncated or outside the folder.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder, or not a dataset: name the one that holds {MANIFEST}")
    if not path.is_file():
        shards = bool(find_shards(folder))
        state = "an unfinished dataset" if shards else "not a dataset"
        whose = "if another program wrote the shards, or it alone is lost"
        index = f", or make one with `hpcphotoz index` {whose}" if shards else ""
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
    """Parse the bytes of a manifest's file.

    Raises:
        ValueError: what is wrong, in one line.
    """
    content = json.loads(raw, object_pairs_hook=_without_duplicate_keys)
    lines = content.pop("shards", None) if isinstance(content, dict) else None
    tree = validate_manifest(content)
    try:
        header = Header(tree.bands, tree.stamp, tree.pixel_scale, tree.storage, tree.extra)
    except BadInput as error:
        raise ValueError(f"extra: {error}") from None
    sizes = {
        name: math.prod(row) * dtype.itemsize for name, (row, dtype) in columns(header, digests=True).items()
    }
    shared: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}  # ten thousand equal ones took 10 MB
    entries = []
    for entry in validate_entries(lines):
        _check_offsets(entry, sizes)
        if entry.offsets is not None:
            entry = replace(entry, offsets=shared.setdefault(tuple(entry.offsets.items()), entry.offsets))
        entries.append(entry)
    if len({entry.file for entry in entries}) < len(entries):
        raise ValueError("shards: one file is listed twice")
    if sum(entry.rows for entry in entries) != tree.rows:
        raise ValueError(f"rows: {tree.rows}, but the shards have {sum(entry.rows for entry in entries)}")
    return Manifest(header, tuple(entries), tree.statistics, tree.provenance, hashlib.sha256(raw).hexdigest())


def _without_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"one of the names {', '.join(sorted(found))} is there twice")
    return found


def _check_offsets(line: ShardEntry, sizes: Mapping[str, int]) -> None:
    """Check that all arrays of a shard, of these sizes in bytes a row, fit into its file."""
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
    """Write the manifest atomically; from then on the dataset is finished.

    Raises:
        BadInput: it could not be read back, for instance because a shard's name is not printable.
    """
    header = asdict(manifest.header)
    if not manifest.header.extra:  # versions 1 and 2 have no such key
        del header["extra"]
    tree = {
        "format": FORMAT,
        "version": format_version(manifest.header),
        "rows": manifest.rows,
        "flux_unit": FLUX_UNIT,
        **header,
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


def format_version(header: Header) -> int:
    """Format version: 3 with extra columns, else 2 with int16 pixels, whose units may be negative, else 1."""
    return FORMAT_VERSION if header.extra else 2 if header.storage == "int16" else 1


def columns(header: Header, digests: bool = False) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Arrays that every shard must have, by name: the shape of a row, and the type in which it is stored.

    With `digests`, also the checksums of images, which shards that another program wrote do not have.
    """
    bands = len(header.bands)
    shapes: dict[str, tuple[int, ...]] = {
        "images": (bands, header.stamp, header.stamp),
        "sky_sigma": (bands,),
    }
    found = {name: (shapes.get(name, ()), np.dtype(dtype)) for name, dtype in COLUMNS.items()}
    found["images"] = (shapes["images"], np.dtype(header.storage))
    if header.storage == "int16":
        found["image_unit"] = ((bands,), np.dtype(np.float32))
    found |= {column.name: (column.shape, column.stored_type) for column in header.extra}
    if digests:
        found["image_xxh3"] = ((), np.dtype(np.uint64))
    return found


def find_shards(folder: Path) -> list[Path]:
    """The files of a folder that are named as shards are, in the order of their names."""
    return sorted(path for suffix in SHARD_SUFFIXES for path in folder.glob(f"shard-*{suffix}"))


def shard_file_problem(folder: Path, shard: ShardEntry) -> str | None:
    """What is wrong, in words, with a shard's file, which must be a regular one of the size listed, or None.

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
