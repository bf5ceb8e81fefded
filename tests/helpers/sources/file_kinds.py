"""Arrays of nine objects of three bands by a map, and a writer for each kind of file that maps read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Table

from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.sources.arrays.array_map import ArrayMap, parse_map
from hpcphotoz.sources.arrays.ingest_arrays import ingest_arrays
from tests.helpers.datasets import load
from tests.helpers.sources.array_files import GZIP, pixels, write

N, BANDS, SIZE = 9, 3, 16
PLANES = {"bands": "g", "size": 16, "pixel_scale": 0.262}
PLAIN = {"images": "cutout", "bands": ["g", "r", "z"], "pixel_scale": 0.262}


def map_of(**other: Any) -> ArrayMap:
    return parse_map(PLAIN | other, "map.toml")


def ingest(out: Path, source: Path, array_map: ArrayMap, **options: Any) -> tuple[Stamps, list[Any]]:
    if not array_map.z_spec:
        options["keep_unlabelled"] = True
    options = {"storage": "float32", "processes": 1, **options}
    manifest, skipped = ingest_arrays(out, [source], array_map, "map.toml", **options)
    return load(out, manifest), skipped


def columns() -> dict[str, Any]:
    return {
        "cutout": pixels(N, BANDS, SIZE),
        "specz": np.linspace(0.1, 0.3, N),
        "name": np.arange(N) + 7,
        "sfd": np.full(N, 0.02),
    }


LABELS = {"z_spec": "specz", "object_id": "name", "ebv": "sfd"}


def write_hdf5(folder: Path, values: dict[str, Any]) -> Path:
    return write(folder / "a.hdf5", GZIP, **values)


def write_npz(folder: Path, values: dict[str, Any]) -> Path:
    np.savez(folder / "a.npz", **values)
    return folder / "a.npz"


def write_npy(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "a").mkdir()
    for name, value in values.items():
        np.save(folder / "a" / f"{name}.npy", value)
    return folder / "a"


def write_record_npy(folder: Path, values: dict[str, Any]) -> Path:
    fields = [(name, np.asarray(v).dtype, np.shape(v)[1:]) for name, v in values.items()]
    rows = np.zeros(N, fields)
    for name, value in values.items():
        rows[name] = value
    np.save(folder / "rows.npy", rows)
    return folder / "rows.npy"


def write_fits(folder: Path, values: dict[str, Any]) -> Path:
    Table(values).write(folder / "a.fits")
    return folder / "a.fits"


def write_zarr(folder: Path, values: dict[str, Any]) -> Path:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(folder / "a.zarr"), mode="w")
    for name, value in values.items():
        group.create_array(name, data=np.asarray(value), chunks=(4, *np.shape(value)[1:]))
    return folder / "a.zarr"


def arrow_table(values: dict[str, Any]) -> Any:
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.table({name: pyarrow.array(np.asarray(v).tolist()) for name, v in values.items()})


def write_parquet(folder: Path, values: dict[str, Any]) -> Path:
    table = arrow_table(values)
    from pyarrow import parquet

    parquet.write_table(table, folder / "a.parquet", row_group_size=4)
    return folder / "a.parquet"


def write_arrow(folder: Path, values: dict[str, Any]) -> Path:
    table = arrow_table(values)
    from pyarrow import feather

    feather.write_feather(table, folder / "a.arrow", chunksize=4)
    return folder / "a.arrow"


def write_stream(folder: Path, values: dict[str, Any]) -> Path:
    table = arrow_table(values)
    from pyarrow import ipc

    with ipc.new_stream(str(folder / "a.arrow"), table.schema) as stream:
        stream.write_table(table, max_chunksize=4)
    return folder / "a.arrow"
