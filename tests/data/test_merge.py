"""A merge shares the shards of its sources, and refuses what would not be one dataset."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.data import merge as module
from hpcphotoz.data.format.index import index_folder
from hpcphotoz.data.format.manifest import read_manifest, write_manifest
from hpcphotoz.data.format.stamps import BandMoments, Stamps
from hpcphotoz.data.merge import merge_datasets
from hpcphotoz.data.read.rows import verify
from hpcphotoz.errors import BadInput
from tests.helpers.datasets import load, make_stamps, write_stamps


def datasets(folder: Path, storage: str = "float32") -> list[Path]:
    return [
        write_stamps(folder / name, make_stamps(n, seed=seed), storage=storage)
        for name, n, seed in (("a", 40, 1), ("b", 20, 2))
    ]


def test_the_merged_dataset_is_its_sources_one_after_the_other(tmp_path: Path) -> None:
    sources, out = datasets(tmp_path, "int16"), tmp_path / "out"
    manifest = merge_datasets(out, sources)
    assert manifest == read_manifest(out)
    verify(out, manifest)
    parts = [load(folder) for folder in sources]
    found, wanted = load(out), Stamps.concatenate(parts)
    for name in ("images", "object_id", "z_spec", "sky_sigma"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert [shard.file for shard in manifest.shards] == [f"shard-{k:05d}.hdf5" for k in range(5)]
    assert os.path.samefile(out / "shard-00003.hdf5", sources[1] / "shard-00000.hdf5")
    told = manifest.provenance["sources"]
    assert [one["manifest_sha256"] for one in told] == [read_manifest(one).sha256 for one in sources]
    assert [(one["name"], one["rows"]) for one in told] == [("a", 40), ("b", 20)]


def test_statistics_are_those_of_all_pixels_to_the_last_places(tmp_path: Path) -> None:
    sources = datasets(tmp_path)
    found = merge_datasets(tmp_path / "out", sources).statistics
    exact = BandMoments.of(Stamps.concatenate([load(folder) for folder in sources])).result()
    for name in ("mean", "std", "sky_sigma"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), rtol=2e-15)


def test_moments_are_recovered_from_statistics_to_the_last_places() -> None:
    worst = 0.0
    for seed in range(50):
        moments = BandMoments.of(make_stamps(37, size=9, seed=seed))
        again = BandMoments.from_statistics(moments.result(), 37, 9)
        assert (again.pixels, again.objects) == (moments.pixels, moments.objects)
        np.testing.assert_array_equal(again.mean, moments.mean)
        for name in ("m2", "sky"):
            mine, theirs = getattr(again, name), getattr(moments, name)
            worst = max(worst, float(np.abs(mine / theirs - 1).max()))
    assert worst < 8e-16


def test_double_ids_are_refused_with_their_count_and_the_first(tmp_path: Path) -> None:
    a, b = datasets(tmp_path)
    stamps = make_stamps(20, seed=3)
    ids = load(a).object_id
    stamps.object_id[4:7] = ids[[30, 10, 20]]
    c = write_stamps(tmp_path / "c", stamps)
    with pytest.raises(BadInput, match=rf"{a} and {c}: object_id {ids[10]} is there twice \(3 rows repeat"):
        merge_datasets(tmp_path / "out", [a, b, c])
    assert not (tmp_path / "out").exists()


def test_other_headers_are_refused(tmp_path: Path) -> None:
    a, _ = datasets(tmp_path)
    for stamps, storage, what in (
        (make_stamps(8, seed=3, bands=3), "float32", "bands g,r,i, but u,g,r,i,z in"),
        (make_stamps(8, seed=3, size=12), "float32", "stamp 12, but 16 in"),
        (make_stamps(8, seed=3), "int16", "storage int16, but float32 in"),
    ):
        other = write_stamps(tmp_path / what.replace(" ", "_"), stamps, storage=storage)
        with pytest.raises(BadInput, match=what):
            merge_datasets(tmp_path / "out", [a, other])
    assert not (tmp_path / "out").exists()


def test_where_no_links_are_possible_shards_are_copied_which_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def other_device(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", other_device)
    sources, out = datasets(tmp_path), tmp_path / "out"
    verify(out, merge_datasets(out, sources))
    assert capsys.readouterr().err.count("copied, not linked") == 1
    assert (out / "shard-00000.hdf5").stat().st_nlink == 1


def test_a_merge_that_is_interrupted_is_no_dataset_and_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    sources, out = datasets(tmp_path), tmp_path / "out"
    before = [load(folder).images for folder in sources]
    monkeypatch.setattr(module, "finish_dataset", interrupt)
    with pytest.raises(KeyboardInterrupt):
        merge_datasets(out, sources)
    monkeypatch.undo()
    with pytest.raises(BadInput, match="unfinished dataset"):
        read_manifest(out)
    assert merge_datasets(out, sources[::-1]).rows == 60
    for folder, images in zip(sources, before, strict=True):
        np.testing.assert_array_equal(load(folder).images, images)
    with pytest.raises(BadInput, match="already holds a finished dataset"):
        merge_datasets(out, sources)


def test_damage_is_found_with_verify(tmp_path: Path) -> None:
    sources = datasets(tmp_path)
    shard = read_manifest(sources[1]).shards[0]
    assert shard.offsets is not None
    with (sources[1] / shard.file).open("r+b") as file:
        file.seek(shard.offsets["images"] + 400)
        file.write(b"\x01\x02\x03")
    with pytest.raises(BadInput, match="b/shard-00000.hdf5: row 0: pixels differ"):
        merge_datasets(tmp_path / "out", sources, verify_all=True)
    assert not (tmp_path / "out").exists()
    merge_datasets(tmp_path / "out", sources)
    (sources[0] / "shard-00001.hdf5").unlink()
    with pytest.raises(BadInput, match="shard-00001.hdf5: listed in the manifest"):
        merge_datasets(tmp_path / "other", sources)


def test_shards_of_another_program_keep_their_checksums(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = datasets(tmp_path)
    foreign, stamps = tmp_path / "foreign", make_stamps(6, seed=5)
    foreign.mkdir()
    with h5py.File(foreign / "shard-x.h5", "w") as file:
        for name in ("images", "z_spec", "ebv", "object_id", "sky_sigma", "ra", "dec"):
            file[name] = getattr(stamps, name)
        file.attrs.update(bands=list("ugriz"), pixel_scale=0.396)
    index_folder(foreign)
    assert main(["merge", str(tmp_path / "out"), str(a), str(b), str(foreign), "--verify"]) == 0
    assert f"{tmp_path / 'out'}: 66 objects in 6 shards" in capsys.readouterr().out
    verify(tmp_path / "out", read_manifest(tmp_path / "out"))
    assert (tmp_path / "out" / "shard-00005.hdf5.xxh3").stat().st_size == 6 * 8


def test_a_link_in_a_source_is_refused(tmp_path: Path) -> None:
    a, b = datasets(tmp_path)
    manifest = read_manifest(b)
    (b / "shard-00000.hdf5").rename(tmp_path / "elsewhere")
    (b / "shard-00000.hdf5").symlink_to(tmp_path / "elsewhere")
    write_manifest(b, replace(manifest))
    with pytest.raises(BadInput, match="a link or no plain file"):
        merge_datasets(tmp_path / "out", [a, b])
