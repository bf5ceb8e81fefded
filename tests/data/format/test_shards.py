"""The shard format: what is written is read back; half-written and altered datasets are refused."""

import json
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.data.format import shards
from hpcphotoz.data.format.band_moments import BandMoments
from hpcphotoz.data.format.manifest import MANIFEST, STORAGE, read_manifest
from hpcphotoz.data.format.stamps import COLUMNS, Stamps
from hpcphotoz.data.format.writer import ALIGNMENT, DatasetWriter, write_shard
from hpcphotoz.data.read import rows
from hpcphotoz.errors import BadInput
from tests.helpers.datasets import HEADER, make_dataset, make_stamps


def read(folder: Path) -> Stamps:
    return Stamps.concatenate(list(rows.read_rows(folder, read_manifest(folder))))


def test_what_is_written_is_read_back_bit_for_bit(dataset: Path) -> None:
    written, found = make_stamps(75), read(dataset)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(written, name), strict=True)
    assert [shard.rows for shard in read_manifest(dataset).shards] == [32, 32, 11]


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


def test_h5py_alone_reads_a_shard(dataset: Path) -> None:
    with h5py.File(dataset / "shard-00001.h5") as file:
        assert file["images"].shape == (32, 5, 16, 16)
        assert list(file.attrs["bands"]) == list("ugriz")
        assert file.attrs["flux_unit"] == "nanomaggy"
        assert file.attrs["pixel_scale"] == 0.396
        assert file["images"].chunks is None


def test_large_arrays_are_contiguous_and_aligned(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "d", n=300, shard_rows=300, size=32)
    with h5py.File(folder / "shard-00000.h5") as file:
        assert file["images"].id.get_offset() % ALIGNMENT == 0


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
    assert len(read(tmp_path / "d")) == 5


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


def copy(dataset: Path, to: Path) -> Path:
    to.mkdir()
    for path in dataset.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_a_truncated_shard_is_named(dataset: Path, tmp_path: Path) -> None:
    folder = copy(dataset, tmp_path / "d")
    with (folder / "shard-00001.h5").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BadInput, match=r"shard-00001\.h5: 1000 bytes"):
        read_manifest(folder)


def test_a_missing_shard_is_named(dataset: Path, tmp_path: Path) -> None:
    folder = copy(dataset, tmp_path / "d")
    (folder / "shard-00002.h5").unlink()
    with pytest.raises(BadInput, match=r"shard-00002\.h5: listed in the manifest .rows 0 to 10. but missing"):
        read_manifest(folder)


def test_verify_finds_one_flipped_bit(dataset: Path, tmp_path: Path) -> None:
    folder = copy(dataset, tmp_path / "d")
    manifest = read_manifest(folder)
    rows.verify(folder, manifest)
    path = folder / "shard-00000.h5"
    data = bytearray(path.read_bytes())
    data[-5000] ^= 1
    path.write_bytes(data)
    (folder / "shard-00002.h5").unlink()
    both = (
        r"damage in 2 of 3 shards: .*shard-00000\.h5: row 31: pixels differ.*; .*shard-00002\.h5: .*missing"
    )
    with pytest.raises(BadInput, match=both):
        rows.verify(folder, manifest)


def test_a_shard_outside_the_folder_is_refused(dataset: Path, tmp_path: Path) -> None:
    folder = copy(dataset, tmp_path / "d")
    tree = json.loads((folder / "manifest.json").read_text())
    for path in ("../secret.h5", "/etc/passwd", "sub/../../secret.h5"):
        tree["shards"][0]["file"] = path
        (folder / "manifest.json").write_text(json.dumps(tree))
        with pytest.raises(BadInput, match="outside the dataset's folder"):
            read_manifest(folder)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "hpcphotoz-shards", "version": 99}', "\x00"])
def test_a_manifest_that_is_none_is_refused(dataset: Path, tmp_path: Path, text: str) -> None:
    folder = copy(dataset, tmp_path / "d")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BadInput, match=r"manifest\.json: not a manifest"):
        read_manifest(folder)


