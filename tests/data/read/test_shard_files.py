"""Open shards: descriptors are closed, stale files opened again, all kinds of chunks read."""

import errno
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpcphotoz.config import Data
from hpcphotoz.data.format.index import index_folder
from hpcphotoz.data.format.manifest import MANIFEST, read_manifest
from hpcphotoz.data.format.stamps import COLUMNS
from hpcphotoz.data.read import readers, shard_files
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.data.stream.window import BufferPool
from hpcphotoz.errors import BadInput
from tests.helpers.datasets import linked_dataset, make_dataset, make_stamps, streamed_images

OPTIONS = Data(block_rows=4, window_blocks=3)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_open_files_are_few_and_are_closed(tmp_path: Path) -> None:
    folder = linked_dataset(make_dataset(tmp_path / "one", n=8, shard_rows=8), tmp_path / "many", 300)
    before, most = descriptors(), 0
    stream = Stream(folder, OPTIONS, global_batch=16, seed=1, part="all")
    for epoch in range(2):
        for _ in stream.epoch(epoch):
            most = max(most, descriptors())
    assert most - before < 90, "64 shards stay open, not 300"
    del stream
    assert descriptors() <= before


def test_threads_open_different_shards_at_a_time_and_the_same_one_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network file system opening takes several round trips: threads open shards at the same time."""
    folder = linked_dataset(make_dataset(tmp_path / "one", n=8, shard_rows=8), tmp_path / "many", 4)
    opened, together = [], threading.Barrier(4, timeout=20)
    start = shard_files.ShardFile.__init__

    def opening(self: shard_files.ShardFile, *args: Any) -> None:
        opened.append(args[2])
        together.wait()
        start(self, *args)

    monkeypatch.setattr(shard_files.ShardFile, "__init__", opening)
    these = shard_files.ShardFiles(folder, read_manifest(folder))
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(these.get, [0, 1, 2, 3] * 2))
    assert sorted(opened) == [0, 1, 2, 3] and these.openings == 4
    assert [found[k] is found[k + 4] for k in range(4)] == [True] * 4


def test_a_shard_that_cannot_be_opened_is_tried_again(dataset: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset, tmp_path / "d")
    (folder / "shard-00001.hdf5").rename(folder / "away")
    these = shard_files.ShardFiles(folder, read_manifest(folder, check=False))
    for _ in range(2):
        with pytest.raises(BadInput, match=r"shard-00001\.hdf5: listed"):
            these.get(1)
    (folder / "away").rename(folder / "shard-00001.hdf5")
    assert these.get(1).entry.rows == 32


def test_threads_that_meet_a_shard_verify_its_labels_once(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked, both = [], threading.Barrier(2, timeout=20)

    def verify(self: shard_files.ShardFile, ids_only: bool = False) -> None:
        checked.append(self.entry.file)
        both.wait()  # until another thread asks too

    monkeypatch.setattr(shard_files.ShardFile, "verify_labels", verify)
    these = shard_files.ShardFiles(dataset, read_manifest(dataset))
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(these.verify_labels, 0) for _ in range(3)]
        both.wait()
        for future in asked:
            future.result()
    assert checked == ["shard-00000.hdf5"]


def test_a_stale_file_is_opened_again_under_the_same_descriptor(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ESTALE the file is opened again: reading the old descriptor would fail for ever."""
    real_read, real_open, stale = os.preadv, os.open, set()

    def opened(path: os.PathLike[str], flags: int) -> int:
        number = real_open(path, flags)
        stale.discard(number)
        return number

    def read(number: int, views: list[memoryview], offset: int) -> int:
        if number in stale:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real_read(number, views, offset)

    real_dup2 = os.dup2

    def dup2(source: int, target: int) -> int:
        stale.discard(target)
        return real_dup2(source, target)

    handle = readers.FileHandle(dataset / "shard-00000.hdf5")
    stale.add(handle._number)
    monkeypatch.setattr(readers, "_FIRST_WAIT_S", 0.001)
    for name, function in (("preadv", read), ("open", opened), ("dup2", dup2)):
        monkeypatch.setattr(os, name, function)
    first = bytearray(8)
    handle.read([memoryview(first)], 0)
    assert bytes(first) == b"\x89HDF\r\n\x1a\n"


def test_buffers_are_reused() -> None:
    buffers = BufferPool(1000, pinned=False)
    first = buffers.acquire()
    assert len(first) == 1000 and first.ctypes.data % 4096 == 0, (
        "the kernel copies quickest to a page's start"
    )
    place = id(first)
    tensor = buffers.as_tensor(first, (2, 3), np.float32)
    del first
    view = tensor[1]
    assert id(buffers.acquire()) != place, "lent"
    del tensor
    assert not buffers._free, "a view still holds it"
    del view
    assert [id(buffer) for buffer in buffers._free] == [place]
    assert id(buffers.acquire()) == place


