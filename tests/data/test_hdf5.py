"""Foreign HDF5 files: links to other files, oversized decompression and special types are refused."""

import json
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcphotoz.data import hdf5
from hpcphotoz.data.format import shards
from hpcphotoz.data.format.index import index_folder
from hpcphotoz.data.format.manifest import MANIFEST, read_manifest, write_manifest
from hpcphotoz.data.format.stamps import COLUMNS
from hpcphotoz.data.read import rows
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.report.pictures.dataset_sample import sample_dataset
from tests.helpers.datasets import make_dataset, make_stamps, streamed_images
from tests.helpers.sources.array_files import ingest

N = 12
SHAPE = (N, 5, 16, 16)
CHUNKS = (3, 5, 16, 16)
Change = Callable[[h5py.File, Path], Any]


def write(path: Path, change: Change | None = None, **options: Any) -> None:
    """A shard that h5py writes with these options, then changed."""
    stamps = make_stamps(N)
    with h5py.File(path, "w") as file:
        file.attrs.update(bands=list("ugriz"), pixel_scale=0.396)
        for name in COLUMNS:
            file.create_dataset(name, data=getattr(stamps, name), **(options if name == "images" else {}))
        if change is not None:
            change(file, path)


def foreign(folder: Path, change: Change) -> Path:
    """A dataset whose shard and manifest were changed consistently after it was indexed."""
    folder.mkdir()
    path = folder / "shard-00000.hdf5"
    write(path)
    manifest = index_folder(folder)
    path.unlink()
    write(path, change)
    entry = replace(manifest.shards[0], bytes=path.stat().st_size, sha256=shards.file_sha256(path))
    write_manifest(folder, replace(manifest, shards=(entry,)))
    return folder


