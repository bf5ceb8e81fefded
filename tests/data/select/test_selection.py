"""Selections: one bit per object, kept in files that another subset or dataset does not use."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcphotoz.config import Data
from hpcphotoz.config.load import configure
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.data.format.manifest import Manifest, read_manifest
from hpcphotoz.data.order import BlockLayout
from hpcphotoz.data.read import shard_files
from hpcphotoz.data.select import census
from hpcphotoz.data.select.census import count_objects, load_objects
from hpcphotoz.data.select.subset import Selection, SplitPart, Subset
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.errors import BadInput
from hpcphotoz.training.dataloader import RankLoader
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.world import World
from tests.helpers.datasets import linked_dataset, make_dataset, make_stamps

OPTIONS = Data(validation=0.2, test=0.2, where="z_spec < 0.3")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the shards that were opened, in order."""
    numbers: list[int] = []
    start = shard_files.ShardFile.__init__

    def opening(self: shard_files.ShardFile, folder: Path, manifest: Manifest, number: int) -> None:
        numbers.append(number)
        start(self, folder, manifest, number)

    monkeypatch.setattr(shard_files.ShardFile, "__init__", opening)
    return numbers


@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    block=st.integers(1, 40),
    piece=st.integers(1, 5),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_a_selection_keeps_one_bit_per_object(sizes: list[int], block: int, piece: int, seed: int) -> None:
    selection, layout = Selection(sizes), BlockLayout(tuple(sizes), block)
    keep = [np.random.default_rng(seed + k).random(rows) < 0.5 for k, rows in enumerate(sizes)]
    for number, mask in reversed(list(enumerate(keep))):
        for first in range(0, len(mask), 8 * piece):
            selection.set_rows(number, first, mask[first : first + 8 * piece])
    assert selection.bits.nbytes == sum(-(-rows // 8) for rows in sizes)
    blocks = layout.blocks(np.random.default_rng(seed).permutation(int(layout.starts[-1])))
    shard, row = blocks.rows()
    wanted = np.array([keep[s][r] for s, r in zip(shard.tolist(), row.tolist(), strict=True)])
    assert np.array_equal(selection(blocks), wanted)


def test_a_file_of_another_selection_is_refused(tmp_path: Path) -> None:
    selection = Selection([9])
    selection.set_rows(0, 0, np.ones(9, bool))
    digest = selection.write(tmp_path / "a.bits")
    read = Selection.read(tmp_path / "a.bits", [9], digest)
    assert isinstance(read.bits, np.memmap) and read.bits.tolist() == [255, 1]
    (tmp_path / "a.bits").write_bytes(b"\x01\x01")
    with pytest.raises(BadInput, match=r"a\.bits: is not what rank 0 has written"):
        Selection.read(tmp_path / "a.bits", [9], digest)
    with pytest.raises(BadInput, match=r"b\.bits: cannot be read .*file system of all nodes"):
        Selection.read(tmp_path / "b.bits", [9], digest)


def test_a_kept_selection_is_that_of_the_same_part_of_the_same_dataset(
    dataset: Path, tmp_path: Path, opened: list[int]
) -> None:
    manifest = read_manifest(dataset)
    mine = Subset.from_options(OPTIONS, "train", manifest.header.bands)
    found = census.save_objects(
        tmp_path / "kept",
        manifest,
        mine,
        count_objects(manifest, shard_files.ShardFiles(dataset, manifest), [mine])[0],
    )
    opened.clear()
    again = load_objects(tmp_path / "kept", manifest, mine, ())
    assert again is not None and again.census == found.census and not opened
    assert again.selection is not None and found.selection is not None
    assert again.selection.bits.tolist() == found.selection.bits.tolist()
    others = [
        (manifest, replace(mine, part="test"), ()),
        (manifest, replace(mine, seed=1), ()),
        (manifest, replace(mine, validation=0.1), ()),
        (manifest, replace(mine, where=None), ()),
        (manifest, mine, (1,)),
        (replace(manifest, sha256="0" * 64), mine, ()),
    ]
    assert [load_objects(tmp_path / "kept", *other) for other in others] == [None] * len(others)
    (bits,) = (tmp_path / "kept").glob("*.bits")
    bits.write_bytes(bytes(len(bits.read_bytes())))
    assert load_objects(tmp_path / "kept", manifest, mine, ()) is None, "damaged: counted again"


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_selection_holds_the_objects_that_the_labels_select(dataset: Path, part: SplitPart) -> None:
    manifest = read_manifest(dataset)
    subset = Subset.from_options(OPTIONS, part, manifest.header.bands)
    objects = count_objects(manifest, shard_files.ShardFiles(dataset, manifest), [subset])[0]
    stamps = make_stamps(75)
    want = subset({"object_id": stamps.object_id, "z_spec": stamps.z_spec})
    rows = tuple(shard.rows for shard in manifest.shards)
    assert objects.selection is not None
    found = objects.selection(BlockLayout(rows, 4).blocks(np.arange(sum(-(-n // 4) for n in rows))))
    assert np.array_equal(found, want) and objects.census.rows == want.sum()


def test_the_default_split_opens_no_more_shards_than_the_whole(tmp_path: Path, opened: list[int]) -> None:
    """A rank reads only the images of its own slices, also after a resume in the middle."""
    rows, batches = 256, 200
    folder = linked_dataset(
        make_dataset(tmp_path / "one", n=rows, shard_rows=rows, size=2), tmp_path / "many", 1600
    )
    total, per_batch, before_first = {}, {}, {}
    parts: tuple[SplitPart, ...] = ("all", "train")
    for part in parts:
        options = Data(read_threads=1, verify="never")
        world = World(3, 8, 3, 8)
        stream = Stream(folder, options, global_batch=1024, seed=0, part=part, world=world)
        assert stream.rows > 0.9 * 1600 * rows
        opened.clear()
        read = sum(1 for _ in stream.epoch(0))
        total[part], per_batch[part] = len(opened), len(opened) / read
        stream.files = shard_files.ShardFiles(folder, stream.manifest)
        opened.clear()
        resumed = stream.epoch(0, batches)
        assert next(resumed).index == batches
        before_first[part] = len(opened)
        resumed.close()
    # Of an epoch: a batch of the split's nine tenths spans a ninth more slices than a batch of the whole.
    assert total["train"] < 1.03 * total["all"], total
    # Two windows of four batches: 128 images of each are this rank's, in runs of at most 64.
    assert before_first["train"] < 2 * 4 * per_batch["all"] * 1.5, before_first


def test_a_resumed_run_does_not_read_labels_again(dataset: Path, tmp_path: Path, opened: list[int]) -> None:
    config = configure("test", validation=0.2, global_batch=16)

    def loader() -> RankLoader:
        made = RankLoader(
            Datasets.of(dataset), tmp_path, config, World(), torch.device("cpu"), Timers(torch.device("cpu"))
        )
        made.count()
        return made

    first = loader()
    assert sorted(opened) == [0, 1, 2] and first.validation is not None
    opened.clear()
    second = loader()
    assert not opened and second.train.census == first.train.census
    objects = second.train.parts[0].objects.selection
    assert objects is not None and isinstance(objects.bits, np.memmap), "one copy a node, in the page cache"
    ids = [[batch.object_id.tolist() for batch in s.train.epoch(0)] for s in (first, second)]
    assert ids[0] == ids[1] and sum(map(len, ids[0])) == second.train.rows