def test_an_abandoned_epoch_stops_reading(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt must not wait for the windows that are queued."""
    real, reads = os.preadv, []

    def slow(number: int, views: list[memoryview], offset: int) -> int:
        reads.append(offset)
        if len(reads) == 3:
            raise KeyboardInterrupt
        return real(number, views, offset)

    stream = Stream(
        dataset,
        OPTIONS.model_copy(update={"verify": "never", "window_blocks": 20}),
        global_batch=75,
        seed=1,
        part="all",
    )
    monkeypatch.setattr(os, "preadv", slow)
    with pytest.raises(KeyboardInterrupt):
        list(stream.epoch(0))
    assert len(reads) <= 3 + 3 * 5, "at most the run that each of three threads was in"
    assert not [t for t in threading.enumerate() if t.name.startswith("hpcphotoz-read")]


def write_user_shard(folder: Path, userblock: int = 0) -> h5py.File:
    folder.mkdir()
    stamps = make_stamps(12)
    file = h5py.File(folder / "shard-00000.hdf5", "w", userblock_size=userblock)
    file.attrs.update(bands=list("ugriz"), pixel_scale=0.396)
    for name in COLUMNS:
        if name != "images":
            file[name] = getattr(stamps, name)
    return file


def test_a_chunk_with_skipped_filters_is_read(tmp_path: Path) -> None:
    images = make_stamps(12).images
    with write_user_shard(tmp_path / "d") as file:
        data = file.create_dataset(
            "images", images.shape, "f4", chunks=(3, 5, 16, 16), compression="gzip", shuffle=True
        )
        data[:6] = images[:6]
        for k in (6, 9):  # the bits of the mask: no shuffle, no gzip
            data.id.write_direct_chunk((k, 0, 0, 0), images[k : k + 3].tobytes(), filter_mask=0b11)
    index_folder(tmp_path / "d")
    np.testing.assert_array_equal(streamed_images(tmp_path / "d"), images)


def test_a_chunk_that_was_never_written_is_not_trained_on(tmp_path: Path) -> None:
    images = make_stamps(12).images
    with write_user_shard(tmp_path / "d") as file:
        data = file.create_dataset("images", images.shape, "f4", chunks=(3, 5, 16, 16), fillvalue=7)
        for k in (0, 6, 9):
            data[k : k + 3] = images[k : k + 3]
    with pytest.raises(BadInput, match=r"shard-00000\.hdf5: 'images' was never written, or not whole"):
        index_folder(tmp_path / "d")


@pytest.mark.parametrize("chunks", [None, (3, 5, 16, 16)])
def test_a_file_with_a_user_block_is_read(tmp_path: Path, chunks: tuple[int, ...] | None) -> None:
    images = make_stamps(12).images
    with write_user_shard(tmp_path / "d", userblock=512) as file:
        file.create_dataset("images", data=images, chunks=chunks)
    index_folder(tmp_path / "d")
    np.testing.assert_array_equal(streamed_images(tmp_path / "d"), images)


def test_bands_may_be_bytes(tmp_path: Path) -> None:
    """Fixed-length bytes, as numpy stores arrays of text."""
    images = make_stamps(12).images
    with write_user_shard(tmp_path / "d") as file:
        file.attrs["bands"] = np.array([*"ugriz"], "S1")
        file["images"] = images
    assert index_folder(tmp_path / "d").header.bands == tuple("ugriz")
    np.testing.assert_array_equal(streamed_images(tmp_path / "d"), images)
    np.testing.assert_array_equal(
        next(read_rows(tmp_path / "d", read_manifest(tmp_path / "d"))).images, images
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.attrs.__delitem__("bands"), "bands"),
        (lambda f: f.attrs.__setitem__("bands", 5), "attribute 'bands' [5]: want a list of names"),
        (
            lambda f: f.attrs.__setitem__("bands", np.array([*b"ugri\xff"], "u1").view("S1")),
            "want a list of names, in UTF-8",
        ),
        (lambda f: f.attrs.__setitem__("bands", np.array([[*"ugriz"]], "S1")), "want a list of names"),
        (lambda f: f.attrs.__setitem__("bands", [*"ugr"]), "'images'"),
        (lambda f: f.attrs.__setitem__("pixel_scale", "fine"), "could not convert"),
        (lambda f: f.attrs.__setitem__("pixel_scale", -1.0), "pixel_scale -1"),
        (lambda f: f.attrs.__setitem__("flux_unit", "Jy"), "flux_unit 'Jy'"),
        (lambda f: f.attrs.__setitem__("version", 7), "version 7"),
        (lambda f: (f.__delitem__("images"), f.create_group("images")), "'images' is a group"),
        (lambda f: (f.__delitem__("ebv"), f.create_group("ebv")), "'ebv'"),
        (lambda f: (f.__delitem__("ebv"), f.__setitem__("ebv", np.zeros(12))), "want float32"),
        (lambda f: f["z_spec"].__setitem__(3, -9999), "row 3 has z_spec -9999"),
        (lambda f: f["ra"].__setitem__(2, 900.0), "row 2 has ra 900"),
        (lambda f: f["object_id"].__setitem__(2, f["object_id"][1]), "object_id"),
    ],
)
def test_index_refuses_invalid_shards(tmp_path: Path, change: object, says: str) -> None:
    with write_user_shard(tmp_path / "d") as file:
        file["images"] = make_stamps(12).images
        change(file)  # type: ignore[operator]
    with pytest.raises(BadInput) as caught:
        index_folder(tmp_path / "d")
    assert says in str(caught.value) and "shard-00000.hdf5" in str(caught.value), caught.value
    assert not (tmp_path / "d" / MANIFEST).exists()
