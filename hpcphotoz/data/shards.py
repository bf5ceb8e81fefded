"""The shard format, version 1: schema, write, read, verify.

A dataset is a folder: `manifest.json` beside `shard-00000.h5`, `shard-00001.h5` ... Every array of a shard
is a contiguous, 1 MiB-aligned HDF5 dataset that h5py alone can read. The manifest is written last and
atomically: a folder without one is an unfinished dataset.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from hpcphotoz.atomic import replacing, write_text
from hpcphotoz.errors import BadInput

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
ALIGNMENT = 1 << 20
FLUX_UNIT = "nanomaggy"
Array = npt.NDArray[Any]
_FORMAT = "hpcphotoz-shards"


@dataclass(frozen=True)
class Header:
    """What every shard of a dataset has in common."""

    bands: tuple[str, ...]  # e.g. ("u", "g", "r", "i", "z")
    stamp: int  # pixels a side
    pixel_scale: float  # arcsec


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


class DatasetWriter:
    """Writes a dataset shard by shard; memory is bounded by one shard.

    Use as a context manager: leaving it normally writes the manifest, leaving it by an exception does not,
        so that
    nothing half-written looks finished.

    Args:
        out: folder to create; may hold an unfinished dataset, which is replaced.
        header: bands, stamp size and pixel scale of every stamp.
        shard_rows: objects a shard; the last one may hold fewer.
        provenance: JSON-serialisable record of how the stamps were made.

    Raises:
        BadInput: `out` holds a finished dataset or something that is not one; stamps of the wrong shape, not
            finite
            or with a sky sigma that is not positive.
    """

    def __init__(self, out: Path, header: Header, shard_rows: int, provenance: Mapping[str, Any]) -> None:
        if shard_rows < 1:
            raise BadInput(f"shard rows {shard_rows}: must be at least 1")
        self._out, self._header, self._rows = out, header, shard_rows
        self._provenance = provenance
        self._waiting: list[Stamps] = []
        self._shards: list[Shard] = []
        self._moments = _Moments(len(header.bands))
        _prepare_folder(out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()

    def append(self, stamps: Stamps) -> None:
        """Add any number of objects; whole shards are written as they fill."""
        self._waiting.append(self._checked(stamps))
        while sum(map(len, self._waiting)) >= self._rows:
            pending = Stamps.concatenate(self._waiting)
            self._waiting = [pending[self._rows :]]
            self._write(pending[: self._rows])

    def close(self) -> Manifest:
        """Write what is left and then the manifest."""
        if sum(map(len, self._waiting)):
            self._write(Stamps.concatenate(self._waiting))
        self._waiting = []
        manifest = Manifest(self._header, tuple(self._shards), self._moments.result(), self._provenance)
        write_manifest(self._out, manifest)
        return manifest

    def _write(self, stamps: Stamps) -> None:
        name = f"shard-{len(self._shards):05d}.h5"
        self._shards.append(write_shard(self._out / name, self._header, stamps))
        self._moments.add(stamps)

    def _checked(self, stamps: Stamps) -> Stamps:
        h, n = self._header, len(stamps)
        shapes = {"images": (n, len(h.bands), h.stamp, h.stamp), "sky_sigma": (n, len(h.bands))}
        for name, dtype in COLUMNS.items():
            array = getattr(stamps, name)
            if array.shape != shapes.get(name, (n,)):
                raise BadInput(
                    f"{self._out}: {name} of shape {array.shape}, but {n} objects in bands "
                    f"{''.join(h.bands)} of {h.stamp} pixels need {shapes.get(name, (n,))}"
                )
            stamps = replace(stamps, **{name: np.ascontiguousarray(array, dtype)})
        bad = ~np.isfinite(stamps.images).all(axis=(1, 2, 3))
        bad |= ~(np.isfinite(stamps.sky_sigma) & (stamps.sky_sigma > 0)).all(axis=1)
        bad |= ~np.isfinite(stamps.ebv)
        if bad.any():
            raise BadInput(
                f"{self._out}: object {stamps.object_id[bad][0]} has a pixel or E(B-V) that is not finite, "
                f"or a sky sigma that is not positive ({bad.sum()} such of {n}): "
                "mask or drop it before writing"
            )
        return stamps


def write_shard(path: Path, header: Header, stamps: Stamps) -> Shard:
    """Write one shard under a temporary name, flush it to the disk, and rename it."""
    with replacing(path) as temporary:
        with h5py.File(
            temporary,
            "w",
            libver="v110",
            fs_strategy=None,
            alignment_threshold=ALIGNMENT // 2,
            alignment_interval=ALIGNMENT,
        ) as file:
            _fill(file, header, stamps)
        digest = _sha256(temporary)
    known = stamps.z_spec[np.isfinite(stamps.z_spec)]
    return Shard(
        file=path.name,
        rows=len(stamps),
        bytes=path.stat().st_size,
        sha256=digest,
        z_min=float(known.min()) if len(known) else None,
        z_max=float(known.max()) if len(known) else None,
        unlabelled=len(stamps) - len(known),
    )


def read_manifest(folder: Path) -> Manifest:
    """Read a dataset's manifest and check that its shards are there with the sizes it lists.

    Raises:
        BadInput: no manifest (an unfinished dataset), one that cannot be read, a shard that is missing,
            truncated or
            outside the folder.
    """
    path = folder / MANIFEST
    if not path.is_file():
        state = "an unfinished dataset" if list(folder.glob("shard-*.h5")) else "not a dataset"
        raise BadInput(f"{folder}: no {MANIFEST}: {state}; write it again, or name the folder that holds one")
    try:
        tree = json.loads(path.read_text())
        if tree["format"] != _FORMAT or tree["version"] != FORMAT_VERSION:
            raise ValueError(
                f"format {tree['format']} version {tree['version']}, not {_FORMAT} {FORMAT_VERSION}"
            )
        manifest = Manifest(
            Header(tuple(tree["bands"]), tree["stamp"], tree["pixel_scale"]),
            tuple(Shard(**entry) for entry in tree["shards"]),
            BandStatistics(**{k: tuple(v) for k, v in tree["statistics"].items()}),
            tree["provenance"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not a manifest of this format: {type(error).__name__}: {error}") from None
    for shard in manifest.shards:
        _check_size(folder, shard)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest atomically: this is what makes the dataset finished."""
    tree = {
        "format": _FORMAT,
        "version": FORMAT_VERSION,
        "rows": manifest.rows,
        "flux_unit": FLUX_UNIT,
        **asdict(manifest.header),
        "statistics": asdict(manifest.statistics),
        "shards": [asdict(shard) for shard in manifest.shards],
        "provenance": dict(manifest.provenance),
    }
    write_text(folder / MANIFEST, json.dumps(tree, indent=1) + "\n")