def test_a_manifest_that_may_not_be_read_is_not_called_another_format(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(BadInput, match=r"manifest\.json: cannot be read: Permission denied$"):
        read_manifest(dataset)


def test_a_shard_that_disagrees_with_the_manifest_is_named(dataset: Path, tmp_path: Path) -> None:
    folder = copy(dataset, tmp_path / "d")
    manifest = read_manifest(folder)
    four = replace(manifest, header=replace(manifest.header, bands=tuple("ugri")))
    with pytest.raises(BadInput, match=r"'images' is float32"):
        list(rows.read_rows(folder, four))
    swapped = replace(manifest, header=replace(manifest.header, bands=tuple("zirgu")))
    with pytest.raises(BadInput, match="bands"):
        list(rows.read_rows(folder, swapped))


BROKEN: list[tuple[str, object]] = [
    ("shards.0.file", 5),
    ("shards.0.file", None),
    ("shards.0.file", "shard\0.h5"),
    ("shards.0.file", "s" * 5000),
    ("shards.0.file", "../set/shard-00000.h5"),
    ("shards.0.file", "/etc/passwd"),
    ("shards.0.rows", 1.5),
    ("shards.0.rows", True),
    ("shards.0.rows", -32),
    ("shards.0.rows", 10**30),
    ("shards.0.bytes", "many"),
    ("shards.0.z_min", "low"),
    ("shards.0.unlabelled", None),
    ("shards.0.offsets.images", -1),
    ("shards.0.offsets.images", 1 << 40),
    ("shards.0.offsets.image_xxh3", "here"),
    ("shards.0.chunk_rows", 0),
    ("shards", {}),
    ("stamp", 0),
    ("stamp", 16.5),
    ("bands", []),
    ("bands", "ugriz"),
    ("pixel_scale", 0),
    ("pixel_scale", "0.396"),
    ("storage", "float64"),
    ("statistics.mean", [1.0]),
    ("provenance", None),
    ("rows", 74),
    ("version", 3),
]


@pytest.mark.parametrize(("key", "value"), BROKEN, ids=[f"{k}={str(v)[:20]!r}" for k, v in BROKEN])
def test_a_manifest_that_cannot_be_true_is_refused_in_one_line(
    dataset: Path, tmp_path: Path, key: str, value: object
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for path in dataset.glob("*.h5"):
        (folder / path.name).hardlink_to(path)
    tree = json.loads((dataset / MANIFEST).read_text())
    place: object = tree
    *parents, last = key.split(".")
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]  # type: ignore[index]
    place[last] = value  # type: ignore[index]
    (folder / MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(BadInput) as caught:
        read_manifest(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_linked_shard_is_refused(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / MANIFEST).write_text((dataset / MANIFEST).read_text())
    for path in dataset.glob("*.h5"):
        (folder / path.name).symlink_to(path)
    with pytest.raises(BadInput, match=r"shard-00000\.h5: a link or no plain file"):
        read_manifest(folder)


@pytest.mark.parametrize("column", ["images", "z_spec", "ra", "image_xxh3"])
def test_reading_in_order_compares_checksums_too(dataset: Path, tmp_path: Path, column: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for path in dataset.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    offsets = read_manifest(folder).shards[1].offsets
    assert offsets is not None
    with (folder / "shard-00001.h5").open("r+b") as file:
        file.seek(offsets[column] + 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 4]))
    with pytest.raises(BadInput, match=r"shard-00001\.h5: .*checksum"):
        read(folder)


def test_an_hdf5_error_within_a_shard_is_one_line(dataset: Path, tmp_path: Path) -> None:
    from hpcphotoz.data.format.index import index_folder

    folder = tmp_path / "set"
    folder.mkdir()
    with h5py.File(dataset / "shard-00000.h5") as old, h5py.File(folder / "shard-00000.h5", "w") as new:
        new.attrs.update(bands=old.attrs["bands"], pixel_scale=old.attrs["pixel_scale"])
        for name in COLUMNS:
            new.create_dataset(name, data=old[name][...], chunks=True, compression="gzip")
        place = new["images"].id.get_chunk_info(0).byte_offset
    manifest = index_folder(folder)
    with (folder / "shard-00000.h5").open("r+b") as file:
        file.seek(place + 20)
        file.write(b"damage")
    entry = replace(manifest.shards[0], sha256=shards.file_sha256(folder / "shard-00000.h5"))
    with pytest.raises(BadInput, match=r"shard-00000\.h5: rows 0 to 31 cannot be read \("):
        list(rows.read_rows(folder, replace(manifest, shards=(entry,))))


@pytest.mark.parametrize("storage", STORAGE)
def test_writing_a_shard_takes_little_memory_beside_it(tmp_path: Path, storage: str) -> None:
    stamps = make_stamps(1500, size=32)
    header = replace(HEADER, stamp=32, storage=storage)
    path = tmp_path / "shard-00000.h5"
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
        write_shard(tmp_path / "shard-00000.h5", replace(HEADER, storage="float16"), stamps)
    assert not list(tmp_path.iterdir())


def test_old_software_refuses_int16_that_it_would_misread(tmp_path: Path) -> None:
    for storage, version in (("float32", 1), ("float16", 1), ("int16", 2)):
        with DatasetWriter(tmp_path / storage, replace(HEADER, storage=storage), 8, {}) as writer:
            writer.append(make_stamps(3))
        assert json.loads((tmp_path / storage / MANIFEST).read_text())["version"] == version


def test_int16_of_version_1_is_read(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "d", replace(HEADER, storage="int16"), 8, {}) as writer:
        writer.append(make_stamps(3))
    path = tmp_path / "d" / MANIFEST
    before = read(tmp_path / "d").images
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 1}))
    np.testing.assert_array_equal(read(tmp_path / "d").images, before)


def test_int16_refuses_a_sky_sigma_it_cannot_scale_by(tmp_path: Path) -> None:
    stamps = replace(make_stamps(3), sky_sigma=np.full((3, 5), 1e-44, np.float32))
    with (
        pytest.raises(BadInput, match="row 0 has a sky sigma too small"),
        DatasetWriter(tmp_path / "d", replace(HEADER, storage="int16"), 8, {}) as writer,
    ):
        writer.append(stamps)
    assert not (tmp_path / "d" / MANIFEST).exists()


def test_a_terminal_does_not_obey_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"made\x1b[2J": "here\x1b]0;title\x07", "note": ["\u202eabc"]}
    with DatasetWriter(tmp_path / "d", HEADER, 8, record) as writer:
        writer.append(make_stamps(3))
    assert main(["inspect", str(tmp_path / "d")]) == 0
    printed = capsys.readouterr().out
    assert "made" in printed and "title" in printed and printed.replace("\n", "").isprintable()
