"""Damaged files: an error names shard and rows, or the stream leaves the objects out and counts them."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcphotoz.data import order
from hpcphotoz.errors import BadInput
from tests.helpers.data.streams import SMALL, flip_byte, ids, open_stream
from tests.helpers.datasets import make_stamps


@pytest.mark.parametrize("verify", ["first", "always"])
def test_a_flipped_byte_is_named_by_shard_and_row(dataset: Path, tmp_path: Path, verify: str) -> None:
    folder = flip_byte(dataset, tmp_path / "d", "shard-00001.hdf5", 7)
    options = SMALL.model_copy(update={"verify": verify})
    with pytest.raises(BadInput, match=r"shard-00001\.hdf5: row 7: pixels differ from the checksums"):
        list(open_stream(folder, options=options).epoch(0))


def test_verify_never_and_first_are_honoured(dataset: Path, tmp_path: Path) -> None:
    folder = flip_byte(dataset, tmp_path / "d", "shard-00001.hdf5", 7)
    assert (
        len(ids(list(open_stream(folder, options=SMALL.model_copy(update={"verify": "never"})).epoch(0))))
        == 75
    )
    folder = shutil.copytree(dataset, tmp_path / "e")
    once, always = (
        open_stream(folder),
        open_stream(folder, options=SMALL.model_copy(update={"verify": "always"})),
    )
    for opened in (once, always):
        list(opened.epoch(0))
    with h5py.File(folder / "shard-00000.hdf5", "r+") as file:
        file["images"][3, 0, 0, 0] += 1
    list(once.epoch(1))
    with pytest.raises(BadInput, match="row 3: pixels differ"):
        list(always.epoch(1))


def test_a_process_that_resumed_in_the_middle_checks_the_whole_next_epoch(
    dataset: Path, tmp_path: Path
) -> None:
    folder = flip_byte(dataset, tmp_path / "d", "shard-00001.hdf5", 7)
    resumed = open_stream(folder)
    bad = int(make_stamps(75).object_id[32 + 7])
    plain = open_stream(dataset)
    epoch = next(e for e in range(50) if bad in ids(list(plain.epoch(e))[:1]))
    list(resumed.epoch(epoch, 3))
    with pytest.raises(BadInput, match="row 7: pixels differ"):
        list(resumed.epoch(epoch + 1))


@pytest.mark.parametrize("column", ["z_spec", "object_id", "sky_sigma", "ra"])
def test_a_flipped_label_is_named(dataset: Path, tmp_path: Path, column: str) -> None:
    folder = flip_byte(dataset, tmp_path / "d", "shard-00002.hdf5", 2, column)
    with pytest.raises(BadInput, match=r"shard-00002\.hdf5: labels of rows 0 to 10: checksum differs"):
        list(open_stream(folder).epoch(0))


def test_damaged_images_are_left_out_and_counted_if_asked(dataset: Path, tmp_path: Path) -> None:
    folder = flip_byte(dataset, tmp_path / "d", "shard-00001.hdf5", 7)
    options = SMALL.model_copy(update={"damaged": "skip"})
    bad = int(make_stamps(75).object_id[32 + 7])
    for size in (1, 3):
        seen, skipped = [], 0
        for rank in range(size):
            for batch in open_stream(folder, rank, size, options=options).epoch(0):
                assert len(batch.images) == len(batch.position) == len(batch.z_spec) == len(batch.object_id)
                seen += batch.object_id.tolist()
                skipped += batch.skipped
        assert sorted([*seen, bad]) == sorted(make_stamps(75).object_id.tolist()) and skipped == 1


@pytest.mark.parametrize("verify", ["first", "always"])
def test_damaged_images_are_left_out_of_every_epoch(dataset: Path, tmp_path: Path, verify: str) -> None:
    """On any rank that has the row, and also after the first epoch."""
    folder = flip_byte(dataset, tmp_path / "d", "shard-00001.hdf5", 7)
    options = SMALL.model_copy(update={"damaged": "skip", "verify": verify})
    good = set(make_stamps(75).object_id.tolist()) - {int(make_stamps(75).object_id[32 + 7])}
    for size in (1, 2):
        ranks = [open_stream(folder, rank, size, options=options) for rank in range(size)]
        for epoch in range(4):
            batches = [batch for opened in ranks for batch in opened.epoch(epoch)]
            assert sorted(ids(batches)) == sorted(good), f"epoch {epoch} of {size} ranks"
            assert sum(batch.skipped for batch in batches) == 1


def test_a_truncated_and_a_missing_shard_are_named(dataset: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset, tmp_path / "d")
    (folder / "shard-00001.hdf5").write_bytes((folder / "shard-00001.hdf5").read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"shard-00001\.hdf5: \d+ bytes, the manifest says"):
        open_stream(folder)
    (folder / "shard-00001.hdf5").unlink()
    with pytest.raises(BadInput, match=r"shard-00001\.hdf5: listed .*rows 0 to 31.* but missing"):
        open_stream(folder)
    second = open_stream(folder, 1, 2)  # only rank 0 looks at every file at the start
    with pytest.raises(BadInput, match="missing"):
        list(second.epoch(0))


def test_a_lost_shard_is_left_out_and_counted_if_asked(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(dataset, tmp_path / "d")
    (folder / "shard-00001.hdf5").unlink()
    (folder / "shard-00002.hdf5").write_bytes((folder / "shard-00002.hdf5").read_bytes()[:-100])
    options = SMALL.model_copy(update={"damaged": "skip"})
    first = open_stream(folder, 0, 2, "train", options)
    assert first.census.lost == (1, 2) and first.census.lost_rows(first.manifest) == 43
    assert "missing" in caplog.text and "truncated" in caplog.text
    second = open_stream(folder, 1, 2, "train", options)
    second.objects = first.objects
    seen = ids(list(first.epoch(0))) + ids(list(second.epoch(0)))
    mine = order.split_part(make_stamps(75).object_id[:32], 0.2, 0.2, 0) == 0
    assert sorted(seen) == sorted(make_stamps(75).object_id[:32][mine].tolist())


def test_a_shard_with_damaged_labels_is_left_out_if_asked(dataset: Path, tmp_path: Path) -> None:
    folder = flip_byte(dataset, tmp_path / "d", "shard-00002.hdf5", 2, "ra")
    batches = list(open_stream(folder, options=SMALL.model_copy(update={"damaged": "skip"})).epoch(0))
    assert sorted(ids(batches)) == sorted(make_stamps(75).object_id[:64].tolist())
    assert sum(batch.skipped for batch in batches) == 11


def test_a_shard_whose_damaged_labels_decide_the_split_is_left_out_if_asked(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = flip_byte(dataset, tmp_path / "d", "shard-00001.hdf5", 2, "object_id")
    with pytest.raises(BadInput, match=r"shard-00001\.hdf5: labels of rows 0 to 31: checksum differs"):
        _ = open_stream(folder, part="train").census
    opened = open_stream(folder, part="train", options=SMALL.model_copy(update={"damaged": "skip"}))
    assert opened.census.lost == (1,) and opened.census.lost_rows(opened.manifest) == 32
    assert "its 32 objects are left out" in caplog.text
    stamps = make_stamps(75)
    others = np.delete(stamps.object_id, np.arange(32, 64))
    want = others[order.split_part(others, 0.2, 0.2, 0) == 0].tolist()
    assert sorted(ids(list(opened.epoch(0)))) == sorted(want) and opened.rows == len(want)


def test_a_shard_cut_while_in_use_is_named(dataset: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset, tmp_path / "d")
    opened = open_stream(folder, part="train")
    assert opened.rows
    with (folder / "shard-00000.hdf5").open("r+b") as file:
        file.truncate(8000)
    with pytest.raises(BadInput, match=r"shard-00000\.hdf5: ends at byte"):
        list(opened.epoch(0))
