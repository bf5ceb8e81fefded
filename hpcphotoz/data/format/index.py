"""Writes the manifest of shards that another program wrote with h5py, in any layout, or that lost theirs."""

import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hpcphotoz.atomic import atomic_write
from hpcphotoz.data import hdf5
from hpcphotoz.data.format import encoding
from hpcphotoz.data.format.extra import label_columns
from hpcphotoz.data.format.folder import LOCK_FILE, SIDECAR_SUFFIX
from hpcphotoz.data.format.foreign_columns import find_extra, read_extra_names
from hpcphotoz.data.format.manifest import (
    FLUX_UNIT,
    FORMAT_VERSION,
    MANIFEST,
    Header,
    Manifest,
    ShardEntry,
    find_shards,
)
from hpcphotoz.data.format.shards import (
    CHECKSUM_SUFFIX,
    file_sha256,
    image_digests,
    images_differ_message,
    label_digest,
    naming_damage,
    open_shard,
)
from hpcphotoz.data.format.stamps import COLUMNS, BandMoments, Stamps, redshift_range
from hpcphotoz.data.format.writer import check_stamps, finish_dataset
from hpcphotoz.errors import BadInput
from hpcphotoz.locks.lock import lock_file
from hpcphotoz.progress import track

_ROWS = 256
_ATTRIBUTES = ("bands", "pixel_scale", "flux_unit", "version")
# -P: nothing is imported from the working directory, which may be a download.
_PROBE_COMMAND = [sys.executable, "-P", "-m", "hpcphotoz.data.format.index"]
_PROBE_S = 60.0  # a shard; a file of millions of chunks takes some seconds


