"""The stream gives the stored objects in the planned order, at any world size."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcphotoz.config import Data
from hpcphotoz.data.format import encoding
from hpcphotoz.data.format.extra import ExtraColumn
from hpcphotoz.data.format.manifest import Header, read_manifest
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.data.read.shard_files import ShardFile
from hpcphotoz.data.stream.batch import empty_batch
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.errors import BadInput
from tests.helpers.data.extra import write_extra_dataset
from tests.helpers.data.streams import SMALL, assert_holds_stamps, ids, open_stream
from tests.helpers.datasets import make_dataset, make_stamps


def test_batches_hold_what_is_on_disk(dataset: Path) -> None:
    assert_holds_stamps(open_stream(dataset))


def test_every_object_once_an_epoch_in_an_order_of_its_own(dataset: Path) -> None:
    first, second = (ids(list(open_stream(dataset).epoch(epoch))) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == sorted(make_stamps(75).object_id.tolist())
    assert first != second and first != sorted(first)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_ranks_together_see_what_one_rank_sees(dataset: Path, size: int) -> None:
    alone = list(open_stream(dataset).epoch(2))
    shared = [list(open_stream(dataset, rank, size).epoch(2)) for rank in range(size)]
    for k, batch in enumerate(alone):
        assert torch.equal(torch.cat([ranks[k].images for ranks in shared]), batch.images)
        assert torch.equal(torch.cat([ranks[k].position for ranks in shared]), batch.position)
        assert {ranks[k].size for ranks in shared} == {batch.size}


@pytest.mark.parametrize("start", [1, 3, 4])
def test_resuming_goes_on_where_it_stopped(dataset: Path, start: int) -> None:
    whole = list(open_stream(dataset).epoch(1))
    assert ids(list(open_stream(dataset).epoch(1, start))) == ids(whole[start:])


def test_the_parts_make_the_whole(dataset: Path) -> None:
    parts = [set(ids(list(open_stream(dataset, part=p).epoch(0)))) for p in ("train", "validation", "test")]
    assert set.union(*parts) == set(make_stamps(75).object_id.tolist())
    assert sum(map(len, parts)) == 75 and all(parts)
    assert [open_stream(dataset, part=p).rows for p in ("train", "validation", "test")] == [
        len(p) for p in parts
    ]


@pytest.mark.parametrize("verify", ["always", "never"])
def test_labels_between_which_the_split_leaves_rows_out_are_read_together(
    verify: str, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps, reads = make_stamps(75), []
    row = {int(i): k for k, i in enumerate(stamps.object_id)}
    options = Data(block_rows=64, window_blocks=3, validation=0.4, verify=verify)
    opened = open_stream(dataset, part="train", options=options)
    opened.rows  # noqa: B018  # the scan of the labels is not counted
    real = ShardFile.column

    def column(self: ShardFile, name: str, first: int, out: np.ndarray[Any, Any]) -> None:
        reads.append(name)
        real(self, name, first, out)

    monkeypatch.setattr(ShardFile, "column", column)
    for batch in opened.epoch(0):
        rows = [row[int(i)] for i in batch.object_id]
        for name in ("images", "z_spec", "ebv", "sky_sigma"):
            np.testing.assert_array_equal(getattr(batch, name).numpy(), getattr(stamps, name)[rows])
    # Three shards of a block each; the check of all labels and the objects left for a last batch read again.
    assert reads.count("ebv") <= 3 * (3 if verify == "always" else 2)


def test_the_split_stays_when_shards_are_added_and_the_seed_changes(dataset: Path, tmp_path: Path) -> None:
    larger = make_dataset(tmp_path / "more", n=150, shard_rows=50)
    for part in ("validation", "test"):
        before = set(ids(list(open_stream(dataset, part=part).epoch(0))))
        other = Stream(larger, SMALL, global_batch=16, seed=99, part=part)
        old = set(make_stamps(150).object_id[:75].tolist())
        known = {int(i): z for i, z in zip(make_stamps(75).object_id, make_stamps(75).z_spec, strict=True)}
        assert before == {i for i in ids(list(other.epoch(0))) if i in old} and before <= set(known)


def test_a_predicate_chooses_objects(dataset: Path) -> None:
    options = SMALL.model_copy(update={"where": "z_spec < 0.2 and sky_sigma_g < 0.03"})
    chosen = open_stream(dataset, options=options)
    stamps = make_stamps(75)
    want = stamps.object_id[stamps.z_spec < 0.2]
    assert sorted(ids(list(chosen.epoch(3)))) == sorted(want.tolist()) and chosen.rows == len(want)
    assert chosen.census.z_max is not None and chosen.census.z_max < 0.2
    nothing = open_stream(dataset, options=SMALL.model_copy(update={"where": "z_spec > 3"}))
    with pytest.raises(
        BadInput,
        match=r"no object in its all part .75 in all; where z_spec > 3: z_spec is 0.0.* to 0.[34].*: add",
    ):
        _ = nothing.batches


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("window_blocks", [3, 32])
def test_selected_objects_that_are_adjacent_do_not_fill_the_memory(
    tmp_path: Path, shuffle: bool, window_blocks: int
) -> None:
    """Windows grow when few objects are selected; memory must not grow when these lie together."""
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
    opened = open_stream(dataset)
    kept = list(opened.epoch(0))
    copies = [batch.images.clone() for batch in kept]
    places = {batch.images.data_ptr() for batch in kept}
    for _ in range(3):
        for batch in opened.epoch(1):
            assert batch.images.data_ptr() not in places, (
                "the memory of a batch that is still held was reused"
            )
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
    for batch in open_stream(tmp_path / "d").epoch(0):
        assert str(batch.images.dtype) == f"torch.{storage}"
        rows = [row[int(i)] for i in batch.object_id]
        unit = None if batch.image_unit is None else batch.image_unit.numpy()
        found = encoding.decode(batch.images.numpy(), unit)
        bound = stamps.sky_sigma[rows][:, :, None, None] / 64 * 1.0001
        if storage == "float16":
            bound = np.abs(stamps.images[rows]) * 2.0**-11 + 1e-7
        peak = np.abs(stamps.images[rows]).max(axis=(2, 3), keepdims=True)
        assert np.all(np.abs(found - stamps.images[rows]) <= np.maximum(bound, peak * 2.0**-15))


def test_more_ranks_than_objects_in_a_batch_gives_empty_slices(dataset: Path) -> None:
    lengths = [[len(batch.images) for batch in open_stream(dataset, rank, 20).epoch(0)] for rank in range(20)]
    assert [sum(column) for column in zip(*lengths, strict=True)] == [16, 16, 16, 16, 11]


def test_leaving_an_epoch_early_leaves_no_threads(dataset: Path) -> None:
    import threading

    batches = open_stream(dataset).epoch(0)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("hpcphotoz-read")]


def test_an_empty_batch_has_the_fixed_columns_only(tmp_path: Path) -> None:
    folder = write_extra_dataset(tmp_path / "set", 9)
    header = read_manifest(folder).header
    empty = empty_batch(replace(header, extra=(*header.extra, ExtraColumn("position", "int8"))))
    stream = Stream(str(folder), Data(), global_batch=4, seed=1, part="all")
    for name, full in vars(next(iter(stream))).items():
        if isinstance(full, torch.Tensor):
            found = getattr(empty, name)
            assert (found.shape, found.dtype) == ((0, *full.shape[1:]), full.dtype), name
