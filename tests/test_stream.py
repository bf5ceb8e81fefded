"""The stream: what is on disk, in the planned order, at any world size, from any point; bad files are
named.
"""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpcphotoz.config import Data
from hpcphotoz.data import shards
from hpcphotoz.data.stream import Batch, Part, Stream
from hpcphotoz.errors import BadInput
from hpcphotoz.world import World
from tests.datasets import make_stamps

SMALL = Data(block_rows=4, window_blocks=3, validation=0.2)


def ids(batches: list[Batch]) -> list[int]:
    return [int(i) for batch in batches for i in batch.object_id]


def stream(folder: Path, rank: int = 0, size: int = 1, part: Part = "all", options: Data = SMALL) -> Stream:
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


def test_validation_and_training_parts_make_the_whole(dataset: Path) -> None:
    parts = [set(ids(list(stream(dataset, part=part).epoch(0)))) for part in ("train", "validation")]
    assert parts[0] | parts[1] == set(make_stamps(75).object_id.tolist()) and not parts[0] & parts[1]
    assert stream(dataset, part="train").rows == len(parts[0]) and parts[1]


def test_chunked_shards_stream_the_same_and_say_so(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for path in dataset.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = shards.read_manifest(folder)
    entries = []
    for entry in manifest.shards:
        path = folder / entry.file
        with h5py.File(path, "r+") as file:
            data = file["images"][...]
            del file["images"]
            file.create_dataset("images", data=data, chunks=(1, 5, 16, 16), compression="gzip")
        entries.append(shards.Shard(**{**vars(entry), "bytes": path.stat().st_size}))
    shards.write_manifest(folder, shards.Manifest(manifest.header, tuple(entries), manifest.statistics, {}))
    pairs = zip(stream(dataset).epoch(0), stream(folder).epoch(0), strict=True)
    assert all(torch.equal(ours.images, theirs.images) for ours, theirs in pairs)
    assert "not contiguous" in caplog.text


def test_a_nan_pixel_is_named_by_shard_and_row(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for path in dataset.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with h5py.File(folder / "shard-00001.h5", "r+") as file:
        file["images"][7, 2, 3, 4] = np.nan
    with pytest.raises(BadInput, match=r"shard-00001\.h5: row 7 "):
        list(stream(folder).epoch(0))


def test_a_shard_cut_while_in_use_is_named(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for path in dataset.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    opened = stream(folder, part="train")
    with (folder / "shard-00000.h5").open("r+b") as file:
        file.truncate(8000)
    with pytest.raises(BadInput, match=r"shard-00000\.h5: ends inside row"):
        list(opened.epoch(0))


def test_more_ranks_than_objects_in_a_batch_gives_empty_slices(dataset: Path) -> None:
    lengths = [[len(batch.images) for batch in stream(dataset, rank, 20).epoch(0)] for rank in range(20)]
    assert [sum(column) for column in zip(*lengths, strict=True)] == [16, 16, 16, 16, 11]


def test_leaving_an_epoch_early_leaves_no_threads(dataset: Path) -> None:
    import threading

    batches = stream(dataset).epoch(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("hpcphotoz-read")]
