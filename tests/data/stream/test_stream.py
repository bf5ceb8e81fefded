"""The stream gives the stored objects in the planned order, at any world size; damaged files are named."""

import errno
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from hpcphotoz.config import Data
from hpcphotoz.data import order
from hpcphotoz.data.format import encoding, shards
from hpcphotoz.data.format.index import index_folder
from hpcphotoz.data.format.manifest import Header, read_manifest
from hpcphotoz.data.format.stamps import COLUMNS
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.data.read import file_handle
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.data.select.subset import SplitPart
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.errors import BadInput
from hpcphotoz.world import World
from tests.helpers.datasets import make_dataset, make_stamps

SMALL = Data(block_rows=4, window_blocks=3, validation=0.2, test=0.2)


def ids(batches: list[Batch]) -> list[int]:
    return [int(i) for batch in batches for i in batch.object_id]


def stream(
    folder: Path, rank: int = 0, size: int = 1, part: SplitPart = "all", options: Data = SMALL
) -> Stream:
    return Stream(folder, options, global_batch=16, seed=1, part=part, world=World(rank, size, rank, size))


def test_batches_hold_what_is_on_disk(dataset: Path) -> None:
    stamps = make_stamps(75)
    row = {int(i): k for k, i in enumerate(stamps.object_id)}
    seen = 0
    for batch in stream(dataset).epoch(0):
        rows = [row[int(i)] for i in batch.object_id]
        for name in ("images", "z_spec", "ebv", "sky_sigma"):
            np.testing.assert_array_equal(getattr(batch, name).numpy(), getattr(stamps, name)[rows])
        assert batch.position.tolist() == list(range(batch.size))
        seen += len(rows)
    assert seen == 75