def read_rows(folder: Path, manifest: Manifest, batch: int = 256) -> Iterator[Stamps]:
    """All objects in the order they are stored, at most `batch` at a time.

    Raises:
        BadInput: a shard that cannot be read or does not match the manifest.
    """
    for shard in manifest.shards:
        with open_shard(folder, manifest, shard) as file:
            for start in range(0, shard.rows, batch):
                rows = slice(start, min(start + batch, shard.rows))
                stamps = Stamps(**{name: file[name][rows] for name in COLUMNS})
                check_finite(stamps.images, f"{folder / shard.file}: row", start)
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


def open_shard(folder: Path, manifest: Manifest, shard: Shard) -> h5py.File:
    """Open one shard for reading and check its attributes and shapes against the manifest.

    Raises:
        BadInput: not HDF5, or an array or attribute that differs from the manifest.
    """
    path = folder / shard.file
    h = manifest.header
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise BadInput(f"{path}: not a readable HDF5 file ({error}): copy or write it again") from None
    try:
        for name, dtype in COLUMNS.items():
            shape: tuple[int, ...] = (shard.rows,)
            if name == "images":
                shape = (shard.rows, len(h.bands), h.stamp, h.stamp)
            elif name == "sky_sigma":
                shape = (shard.rows, len(h.bands))
            found = file.get(name)
            if found is None or found.shape != shape or found.dtype != dtype:
                what = "is missing" if found is None else f"is {found.dtype}{found.shape}"
                raise BadInput(f"{path}: '{name}' {what}, the manifest says {np.dtype(dtype)}{shape}")
        if tuple(file.attrs.get("bands", ())) != h.bands:
            raise BadInput(
                f"{path}: bands {list(file.attrs.get('bands', ()))}, the manifest says {list(h.bands)}"
            )
    except BaseException:
        file.close()
        raise
    return file