def index_folder(folder: Path) -> Manifest:
    """Read and check every `shard-*.hdf5` or `.h5` of a folder; write and return the dataset's manifest.

    A shard holds the columns of `Stamps` with their types, and the attributes `bands` (list of names) and
    `pixel_scale` (arcsec). Images are float32 or float16 nMgy, or the int16 of `encoding`, which comes with
    `image_unit`. Other arrays of N rows that all shards have become extra columns, with
    their attribute `unit`; those that cannot are named on standard error. A shard's file is not changed:
    chunked and compressed images stream, but more slowly. The checksums of its images are written to a file
    beside it, 8 bytes an image. Ids are checked to be unique within a shard, not between shards.

    Raises:
        BadInput: no such folder, a manifest in it, no shard, or a shard with wrong contents; names it.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise BadInput(f"{folder}: {what}: name the folder that holds the shards")
    _find_shards(folder)
    busy = f"{folder}: another process is writing a dataset in it"
    with lock_file(folder / LOCK_FILE, busy, "wait for its end"):
        paths = _find_shards(folder)  # again: another writer may have finished meanwhile
        _probe(paths)
        header = replace(header := _read_header(paths[0]), extra=find_extra(paths, header))
        moments, entries = BandMoments(len(header.bands)), []
        digests = [path.with_name(path.name + CHECKSUM_SUFFIX) for path in paths]
        made = [path for path in digests if not path.exists()]
        try:
            for path in track(paths, "indexing shards", total=len(paths)):
                entries.append(_index_shard(path, header, moments))
        except BaseException:
            for path in made:
                path.unlink(missing_ok=True)
            raise
        provenance = {
            "command": "index",
            "note": "shards written by another program, or found without a manifest",
        }
        return finish_dataset(folder, header, entries, moments, provenance)


def _find_shards(folder: Path) -> list[Path]:
    """The shards, sorted; BadInput: a manifest, an unfinished ingest, no shard, or a link."""
    if (folder / MANIFEST).exists():
        raise BadInput(
            f"{folder}: already has a {MANIFEST}, so that it is a dataset: nothing to do; to have changed "
            "shards indexed again, move it elsewhere first (its provenance is not in the shards)"
        )
    paths = find_shards(folder)
    if not paths:
        raise BadInput(f"{folder}: no shard-*.hdf5 in it: name the folder that holds them")
    for one, other in pairwise(paths):
        if one.stem == other.stem:
            raise BadInput(f"{one}: the same shard as {other.name}: remove one of them")
    if strangers := [path for path in paths if path.is_symlink() or not path.is_file()]:
        raise BadInput(f"{strangers[0]}: a link or no plain file: copy or hard-link it")
    if unfinished := sorted(folder.glob(f"*{SIDECAR_SUFFIX}")):
        raise BadInput(f"{unfinished[0]}: of an unfinished ingest: run its command again, which resumes it")
    return paths


def _probe(paths: list[Path], limit_s: float = _PROBE_S) -> None:
    """Open the shards in another process first: damage in an attribute can crash or hang HDF5 itself."""
    names = b"\0".join(os.fsencode(path.absolute()) for path in paths)
    roots = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    what = "crashes HDF5"
    try:
        ended = subprocess.run(
            _PROBE_COMMAND,
            input=names,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
            timeout=limit_s * len(paths),
            check=False,
        )
        opened, failed = ended.stdout, ended.returncode != 0
    except subprocess.TimeoutExpired as error:
        opened, failed = error.stdout or b"", True
        what = f"is not opened by HDF5 in {limit_s:g} s"
    if failed:
        raise BadInput(f"{paths[max(len(opened.split()) - 1, 0)]}: {what}: damaged; copy or write it again")


def _open_shards(paths: Iterable[bytes]) -> None:
    """Open the shards, in the process that `_probe` starts; exceptions are left to the caller of `_probe`."""
    for k, path in enumerate(paths):
        print(k, flush=True)
        with suppress(BadInput, *hdf5.HDF5_ERRORS), hdf5.open_file(Path(os.fsdecode(path))) as file:
            for name in _ATTRIBUTES:
                hdf5.attribute(file, name)
            for name in (*COLUMNS, *({"image_unit"} & file.keys())):
                hdf5.checked_array(file, name)
            for name in read_extra_names(file):
                hdf5.attribute(hdf5.checked_array(file, name), "unit")


def _read_header(path: Path) -> Header:
    try:
        with hdf5.open_file(path) as file:
            bands = hdf5.text_attribute(file, "bands")
            scale, unit, version = (hdf5.attribute(file, name) for name in _ATTRIBUTES[1:])
            if bands is None or scale is None:
                raise BadInput(f"{path}: has no attribute {_ATTRIBUTES[0 if bands is None else 1]}")
            scale, unit, version = float(scale), FLUX_UNIT if unit is None else unit, version or 1
            if unit != FLUX_UNIT or version not in range(1, FORMAT_VERSION + 1):
                want = f"{FLUX_UNIT!r} and 1 to {FORMAT_VERSION}, or leave them out"
                raise BadInput(
                    f"{path}: attributes flux_unit {str(unit)!r} and version {version}: want {want}"
                )
            if not 0 < scale < 100:
                raise BadInput(f"{path}: attribute pixel_scale {scale:g}: want arcsec")
            images = hdf5.checked_array(file, "images")
            if images.ndim != 4 or images.shape[1] != len(bands) or images.shape[2] != images.shape[3]:
                raise BadInput(
                    f"{path}: 'images' {images.shape}: want (N, {len(bands)}, S, S) for {','.join(bands)}"
                )
            if images.dtype == np.int16 and "image_unit" not in file:
                raise BadInput(
                    f"{path}: 'images' of type int16 without the array 'image_unit': if they are numbers of "
                    "hpcphotoz's own storage, copy or write the shard again; else write fluxes in nMgy, "
                    "float32 or float16"
                )
            if images.dtype not in (np.float32, np.float16, np.int16):
                raise BadInput(
                    f"{path}: 'images' of type {images.dtype}: want float32 or float16: write fluxes in nMgy "
                    "(a change of the type alone is right only if the numbers are nMgy already)"
                )
            return Header(bands, images.shape[2], scale, str(images.dtype))
    except hdf5.HDF5_ERRORS as error:
        raise BadInput(
            f"{path}: not a shard ({error}): want the arrays {', '.join(COLUMNS)} and the attributes bands, "
            "pixel_scale"
        ) from None


def _index_shard(path: Path, header: Header, moments: BandMoments) -> ShardEntry:
    size = path.stat().st_size
    with naming_damage(path), hdf5.open_file(path) as file:
        images = hdf5.checked_array(file, "images")
        rows = images.shape[0] if images.ndim == 4 else 0
        chunk_rows = images.chunks[0] if images.chunks else 1
    if not rows:
        raise BadInput(f"{path}: holds no image: remove it")
    shard = ShardEntry(path.name, rows, size, "", None, None, 0, chunk_rows=min(chunk_rows, rows))
    manifest = Manifest(header, (shard,), moments.result(), {})
    label_header = replace(header, extra=label_columns(header.extra))
    units = ["image_unit"] if header.storage == "int16" else []
    names = [*COLUMNS, *units, *(column.name for column in label_header.extra)]
    labels: dict[str, list[Any]] = {name: [] for name in (*names, "image_xxh3") if name != "images"}
    with open_shard(path.parent, manifest, shard) as file:
        for start in range(0, rows, _ROWS):
            with naming_damage(path, start, min(start + _ROWS, rows)):
                part = {name: hdf5.read(file[name], start, start + _ROWS) for name in names}
            fixed = {name: part[name] for name in COLUMNS}
            if units:
                fixed["images"] = _fluxes(part, path, start)
            extra = {column.name: column.loaded(part[column.name]) for column in label_header.extra}
            stamps = Stamps(**fixed, extra=extra)
            stamps = check_stamps(label_header, stamps, f"{path}: rows from {start}")
            _check_values(stamps, path, start)
            part["image_xxh3"] = image_digests(part.pop("images"))
            for name, pieces in labels.items():
                pieces.append(part[name])
            moments.add(stamps)
        whole = {name: np.concatenate(pieces) for name, pieces in labels.items()}
        _store_image_digests(path, file, whole["image_xxh3"])
    values, counts = np.unique(whole["object_id"], return_counts=True)
    if (counts > 1).any():
        raise BadInput(f"{path}: object_id {values[counts > 1][0]} is there twice: ids must be unique")
    z_min, z_max, unlabelled = redshift_range(whole["z_spec"])
    return replace(
        shard,
        sha256=file_sha256(path),
        z_min=z_min,
        z_max=z_max,
        unlabelled=unlabelled,
        labels_xxh3=label_digest(whole),
        ids_xxh3=label_digest({"object_id": whole["object_id"]}),
    )


def _fluxes(part: dict[str, Any], path: Path, start: int) -> npt.NDArray[np.float32]:
    """Decode int16 images to nMgy, of rows from `start`; refuse a unit that is none."""
    unit = part["image_unit"]
    bad = np.flatnonzero(~(np.isfinite(unit) & (unit != 0)).all(axis=1))
    if len(bad):
        raise BadInput(
            f"{path}: row {start + bad[0]} has an image_unit that is 0 or not finite: want nMgy, below 0 "
            "where bright pixels are compressed: copy or write the shard again"
        )
    return encoding.decode(part["images"], unit)


def _store_image_digests(path: Path, file: h5py.File, digests: npt.NDArray[np.uint64]) -> None:
    """Write the checksums of a shard's images beside it, or compare those that it holds."""
    if "image_xxh3" not in file:
        with atomic_write(path.with_name(path.name + CHECKSUM_SUFFIX)) as temporary:
            digests.astype("<u8").tofile(temporary)
        return
    with naming_damage(path):
        wrong = np.flatnonzero(hdf5.read(file["image_xxh3"]) != digests)
    if len(wrong):
        raise BadInput(images_differ_message(path, wrong))


def _check_values(stamps: Stamps, path: Path, start: int) -> None:
    """Refuse labels that no object has; an unknown redshift is NaN."""
    # -1 and below are sentinels of catalogues, not values.
    limits = {"z_spec": (-0.99, 20.0), "ra": (-360.0, 360.0), "dec": (-90.0, 90.0), "ebv": (-0.99, 100.0)}
    for name, (low, high) in limits.items():
        values = getattr(stamps, name)
        bad = np.flatnonzero(~((values >= low) & (values <= high)) & ~np.isnan(values))
        if len(bad):
            raise BadInput(
                f"{path}: row {start + bad[0]} has {name} {values[bad[0]]:g}: want {low:g} to {high:g}, "
                "or NaN where unknown"
            )


if __name__ == "__main__":
    _open_shards(sys.stdin.buffer.read().split(b"\0"))