def test_every_object_once_an_epoch_in_an_order_of_its_own(dataset: Path) -> None:
    first, second = (ids(list(stream(dataset).epoch(epoch))) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == sorted(make_stamps(75).object_id.tolist())
    assert first != second and first != sorted(first)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_ranks_together_see_what_one_rank_sees(dataset: Path, size: int) -> None:
    alone = list(stream(dataset).epoch(2))
    shared = [list(stream(dataset, rank, size).epoch(2)) for rank in range(size)]
    for k, batch in enumerate(alone):
        assert torch.equal(torch.cat([ranks[k].images for ranks in shared]), batch.images)
        assert torch.equal(torch.cat([ranks[k].position for ranks in shared]), batch.position)
        assert {ranks[k].size for ranks in shared} == {batch.size}


@pytest.mark.parametrize("start", [1, 3, 4])
def test_resuming_goes_on_where_it_stopped(dataset: Path, start: int) -> None:
    whole = list(stream(dataset).epoch(1))
    assert ids(list(stream(dataset).epoch(1, start))) == ids(whole[start:])


def test_the_parts_make_the_whole(dataset: Path) -> None:
    parts = [set(ids(list(stream(dataset, part=p).epoch(0)))) for p in ("train", "validation", "test")]
    assert set.union(*parts) == set(make_stamps(75).object_id.tolist())
    assert sum(map(len, parts)) == 75 and all(parts)
    assert [stream(dataset, part=p).rows for p in ("train", "validation", "test")] == [len(p) for p in parts]


def test_the_split_stays_when_shards_are_added_and_the_seed_changes(dataset: Path, tmp_path: Path) -> None:
    larger = make_dataset(tmp_path / "more", n=150, shard_rows=50)
    for part in ("validation", "test"):
        before = set(ids(list(stream(dataset, part=part).epoch(0))))
        other = Stream(larger, SMALL, global_batch=16, seed=99, part=part)
        old = set(make_stamps(150).object_id[:75].tolist())
        known = {int(i): z for i, z in zip(make_stamps(75).object_id, make_stamps(75).z_spec, strict=True)}
        assert before == {i for i in ids(list(other.epoch(0))) if i in old} and before <= set(known)


def test_a_predicate_chooses_objects(dataset: Path) -> None:
    options = SMALL.model_copy(update={"where": "z_spec < 0.2 and sky_sigma_g < 0.03"})
    chosen = stream(dataset, options=options)
    stamps = make_stamps(75)
    want = stamps.object_id[stamps.z_spec < 0.2]
    assert sorted(ids(list(chosen.epoch(3)))) == sorted(want.tolist()) and chosen.rows == len(want)
    assert chosen.census.z_max is not None and chosen.census.z_max < 0.2
    nothing = stream(dataset, options=SMALL.model_copy(update={"where": "z_spec > 3"}))
    with pytest.raises(BadInput, match="no object in its all part"):
        _ = nothing.batches


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("window_blocks", [3, 32])
def test_objects_that_lie_together_do_not_fill_the_memory(
    tmp_path: Path, shuffle: bool, window_blocks: int
) -> None:
    """Windows grow where few objects are selected: memory must not grow where these lie together."""
    shard, count = 256, 40
    with DatasetWriter(tmp_path / "d", Header(tuple("ugriz"), 1, 0.396), shard, {}) as writer:
        for k in range(count):
            stamps = replace(make_stamps(shard, size=1, seed=k), object_id=shard * k + np.arange(shard))
            writer.append(replace(stamps, ra=np.full(shard, 10.0 if k in (7, 8) else 200.0)))
    options = Data(block_rows=4, window_blocks=window_blocks, where="ra < 100")
    opened = Stream(tmp_path / "d", options, global_batch=3, seed=1, part="all", shuffle=shuffle)
    normal = max(4 * window_blocks, 4 * 3)
    largest = max(len(window_order.row) for epoch in range(8) for window_order in opened.plan(epoch))
    assert largest <= normal * (2 if shuffle else 1)
    found = ids(list(opened.epoch(0)))
    assert sorted(found) == list(range(7 * shard, 9 * shard)), "every object once"
    assert shuffle or found == sorted(found)


def test_a_batch_may_be_kept_and_buffers_are_used_again(dataset: Path) -> None:
    opened = stream(dataset)
    kept = list(opened.epoch(0))
    copies = [batch.images.clone() for batch in kept]
    places = {batch.images.data_ptr() for batch in kept}
    for _ in range(3):
        for batch in opened.epoch(1):
            assert batch.images.data_ptr() not in places, "memory of a batch that is held"
    assert all(torch.equal(batch.images, copy) for batch, copy in zip(kept, copies, strict=True))
    view = kept[0].images[0]
    del kept, batch
    again = {batch.images.data_ptr() for batch in opened.epoch(2)}
    assert again & places, "released buffers are used again"
    assert torch.equal(view, copies[0][0]), "a view holds its buffer"


@pytest.mark.parametrize("storage", ["float16", "int16"])
def test_smaller_storage_streams_what_was_stored(tmp_path: Path, storage: str) -> None:
    stamps = make_stamps(40)
    with DatasetWriter(tmp_path / "d", Header(tuple("ugriz"), 16, 0.396, storage), 25, {}) as writer:
        writer.append(stamps)
    row = {int(i): k for k, i in enumerate(stamps.object_id)}
    for batch in stream(tmp_path / "d").epoch(0):
        assert str(batch.images.dtype) == f"torch.{storage}"
        rows = [row[int(i)] for i in batch.object_id]
        unit = None if batch.image_unit is None else batch.image_unit.numpy()
        found = encoding.decode(batch.images.numpy(), unit)
        bound = stamps.sky_sigma[rows][:, :, None, None] / 64 * 1.0001
        if storage == "float16":
            bound = np.abs(stamps.images[rows]) * 2.0**-11 + 1e-7
        peak = np.abs(stamps.images[rows]).max(axis=(2, 3), keepdims=True)
        assert np.all(np.abs(found - stamps.images[rows]) <= np.maximum(bound, peak * 2.0**-15))


def as_users_write(dataset: Path, folder: Path, **options: Any) -> Path:
    """The dataset with its images written by h5py with these options, and indexed."""
    folder.mkdir()
    for path in sorted(dataset.glob("*.h5")):
        with h5py.File(path) as ours, h5py.File(folder / path.name, "w") as theirs:
            theirs.attrs["bands"] = ours.attrs["bands"]
            theirs.attrs["pixel_scale"] = ours.attrs["pixel_scale"]
            for name in COLUMNS:
                theirs.create_dataset(name, data=ours[name][...], **(options if name == "images" else {}))
    index_folder(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "contiguous"),
        ({"chunks": (1, 5, 16, 16), "compression": "gzip", "shuffle": True}, "chunk by chunk"),
        ({"chunks": (1, 5, 16, 16), "compression": "gzip"}, "chunk by chunk"),
        ({"chunks": (6, 5, 16, 16), "compression": "gzip", "shuffle": True}, "chunk by chunk"),
        ({"chunks": (7, 5, 16, 16)}, "chunk by chunk"),
        ({"compression": "gzip"}, "only HDF5 reads"),
        ({"chunks": (1, 5, 16, 16), "compression": "lzf"}, "only HDF5 reads"),
        ({"chunks": (2, 5, 16, 16), "compression": "gzip", "fletcher32": True}, "chunk by chunk"),
    ],
)
def test_whatever_h5py_writes_streams_the_same_and_says_how(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], says: str
) -> None:
    folder = as_users_write(dataset, tmp_path / "d", **options)
    caplog.set_level("INFO", "hpcphotoz")
    stamps = make_stamps(75)
    row = {int(i): k for k, i in enumerate(stamps.object_id)}
    for rank in range(2):
        for batch in stream(folder, rank, 2, part="train").epoch(0):
            rows = [row[int(i)] for i in batch.object_id]
            np.testing.assert_array_equal(batch.images.numpy(), stamps.images[rows])
    assert sum(says in record.message for record in caplog.records) == 1, "once a process"