def verify(folder: Path, manifest: Manifest) -> None:
    """Read every byte and check it against the manifest's checksums, then every pixel for being finite.

    Raises:
        BadInput: names the first shard that differs.
    """
    for shard in manifest.shards:
        if _sha256(folder / shard.file) != shard.sha256:
            raise BadInput(
                f"{folder / shard.file}: checksum differs from the manifest: copy or write it again"
            )
    for _ in read_rows(folder, manifest):
        continue


class _Moments:
    """Band means and variances in float64, merged batch by batch (Chan, Golub & LeVeque 1979)."""

    def __init__(self, bands: int) -> None:
        self.pixels, self.objects = 0, 0
        self.mean, self.m2, self.sky = np.zeros(bands), np.zeros(bands), np.zeros(bands)

    def add(self, stamps: Stamps) -> None:
        x = stamps.images.astype(np.float64).transpose(1, 0, 2, 3).reshape(len(self.mean), -1)
        n, mean = x.shape[1], x.mean(axis=1)
        delta, total = mean - self.mean, self.pixels + x.shape[1]
        self.m2 += ((x - mean[:, None]) ** 2).sum(axis=1) + delta**2 * self.pixels * n / total
        self.mean += delta * n / total
        self.sky += stamps.sky_sigma.astype(np.float64).sum(axis=0)
        self.pixels, self.objects = total, self.objects + len(stamps)

    def result(self) -> BandStatistics:
        std = np.sqrt(self.m2 / max(self.pixels, 1))
        sky = self.sky / max(self.objects, 1)
        return BandStatistics(tuple(self.mean.tolist()), tuple(std.tolist()), tuple(sky.tolist()))


def _fill(file: h5py.File, header: Header, stamps: Stamps) -> None:
    file.attrs.update(
        format=_FORMAT, version=FORMAT_VERSION, flux_unit=FLUX_UNIT, pixel_scale=header.pixel_scale
    )
    file.attrs["bands"] = list(header.bands)
    for name in COLUMNS:
        data = getattr(stamps, name)
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.CONTIGUOUS)
        # Early allocation: a contiguous dataset then has its file offset from the start, readable by preadv.
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple(data.shape)
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(data.dtype), space, layout)
        file[name][...] = data


def _prepare_folder(out: Path) -> None:
    if (out / MANIFEST).exists():
        raise BadInput(f"{out}: already holds a finished dataset: delete it, or choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{out}: cannot make the folder: {error.strerror}") from None
    strangers = [p.name for p in out.iterdir() if not (p.name.startswith("shard-") or p.suffix == ".tmp")]
    if strangers:
        raise BadInput(f"{out}: holds other files ({strangers[0]}): choose an empty or new folder")
    for left in out.iterdir():
        left.unlink()


def _check_size(folder: Path, shard: Shard) -> None:
    path = folder / shard.file
    if Path(shard.file).name != shard.file or path.resolve().parent != folder.resolve():
        raise BadInput(
            f"{folder / MANIFEST}: shard '{shard.file}' lies outside the dataset's folder: refused"
        )
    if not path.is_file():
        raise BadInput(f"{path}: listed in the manifest but missing: copy it again")
    if path.stat().st_size != shard.bytes:
        raise BadInput(
            f"{path}: {path.stat().st_size} bytes, the manifest says {shard.bytes}: truncated or changed, "
            "copy it again"
        )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


assert {field.name for field in fields(Stamps)} == set(COLUMNS)
