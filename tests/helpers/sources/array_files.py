"""Writes small files of arrays in the layouts of published image sets, and ingests them."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcphotoz.data.format.manifest import Manifest, read_manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.sources.arrays.array_map import load_map
from hpcphotoz.sources.arrays.ingest_arrays import ingest_arrays
from hpcphotoz.sources.simulation.survey_tables import EXTINCTION
from tests.helpers.datasets import load

GZIP = {"compression": "gzip", "chunks": True}


def pixels(n: int, bands: int, size: int, seed: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Images (n, bands, size, size) whose noise differs by band, so that swapped bands or axes show."""
    noise = np.random.default_rng(seed).normal(size=(n, bands, size, size))
    return (noise * (1 + np.arange(bands))[:, None, None]).astype(np.float32)


def write(path: Path, compression: dict[str, Any] | None = None, **fields: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, data in fields.items():
            file.create_dataset(name, data=data, **(compression or {}))
    return path


def hayat(path: Path, n: int = 7, size: int = 107, **other: Any) -> Path:
    ebv = np.linspace(0.01, 0.1, n)
    fields = {
        "images": pixels(n, 5, size),
        "specz_redshift": np.linspace(0.05, 0.3, n).astype(np.float32),
        "specz_redshift_err": np.full(n, 1e-4, np.float32),
        "e_bv": (ebv[:, None] * EXTINCTION).astype(np.float32),
        "ObjID": 1237661971724599000 + np.arange(n),
        "specObjID": 10 + np.arange(n),
        "ra": np.linspace(0, 350, n),
        "dec": np.linspace(-5, 5, n),
    }
    return write(path, **(fields | other))


def labels(n: int) -> np.ndarray[Any, Any]:
    fields = [("z", "f4"), ("EBV", "f4"), ("ra", "f8"), ("dec", "f8")]
    fields += [("specObjID", "i8"), ("dered_petro_r", "f4"), ("primtarget", "i8")]
    found = np.zeros(n, fields)
    found["z"], found["EBV"] = np.linspace(0.01, 0.39, n), np.linspace(0.01, 0.2, n)
    found["ra"], found["dec"] = np.linspace(0, 359, n), np.linspace(-10, 60, n)
    found["specObjID"] = 299489676975171584 + np.arange(n)
    return found


def mmu(path: Path, ids: Any, bands: str = "griz", size: int = 24, seed: int = 1, **other: Any) -> Path:
    n, b = len(ids), len(bands)
    fields = {
        "image_array": pixels(n, b, size, seed),
        "image_ivar": np.ones((n, b, size, size), np.float32),
        "image_mask": np.ones((n, size, size), np.bool_),
        "image_band": np.array([[f"des-{band}".encode() for band in bands]] * n),
        "image_psf_fwhm": np.ones((n, b), np.float32),
        "image_scale": np.full((n, b), 0.262, np.float32),
        "object_id": np.array(ids, h5py.string_dtype("utf-8", 16)),
        "RA": np.linspace(1, 2, n),
        "DEC": np.linspace(-1, 1, n),
        "EBV": np.full(n, 0.03, np.float32),
    }
    return write(path, GZIP, **(fields | other))


def ingest(out: Path, sources: list[Path], name: str, **options: Any) -> tuple[Manifest, list[Any]]:
    """Ingest files as float32 by the map of this name, shipped or a file."""
    return ingest_arrays(out, sources, load_map(name), name, **{"storage": "float32", **options})


def ingest_and_load(
    out: Path, sources: list[Path], layout: str, **options: Any
) -> tuple[Manifest, Stamps, list[Any]]:
    """Ingest files and return the manifest, all stamps and the skipped objects."""
    manifest, skipped = ingest(out, sources, layout, processes=1, **options)
    assert read_manifest(out) == manifest and manifest.provenance["skipped"] == skipped
    return manifest, load(out, manifest), skipped