def test_blocks_are_whole_chunks(dataset: Path, tmp_path: Path) -> None:
    folder = as_users_write(dataset, tmp_path / "d", chunks=(6, 5, 16, 16), compression="gzip")
    window_order = next(stream(folder).plan(0))
    starts = window_order.row[np.flatnonzero(np.diff(window_order.row, prepend=-2) != 1)]
    assert np.all(starts % 6 == 0), "blocks of 4 rows would decompress chunks of 6 twice"


def damaged(dataset: Path, folder: Path, name: str, row: int, column: str = "images") -> Path:
    """A copy of the dataset with one byte flipped, in this row of this shard."""
    shutil.copytree(dataset, folder)
    entry = next(s for s in read_manifest(folder).shards if s.file == name)
    assert entry.offsets is not None
    with h5py.File(folder / name) as file:
        size = file[column].dtype.itemsize * int(np.prod(file[column].shape[1:]))
    with (folder / name).open("r+b") as raw:
        raw.seek(entry.offsets[column] + row * size + size // 2)
        byte = raw.read(1)
        raw.seek(-1, 1)
        raw.write(bytes([byte[0] ^ 1]))
    return folder


@pytest.mark.parametrize("verify", ["first", "always"])
def test_a_flipped_byte_is_named_by_shard_and_row(dataset: Path, tmp_path: Path, verify: str) -> None:
    folder = damaged(dataset, tmp_path / "d", "shard-00001.h5", 7)
    options = SMALL.model_copy(update={"verify": verify})
    with pytest.raises(BadInput, match=r"shard-00001\.h5: row 7: pixels differ from the checksums"):
        list(stream(folder, options=options).epoch(0))


def test_never_means_never_and_first_means_once(dataset: Path, tmp_path: Path) -> None:
    folder = damaged(dataset, tmp_path / "d", "shard-00001.h5", 7)
    assert len(ids(list(stream(folder, options=SMALL.model_copy(update={"verify": "never"})).epoch(0)))) == 75
    folder = shutil.copytree(dataset, tmp_path / "e")
    once, always = stream(folder), stream(folder, options=SMALL.model_copy(update={"verify": "always"}))
    for opened in (once, always):
        list(opened.epoch(0))
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        file["images"][3, 0, 0, 0] += 1
    list(once.epoch(1))
    with pytest.raises(BadInput, match="row 3: pixels differ"):
        list(always.epoch(1))


def test_a_process_that_resumed_in_the_middle_checks_the_whole_next_epoch(
    dataset: Path, tmp_path: Path
) -> None:
    folder = damaged(dataset, tmp_path / "d", "shard-00001.h5", 7)
    resumed = stream(folder)
    bad = int(make_stamps(75).object_id[32 + 7])
    plain = stream(dataset)
    epoch = next(e for e in range(50) if bad in ids(list(plain.epoch(e))[:1]))
    list(resumed.epoch(epoch, 3))
    with pytest.raises(BadInput, match="row 7: pixels differ"):
        list(resumed.epoch(epoch + 1))


@pytest.mark.parametrize("column", ["z_spec", "object_id", "sky_sigma", "ra"])
def test_a_flipped_label_is_named(dataset: Path, tmp_path: Path, column: str) -> None:
    folder = damaged(dataset, tmp_path / "d", "shard-00002.h5", 2, column)
    with pytest.raises(BadInput, match=r"shard-00002\.h5: labels of rows 0 to 10: checksum differs"):
        list(stream(folder).epoch(0))


def test_damaged_images_are_left_out_and_counted_if_asked(dataset: Path, tmp_path: Path) -> None:
    folder = damaged(dataset, tmp_path / "d", "shard-00001.h5", 7)
    options = SMALL.model_copy(update={"damaged": "skip"})
    bad = int(make_stamps(75).object_id[32 + 7])
    for size in (1, 3):
        seen, skipped = [], 0
        for rank in range(size):
            for batch in stream(folder, rank, size, options=options).epoch(0):
                assert len(batch.images) == len(batch.position) == len(batch.z_spec) == len(batch.object_id)
                seen += batch.object_id.tolist()
                skipped += batch.skipped
        assert sorted([*seen, bad]) == sorted(make_stamps(75).object_id.tolist()) and skipped == 1


@pytest.mark.parametrize("verify", ["first", "always"])
def test_damaged_images_are_left_out_of_every_epoch(dataset: Path, tmp_path: Path, verify: str) -> None:
    """On any rank that has the row, and however often it has been read before."""
    folder = damaged(dataset, tmp_path / "d", "shard-00001.h5", 7)
    options = SMALL.model_copy(update={"damaged": "skip", "verify": verify})
    good = set(make_stamps(75).object_id.tolist()) - {int(make_stamps(75).object_id[32 + 7])}
    for size in (1, 2):
        ranks = [stream(folder, rank, size, options=options) for rank in range(size)]
        for epoch in range(4):
            batches = [batch for opened in ranks for batch in opened.epoch(epoch)]
            assert sorted(ids(batches)) == sorted(good), f"epoch {epoch} of {size} ranks"
            assert sum(batch.skipped for batch in batches) == 1


def test_a_truncated_and_a_missing_shard_are_named(dataset: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset, tmp_path / "d")
    (folder / "shard-00001.h5").write_bytes((folder / "shard-00001.h5").read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"shard-00001\.h5: \d+ bytes, the manifest says"):
        stream(folder)
    (folder / "shard-00001.h5").unlink()
    with pytest.raises(BadInput, match=r"shard-00001\.h5: listed .*rows 0 to 31.* but missing"):
        stream(folder)
    second = stream(folder, 1, 2)  # only rank 0 looks at every file at the start
    with pytest.raises(BadInput, match="missing"):
        list(second.epoch(0))


def test_a_lost_shard_is_left_out_and_counted_if_asked(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(dataset, tmp_path / "d")
    (folder / "shard-00001.h5").unlink()
    (folder / "shard-00002.h5").write_bytes((folder / "shard-00002.h5").read_bytes()[:-100])
    options = SMALL.model_copy(update={"damaged": "skip"})
    first = stream(folder, 0, 2, "train", options)
    assert first.census.lost == (1, 2) and first.census.lost_rows(first.manifest) == 43
    assert "missing" in caplog.text and "truncated" in caplog.text
    second = stream(folder, 1, 2, "train", options)
    second.objects = first.objects
    seen = ids(list(first.epoch(0))) + ids(list(second.epoch(0)))
    mine = order.split_part(make_stamps(75).object_id[:32], 0.2, 0.2, 0) == 0
    assert sorted(seen) == sorted(make_stamps(75).object_id[:32][mine].tolist())


def test_a_shard_with_damaged_labels_is_left_out_if_asked(dataset: Path, tmp_path: Path) -> None:
    folder = damaged(dataset, tmp_path / "d", "shard-00002.h5", 2, "ra")
    batches = list(stream(folder, options=SMALL.model_copy(update={"damaged": "skip"})).epoch(0))
    assert sorted(ids(batches)) == sorted(make_stamps(75).object_id[:64].tolist())
    assert sum(batch.skipped for batch in batches) == 11


def test_a_shard_whose_labels_cannot_decide_is_lost_if_asked(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = damaged(dataset, tmp_path / "d", "shard-00001.h5", 2, "object_id")
    with pytest.raises(BadInput, match=r"shard-00001\.h5: labels of rows 0 to 31: checksum differs"):
        _ = stream(folder, part="train").census
    opened = stream(folder, part="train", options=SMALL.model_copy(update={"damaged": "skip"}))
    assert opened.census.lost == (1,) and opened.census.lost_rows(opened.manifest) == 32
    assert "its 32 objects are left out" in caplog.text
    stamps = make_stamps(75)
    others = np.delete(stamps.object_id, np.arange(32, 64))
    want = others[order.split_part(others, 0.2, 0.2, 0) == 0].tolist()
    assert sorted(ids(list(opened.epoch(0)))) == sorted(want) and opened.rows == len(want)


def test_a_shard_cut_while_in_use_is_named(dataset: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset, tmp_path / "d")
    opened = stream(folder, part="train")
    assert opened.rows
    with (folder / "shard-00000.h5").open("r+b") as file:
        file.truncate(8000)
    with pytest.raises(BadInput, match=r"shard-00000\.h5: ends at byte"):
        list(opened.epoch(0))


def test_a_user_file_with_a_nan_pixel_is_named(dataset: Path, tmp_path: Path) -> None:
    folder = as_users_write(dataset, tmp_path / "d")
    with h5py.File(folder / "shard-00001.h5", "r+") as file:
        file["images"][7, 2, 3, 4] = np.nan
    options = SMALL.model_copy(update={"verify": "never"})
    with pytest.raises(BadInput, match=r"shard-00001\.h5: row 7 has a pixel that is not finite"):
        list(stream(folder, options=options).epoch(0))
    with pytest.raises(BadInput, match=r"shard-00001\.h5: row 7: pixels differ from the checksums"):
        list(stream(folder).epoch(0))


@pytest.mark.parametrize("options", [{}, {"chunks": (6, 5, 16, 16), "compression": "gzip"}], ids=str)
def test_shards_of_others_are_checked_as_they_are_read(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """No file is hashed as a whole: a rank verifies the labels of its shards and the images that it reads."""
    folder = as_users_write(dataset, tmp_path / "d", **options)

    def whole(path: Path) -> str:
        raise AssertionError(f"{path} is hashed whole")

    monkeypatch.setattr(shards, "file_sha256", whole)
    for part in ("all", "train"):
        read = [ids(list(stream(folder, rank, 4, part).epoch(0))) for rank in range(4)]
        assert sorted(sum(read, [])) == sorted(ids(list(stream(dataset, part=part).epoch(0))))
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        file["images"][3, 1, 2, 2] += 1
        file["images"].flush()
    if not options:  # a compressed chunk may grow, and the file with it
        with pytest.raises(BadInput, match=r"shard-00000\.h5: row 3: pixels differ from the checksums"):
            list(stream(folder).epoch(0))
    with h5py.File(folder / "shard-00002.h5", "r+") as file:
        file["z_spec"][4] += 0.01
    with pytest.raises(BadInput, match=r"shard-00002\.h5: labels of rows 0 to 10: checksum differs"):
        list(stream(folder).epoch(0))


READ = """
import sys
from pathlib import Path
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.config import Data
folder = Path(sys.argv[1])
"""
READ_IN_ORDER = READ + "print(len(list(read_rows(folder, read_manifest(folder)))))"
READ_AS_STREAM = (
    READ + "print(len(list(Stream(folder, Data(), global_batch=8, seed=1, part='all').epoch(0))))"
)


def test_checksums_beside_a_shard_are_checked_too(dataset: Path, tmp_path: Path) -> None:
    folder = as_users_write(dataset, tmp_path / "d")
    beside = folder / "shard-00001.h5.xxh3"
    manifest, content = read_manifest(folder), beside.read_bytes()
    assert len(content) == 8 * 32
    beside.write_bytes(content[:8] + b"\0" + content[9:])
    for read in (lambda: list(stream(folder).epoch(0)), lambda: list(read_rows(folder, manifest))):
        with pytest.raises(BadInput, match=r"shard-00001\.h5: labels of rows 0 to 31: checksum differs"):
            read()
    beside.unlink()
    for read in (lambda: list(stream(folder).epoch(0)), lambda: list(read_rows(folder, manifest))):
        with pytest.raises(BadInput, match=r"shard-00001\.h5\.xxh3: .*No such file"):
            read()
    beside.write_bytes(content[:-8])
    for read in (lambda: list(stream(folder).epoch(0)), lambda: list(read_rows(folder, manifest))):
        with pytest.raises(BadInput, match=r"shard-00001\.h5\.xxh3: 248 bytes of checksums, want 256"):
            read()


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_checksums_beside_a_shard_must_be_a_plain_file(dataset: Path, tmp_path: Path, kind: str) -> None:
    """In another process, because reading a pipe would not end."""
    folder = as_users_write(dataset, tmp_path / "d")
    beside = folder / "shard-00001.h5.xxh3"
    if kind == "link":
        beside.rename(tmp_path / "elsewhere")
        beside.symlink_to(tmp_path / "elsewhere")
    else:
        beside.unlink()
        (os.mkfifo if kind == "pipe" else os.mkdir)(beside)
    for code in (READ_IN_ORDER, READ_AS_STREAM):
        words = [sys.executable, "-c", code, str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1, done.stderr
        assert "shard-00001.h5.xxh3: a link or no plain file: copy or hard-link it" in done.stderr


def test_a_damaged_chunk_is_named(dataset: Path, tmp_path: Path) -> None:
    folder = as_users_write(dataset, tmp_path / "d", chunks=(4, 5, 16, 16), compression="gzip")
    with h5py.File(folder / "shard-00000.h5") as file:
        place = file["images"].id.get_chunk_info(2).byte_offset
    with (folder / "shard-00000.h5").open("r+b") as raw:
        raw.seek(place + 100)
        raw.write(b"damage!")
    options = SMALL.model_copy(update={"verify": "never"})
    with pytest.raises(BadInput, match=r"shard-00000\.h5: rows 8 to 11: their chunk is damaged"):
        list(stream(folder, options=options).epoch(0))


def test_a_passing_error_of_a_network_file_system_is_tried_again(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, left = os.preadv, [errno.ESTALE, errno.EIO, errno.EIO]

    def failing(number: int, views: list[memoryview], offset: int) -> int:
        if left:
            raise OSError(left.pop(), "as a test")
        return real(number, views, offset)

    monkeypatch.setattr(os, "preadv", failing)
    monkeypatch.setattr(file_handle, "_FIRST_WAIT_S", 0.001)
    assert len(ids(list(stream(dataset).epoch(0)))) == 75 and not left
    assert sum("trying again" in record.message for record in caplog.records) == 3


def test_an_error_that_stays_is_named_after_a_bounded_time(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def failing(number: int, views: list[memoryview], offset: int) -> int:
        calls.append(offset)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    monkeypatch.setattr(file_handle, "_FIRST_WAIT_S", 0.001)
    with pytest.raises(BadInput, match=r"shard-0000\d\.h5: cannot be read: Input/output error \(6 tries\)"):
        list(stream(dataset).epoch(0))
    assert len(calls) <= 6 * 2 * 2, "tries, threads, windows"


def test_a_short_read_is_finished(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def short(number: int, views: list[memoryview], offset: int) -> int:
        """Read at most 1000 bytes at a time, across the ends of views."""
        some, left = [], 1000
        for view in views:
            some.append(view[:left])
            left -= len(some[-1])
            if not left:
                break
        return real(number, some, offset)

    monkeypatch.setattr(os, "preadv", short)
    test_batches_hold_what_is_on_disk(dataset)


def test_more_ranks_than_objects_in_a_batch_gives_empty_slices(dataset: Path) -> None:
    lengths = [[len(batch.images) for batch in stream(dataset, rank, 20).epoch(0)] for rank in range(20)]
    assert [sum(column) for column in zip(*lengths, strict=True)] == [16, 16, 16, 16, 11]


def test_leaving_an_epoch_early_leaves_no_threads(dataset: Path) -> None:
    import threading

    batches = stream(dataset).epoch(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("hpcphotoz-read")]