def index_again(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    index_folder(folder)


READERS: dict[str, Callable[[Path], Any]] = {
    "index": index_again,
    "verify": lambda folder: rows.verify(folder, read_manifest(folder)),
    "evaluate": lambda folder: list(rows.read_rows(folder, read_manifest(folder))),
    "picture": lambda folder: sample_dataset(folder, read_manifest(folder)),
    "train": streamed_images,
}


def put(name: str, **how: Any) -> Change:
    """Replace an array by another of the same name."""

    def change(file: h5py.File, path: Path) -> None:
        data = file[name][...]
        del file[name]
        file.create_dataset(name, **{"data": data, **how})

    return change


def elsewhere(path: Path) -> Path:
    other = path.with_name("other.h5")
    with h5py.File(other, "w") as file:
        file["images"] = np.ones(SHAPE, np.float32)
    return other


def external_link(file: h5py.File, path: Path) -> None:
    del file["images"]
    file["images"] = h5py.ExternalLink(elsewhere(path).name, "/images")


def soft_link(file: h5py.File, path: Path) -> None:
    file.move("images", "pixels")
    file["images"] = h5py.SoftLink("/pixels")


def virtual(file: h5py.File, path: Path) -> None:
    del file["images"]
    layout = h5py.VirtualLayout(SHAPE, np.float32)
    layout[...] = h5py.VirtualSource(elsewhere(path).name, "images", SHAPE)
    file.create_virtual_dataset("images", layout)


def external_storage(file: h5py.File, path: Path) -> None:
    raw = path.with_name("pixels.raw")
    raw.write_bytes(np.ones(SHAPE, np.float32).tobytes())
    del file["images"]
    file.create_dataset("images", SHAPE, "f4", external=[(str(raw), 0, raw.stat().st_size)])


def references(file: h5py.File, path: Path) -> None:
    del file["object_id"]
    file.create_dataset("object_id", data=[file["ra"].ref] * N, dtype=h5py.ref_dtype)


def vlen(file: h5py.File, path: Path) -> None:
    del file["object_id"]
    file.create_dataset("object_id", (N,), h5py.vlen_dtype(np.int64))[0] = np.arange(3)


def bomb(name: str, size: int, **options: Any) -> Change:
    """Replace an array by one whose second chunk expands to `size` bytes of zeros."""

    def change(file: h5py.File, path: Path) -> None:
        data = file[name][...]
        del file[name]
        chunks = (3, *data.shape[1:])
        made = file.create_dataset(name, data=data, chunks=chunks, compression="gzip", **options)
        deflate, parts = zlib.compressobj(9), []
        for _ in range(size >> 20):
            parts.append(deflate.compress(bytes(1 << 20)))
        made.id.write_direct_chunk((3,) + (0,) * (data.ndim - 1), b"".join(parts) + deflate.flush())

    return change


HOSTILE: dict[str, tuple[Change, str]] = {
    "external link": (external_link, "'images' is an external link"),
    "soft link": (soft_link, "'images' is a soft link"),
    "virtual dataset": (virtual, "'images' is a virtual dataset"),
    "external storage": (external_storage, "'images' is stored outside the file"),
    "references": (references, "'object_id' is of type object"),
    "group": (lambda f, _: (f.__delitem__("ebv"), f.create_group("ebv")), "'ebv' is a group"),
    "vlen": (vlen, "is of type object"),
    "compound": (put("ra", data=np.zeros(N, [("a", "f4"), ("b", "f4")])), "'ra' is of type"),
    "enum": (put("object_id", dtype=h5py.enum_dtype({"A": 1}, "i8")), "'object_id' is int64"),
    "big-endian": (put("images", dtype=">f4"), "'images' .*>f4"),
    "scaleoffset": (put("object_id", scaleoffset=0), "'object_id' has the filters scaleoffset"),
    "never written": (put("images", data=None, shape=SHAPE, dtype="f4"), "'images' was never written"),
    "large chunk": (
        put(
            "ebv",
            data=None,
            shape=(N,),
            dtype="f4",
            chunks=(1 << 28,),
            maxshape=(1 << 28,),
            compression="gzip",
        ),
        "'ebv' has chunks of 1073741824 bytes",
    ),
    "large lzf chunk": (
        put(
            "ebv",
            data=None,
            shape=(N,),
            dtype="f4",
            chunks=(1 << 22,),
            maxshape=(1 << 22,),
            compression="lzf",
        ),
        "'ebv' has chunks of 16777216 bytes: write it with chunks of at most 4194304",
    ),
    "more than the file": (
        put("ebv", shape=(1 << 40,), dtype="f4", chunks=(1 << 20,), data=None),
        "'ebv' was never written",
    ),
    "gzip bomb": (bomb("images", 14 << 20), r"rows .*more bytes instead of 15360"),
    "large gzip bomb": (bomb("images", 64 << 20), r"rows .*a chunk of 65238 bytes for 15360 uncompressed"),
    "gzip bomb of labels": (bomb("ra", 1 << 20, shuffle=True), "more bytes instead of 24"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_every_reader_refuses_data_that_are_no_plain_array_of_the_file(
    tmp_path: Path, kind: str, reader: str
) -> None:
    change, says = HOSTILE[kind]
    folder = foreign(tmp_path / "d", change)
    with pytest.raises(BadInput, match=says) as caught:
        READERS[reader](folder)
    assert "shard-00000.hdf5" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["external link", "soft link", "virtual dataset", "external storage"])
def test_ingest_follows_no_link_either(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "set.h5"
    names = {"ObjID": "object_id", "specz_redshift": "z_spec", "ra": "ra", "dec": "dec"}

    def change(file: h5py.File, path: Path) -> None:
        for theirs, ours in names.items():
            file.move(ours, theirs) if theirs != ours else None
        file["e_bv"] = np.full((N, 5), 0.1)
        HOSTILE[kind][0](file, path)

    write(path, change)
    with pytest.raises(BadInput, match=HOSTILE[kind][1]):
        ingest(tmp_path / "out", [path], "hayat", processes=1)
    assert not (tmp_path / "out").exists()


def test_decompression_stops_at_the_size_of_a_chunk() -> None:
    raw, size = zlib.compress(bytes(64 << 20), 9), 100_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="more bytes instead of 100000"):
        hdf5.undo_filters(raw, 0, (hdf5.GZIP,), size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * size


def test_training_and_evaluation_read_the_same_bytes(tmp_path: Path) -> None:
    """A manifest whose offsets point at other bytes than HDF5 does."""
    folder = make_dataset(tmp_path / "d", n=N, shard_rows=N)
    path = folder / MANIFEST
    tree = json.loads(path.read_text())
    tree["shards"][0]["offsets"]["images"] -= 512
    path.write_text(json.dumps(tree))
    for reader in ("verify", "evaluate", "picture"):
        with pytest.raises(BadInput, match="'images' lies elsewhere than the manifest says"):
            READERS[reader](folder)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_h5py_writes_is_read_as_h5py_reads_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Chunks of any shape, partial ones included, with any of the known filters."""
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    dtype = data.draw(st.sampled_from(["f4", ">f4", "f8", "i8", "i2", "u1", "?", "S5"]))
    options = {
        "compression": data.draw(st.sampled_from([None, "gzip", "lzf"])),
        "shuffle": data.draw(st.booleans()),
        "fletcher32": data.draw(st.booleans()),
    }
    values = np.random.default_rng(0).integers(-9, 9, shape).astype(dtype)
    start = data.draw(st.integers(0, shape[0]))
    stop = data.draw(st.integers(start, shape[0]))
    path = tmp_path_factory.mktemp("any") / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=values, chunks=chunks, **options)
    with hdf5.open_file(path) as file:
        found = hdf5.checked_array(file, "a")
        np.testing.assert_array_equal(hdf5.read(found, start, stop), values[start:stop], strict=True)
        np.testing.assert_array_equal(hdf5.read(found), values, strict=True)


@given(size=st.integers(1, 3000), seed=st.integers(0, 99), ones=st.booleans())
@settings(max_examples=40, deadline=None)
def test_fletcher32_is_that_of_hdf5(
    tmp_path_factory: pytest.TempPathFactory, size: int, seed: int, ones: bool
) -> None:
    """Also for an odd number of bytes, and with all bits set, where a sum is 0xffff instead of 0."""
    values = np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)
    values = np.full(size, 255, np.uint8) if ones else values
    path = tmp_path_factory.mktemp("any") / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=values, chunks=(size,), fletcher32=True)
        mask, raw = file["a"].id.read_direct_chunk((0,))
    assert bytes(hdf5.undo_filters(raw, mask, (hdf5.FLETCHER32,), size)[0]) == values.tobytes()
    raw = bytearray(raw)
    raw[seed % size] ^= 1
    with pytest.raises(ValueError, match="checksum differs"):
        hdf5.undo_filters(bytes(raw), mask, (hdf5.FLETCHER32,), size)
