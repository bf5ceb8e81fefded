"""Writing datasets: interrupted and refused writes, and memory."""

import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcphotoz.data.format.manifest import MANIFEST, STORAGE, read_manifest
from hpcphotoz.data.format.stamps import BandMoments
from hpcphotoz.data.format.writer import DatasetWriter, write_shard
from hpcphotoz.errors import BadInput
from tests.helpers.datasets import HEADER, load, make_dataset, make_stamps


def test_appending_in_other_portions_gives_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    written = (dataset / "manifest.json").stat().st_mtime
    while time.time() < written + 1.1:  # HDF5's own time stamps count seconds: the bytes must not hold them
        continue
    stamps = make_stamps(75)
    with DatasetWriter(tmp_path / "d", HEADER, 32, {}) as writer:
        for start in range(0, 75, 10):
            writer.append(stamps[start : start + 10])
    ours, theirs = read_manifest(tmp_path / "d"), read_manifest(dataset)
    assert [s.sha256 for s in ours.shards] == [s.sha256 for s in theirs.shards]


def test_band_statistics_are_those_of_all_pixels(dataset: Path) -> None:
    statistics, images = read_manifest(dataset).statistics, make_stamps(75).images.astype(np.float64)
    np.testing.assert_allclose(statistics.mean, images.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, images.std(axis=(0, 2, 3)), rtol=1e-12)


def test_an_interrupted_writer_leaves_no_manifest_and_can_start_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), DatasetWriter(tmp_path / "d", HEADER, 8, {}) as writer:
        writer.append(make_stamps(20))
        raise KeyboardInterrupt
    assert not list((tmp_path / "d").glob("*.tmp"))
    with pytest.raises(BadInput, match="unfinished dataset"):
        read_manifest(tmp_path / "d")
    make_dataset(tmp_path / "d", n=5, shard_rows=8)
    assert len(load(tmp_path / "d")) == 5


def test_a_finished_dataset_is_not_overwritten(dataset: Path) -> None:
    with pytest.raises(BadInput, match="finished dataset"):
        DatasetWriter(dataset, HEADER, 8, {})


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    for name in ("thesis.tex", "shard-000000.tar", "draft.tmp"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("years of work")
        with pytest.raises(BadInput, match="holds other files"):
            DatasetWriter(folder, HEADER, 8, {})
        assert (folder / name).exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pixel_that_is_not_finite_is_refused_by_name(tmp_path: Path, value: float) -> None:
    stamps = make_stamps(4)
    stamps.images[2, 1, 3, 3] = value
    with (
        pytest.raises(BadInput, match=str(stamps.object_id[2])),
        DatasetWriter(tmp_path / "d", HEADER, 8, {}) as w,
    ):
        w.append(stamps)
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_stamps_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="bands ugriz"), DatasetWriter(tmp_path / "d", HEADER, 8, {}) as writer:
        writer.append(make_stamps(4, bands=4))
    with pytest.raises(BadInput, match="sky"), DatasetWriter(tmp_path / "d", HEADER, 8, {}) as writer:
        writer.append(replace(make_stamps(4), sky_sigma=np.zeros((4, 5), np.float32)))


@pytest.mark.parametrize("storage", STORAGE)
def test_writing_a_shard_needs_little_additional_memory(tmp_path: Path, storage: str) -> None:
    stamps = make_stamps(1500, size=32)
    header = replace(HEADER, stamp=32, storage=storage)
    path = tmp_path / "shard-00000.hdf5"
    for work in (lambda: write_shard(path, header, stamps), lambda: BandMoments(5).add(stamps)):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.5 * stamps.images.nbytes, f"{peak / stamps.images.nbytes:.2f} shards"


def test_a_bad_row_far_down_a_shard_is_named(tmp_path: Path) -> None:
    stamps = make_stamps(300)
    stamps.images[290, 2, 0, 0] = 1e5
    with pytest.raises(BadInput, match="row 290 has a pixel beyond float16"):
        write_shard(tmp_path / "shard-00000.hdf5", replace(HEADER, storage="float16"), stamps)
    assert not list(tmp_path.iterdir())


def test_int16_refuses_a_sky_sigma_that_is_no_usable_unit(tmp_path: Path) -> None:
    stamps = replace(make_stamps(3), sky_sigma=np.full((3, 5), 1e-44, np.float32))
    with (
        pytest.raises(BadInput, match="row 0 has a sky sigma too small"),
        DatasetWriter(tmp_path / "d", replace(HEADER, storage="int16"), 8, {}) as writer,
    ):
        writer.append(stamps)
    assert not (tmp_path / "d" / MANIFEST).exists()
