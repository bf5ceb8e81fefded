"""Ingestion of image files: unknown labels, unusable objects, wrong files and options, and replaced files."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.errors import BadInput
from tests.helpers.datasets import load
from tests.helpers.sources.array_files import hayat, ingest, ingest_and_load, labels, mmu, pixels, write


def test_unknown_labels_and_the_closing_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z = np.array([0.1, -1.0, -99.0, np.nan, 0.2, 21.0, 0.3])
    ebv = np.full((7, 5), 0.1)
    ebv[4, 1], ebv[6] = -1.0, -0.01  # a sentinel in one band; noise around zero
    path = hayat(tmp_path / "a.h5", 7, 24, specz_redshift=z, e_bv=ebv)
    out = tmp_path / "out"
    assert main(["ingest", "table", str(out), "--format", "hayat", str(path), "--processes", "1"]) == 0
    said = capsys.readouterr()
    assert f"{out}: 5 stamps in 1 shard, 3 of unknown redshift; left out 2, listed in" in said.out
    assert "E(B-V)" not in said.err
    manifest = read_manifest(out)
    (stamps,) = read_rows(out, manifest)
    np.testing.assert_allclose(stamps.z_spec, np.array([0.1, np.nan, np.nan, np.nan, 0.3]), rtol=1e-6)
    assert [(entry["row"], entry["reason"]) for entry in manifest.provenance["skipped"]] == [
        (4, "E(B-V) is not known: not finite, -1 or below, or above 100"),
        (5, "the redshift is above 20"),
    ]


def test_sentinels_and_numbers_beyond_float32_are_not_stored(tmp_path: Path) -> None:
    z = np.array([0.1, 1e300, -1e300, 0.2, 0.3, 0.4])
    ebv = np.full((6, 5), 0.1)
    ebv[3] = 1e5
    ra, dec = np.array([-9999.0, 0, 0, 0, 361, 1]), np.array([-9999.0, 0, 0, 0, 1, np.inf])
    path = hayat(tmp_path / "a.h5", 6, 24, specz_redshift=z, e_bv=ebv, ra=ra, dec=dec)
    _, stamps, skipped = ingest_and_load(tmp_path / "out", [path], "hayat")
    np.testing.assert_allclose(stamps.z_spec, [0.1, np.nan, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_array_equal(stamps.ra, [np.nan, 0, np.nan, 1])
    np.testing.assert_array_equal(stamps.dec, [np.nan, 0, 1, np.nan])
    assert [(entry["row"], entry["reason"].split(":")[0]) for entry in skipped] == [
        (1, "the redshift is above 20"),
        (3, "E(B-V) is not known"),
    ]


def test_files_without_extinction_are_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(2):
        fields: dict[str, Any] = {"image": pixels(3, 5, 24, k), "specz_redshift": np.full(3, 0.1)}
        write(tmp_path / "in" / f"{k}.h5", **fields, object_id=np.arange(3) + 10 * k)
    ingest_and_load(tmp_path / "out", [tmp_path / "in"], "galaxiesml", shard_rows=2)
    assert capsys.readouterr().err.count("no E(B-V) in 2 of 2 files: for their objects 0 is stored\n") == 1
    with h5py.File(mmu(tmp_path / "m" / "a.h5", [1, 2]), "r+") as file:
        del file["EBV"]
    mmu(tmp_path / "m" / "b.h5", [3, 4])
    manifest, stamps, _ = ingest_and_load(tmp_path / "mmu", [tmp_path / "m"], "mmu", keep_unlabelled=True)
    assert manifest.provenance["files_without_ebv"] == 1 and (stamps.ebv == 0).sum() == 2
    assert "no E(B-V) in 1 of 2 files: " in capsys.readouterr().err
    one = [tmp_path / "m" / "a.h5"]
    manifest, _, _ = ingest_and_load(tmp_path / "one", one, "mmu", keep_unlabelled=True)
    assert manifest.provenance["files_without_ebv"] is not True
    assert "no E(B-V) in 1 of 1 file: " in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["hayat", "pasquet"])
def test_a_replaced_file_makes_only_its_own_shards_again(tmp_path: Path, layout: str) -> None:
    sources = []
    for k in range(3):
        if layout == "hayat":
            sources.append(hayat(tmp_path / f"{k}.h5", 4, 16, ObjID=np.arange(4) + 10 * k))
        else:
            sources.append(tmp_path / f"{k}")
            sources[k].mkdir()
            rows = labels(4)
            rows["specObjID"] = np.arange(4) + 10 * k
            np.save(sources[k] / "cube.npy", pixels(4, 5, 16, k).transpose(0, 2, 3, 1))
            np.save(sources[k] / "labels.npy", rows)
    path = sources[1] if layout == "hayat" else sources[1] / "labels.npy"

    def files_of(name: str) -> dict[str, bytes]:
        ingest(tmp_path / name, sources, layout, shard_rows=4, processes=1)
        return {one.name: one.read_bytes() for one in (tmp_path / name).iterdir()}

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("hpcphotoz.sources.build.finish_dataset", None)
        with pytest.raises(TypeError):  # ended before the manifest
            files_of("out")
    shards = sorted((tmp_path / "out").glob("shard-*.hdf5"))
    before = [one.stat().st_mtime_ns for one in shards]
    if layout == "hayat":
        with h5py.File(path, "r+") as file:
            file["specz_redshift"][0] = 0.35
    else:
        rows = np.load(path)
        rows["z"][0] = 0.35
        np.save(path, rows)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    done = files_of("out")
    after = [one.stat().st_mtime_ns for one in shards]
    assert [now == then for now, then in zip(after, before, strict=True)] == [True, False, True]
    assert done == files_of("fresh")


def test_bad_objects_are_listed_not_fatal(tmp_path: Path) -> None:
    images = pixels(6, 5, 32)
    images[0, 2, 1, 1], images[1, 0] = np.nan, 0.0
    images[2, 1, 16, 16], images[5, 4, 3, 3] = 1e5, np.inf
    ids = np.array([1, 2, 3, 4, 4, 5])
    ebv = np.full((6, 5), 0.1)
    path = hayat(tmp_path / "a.h5", 6, 32, images=images, ObjID=ids, e_bv=ebv)
    _, stamps, skipped = ingest_and_load(tmp_path / "out", [path], "hayat", storage="float16")
    np.testing.assert_array_equal(stamps.object_id, [4])
    assert [(entry["object_id"], entry["reason"]) for entry in skipped] == [
        (1, "a pixel is not finite in the r band"),
        (2, "no noise in the outer pixels of the u band"),
        (3, "a pixel is beyond float16's 65504 nMgy in the g band"),
        (4, "an earlier row has this object"),
        (5, "a pixel is not finite in the z band"),
    ]
    with pytest.raises(BadInput, match="no object could be used, 1 were skipped; the first: a pixel is not"):
        ingest(tmp_path / "none", [path], "hayat", limit=1)


def test_the_closing_line_counts_by_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = pixels(7, 5, 16)
    images[0, 2], images[1, 3, 2, 2] = np.nan, np.nan
    path = hayat(tmp_path / "a.h5", 7, 16, images=images, ObjID=np.array([1, 2, 3, 3, 3, 3, 4]))
    out = tmp_path / "out"
    assert main(["ingest", "table", str(out), "--format", "hayat", str(path), "--processes", "1"]) == 0
    by_reason = "(3: an earlier row has this object; 2: a pixel is not finite in a band)\n"
    assert capsys.readouterr().out.endswith(f"left out 5, listed in {out / 'manifest.json'} {by_reason}")


def test_impossible_positions_and_a_crop_off_the_centre_are_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"ra": np.full(7, 10.0), "dec": np.full(7, 80.0)}
    swapped = {"ra": np.full(7, 10.0), "dec": np.linspace(89, 95, 7)}
    paths = [hayat(tmp_path / "a.h5", 7, 16, **good)]
    ingest(tmp_path / "good", paths, "hayat", processes=1, crop=12)
    said = capsys.readouterr().err
    assert "range" not in said and "centre" not in said
    paths.append(hayat(tmp_path / "b.h5", 7, 16, ObjID=np.arange(7), **swapped))
    ingest(tmp_path / "out", paths, "hayat", processes=1, crop=11, shard_rows=4)
    said = capsys.readouterr().err
    first = f"5 positions are out of range, stored as unknown; the first: {paths[1]}: row 2: ra 10, dec 91\n"
    assert said.count(first) == said.count("out of range") == 1
    assert said.count("crop 11 of 16 pixels is half a pixel off the centre\n") == 1


def test_counted_objects_are_summed(tmp_path: Path) -> None:
    path, z = mmu(tmp_path / "a.h5", range(30)), tmp_path / "z.csv"
    z.write_text("object_id,z\n99,0.1\n3,-9999\n")
    with pytest.raises(BadInput, match="no object could be used, 30 were skipped; the first: no redshift in"):
        ingest(tmp_path / "none", [path], "mmu", redshifts=z, shard_rows=8, processes=1)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"images": np.zeros((7, 4, 8, 8), np.float32)}, "4 bands, not 5"),
        ({"images": np.zeros((7, 5, 8, 9), np.float32)}, "8 x 9 pixels: need squares"),
        ({"images": np.zeros((7, 5), np.float32)}, "not images (N, band, y, x)"),
        ({"e_bv": np.zeros(7)}, "'e_bv' has shape (7,), but 7 images in 'images' need (7, 5)"),
        ({"specz_redshift": np.zeros(6)}, "'specz_redshift' has shape (6,)"),
        ({"specz_redshift": np.array([b"x"] * 7)}, "'specz_redshift' is |S1, not numbers"),
        (
            {"ObjID": np.full(7, 1.2e18)},
            "row 0: 'ObjID' 1.2e+18 may have lost digits",
        ),
    ],
)
def test_fields_of_wrong_shape_or_type_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any], says: str
) -> None:
    path = hayat(tmp_path / "wrong.h5", 7, 16, **other)
    assert main(["ingest", "table", str(tmp_path / "out"), "--format", "hayat", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "wrong.h5" in error and says in error
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_wrong_files_and_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = hayat(tmp_path / "a.h5", 3, 16), tmp_path / "b.h5"
    bad.write_bytes(b"not HDF5")
    other = hayat(tmp_path / "c.h5", 3, 20)
    cases: list[tuple[list[Any], str]] = [
        (["--format", "hayat", bad], "b.h5: not a readable HDF5 file"),
        (["--format", "hayat", tmp_path / "none"], "none: no such file"),
        (["--format", "galaxiesml", good], "no field 'image': it has ObjID, dec, e_bv"),
        (["--format", "hayat", good, other], "of 20 pixels of 0.396 arcsec, but"),
        (["--format", "hayat", good, "--crop", 17], "crop 17"),
        (["--format", "hayat", good, "--shard-rows", 0], "shard rows 0"),
        (["--format", "hayat", good, "--limit", 0], "limit 0"),
        (["--format", "hayat", good, "--processes", 0], "processes 0"),
        (["--format", "hayat", good, "--redshifts", good], "map hayat names z_spec"),
        (["--format", "mmu", good], "map mmu names no z_spec: give --redshifts"),
        (["--format", "hayat", good, "--zero-point", -99], "zero point -99: must be an AB magnitude from 0"),
        (["--format", "hayat", good, "--zero-point", "nan"], "--zero-point: nan: must be a finite"),
        (["--format", "hayat", good, "--zero-point", 40.5], "zero point 40.5"),
        (["--format", "fits", good], "invalid choice"),
    ]
    for words, says in cases:
        assert main(["ingest", "table", str(tmp_path / "out"), *map(str, words)]) == 2, words
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and says in error, error


def test_another_calibration_of_what_is_appended_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, same = tmp_path / "out", pixels(3, 5, 16)
    files = [hayat(tmp_path / f"{k}.h5", 3, 16, images=same, ObjID=np.arange(3) + 3 * k) for k in range(3)]
    for append, zero_point in ((False, 27.0), (True, 27.0), (True, 25.0)):
        how: dict[str, Any] = {"append": append, "zero_point": zero_point, "processes": 1}
        ingest(out, [files.pop(0)], "hayat", **how)
        told = "append: zero point 25.0 here, 27.0 in the dataset" in capsys.readouterr().err
        assert told == (zero_point == 25.0)
    images = load(out).images
    np.testing.assert_array_equal(images[:3], images[3:6])
    np.testing.assert_allclose(images[6:], images[:3] * 10**0.8, rtol=1e-6)
    assert main(["inspect", str(out)]) == 0
    said = capsys.readouterr().out.split("\n")
    assert [line.split()[-1] for line in said if "zero_point_ab" in line] == ["27.0", "27.0", "25.0"]


def test_an_unusable_output_folder_is_refused_first(tmp_path: Path) -> None:
    ingest_and_load(tmp_path / "done", [hayat(tmp_path / "a.h5", 3, 16)], "hayat")
    with pytest.raises(BadInput, match="already holds a finished dataset"):
        ingest(tmp_path / "done", [tmp_path / "absent.h5"], "hayat")


def test_what_is_appended_is_stored_as_the_dataset(tmp_path: Path) -> None:
    first = hayat(tmp_path / "a.h5", 3, 16)
    files = [first, hayat(tmp_path / "b.h5", 4, 16, ObjID=np.arange(4) + 900)]
    words = ["--format", "hayat", "--processes", "1"]
    for storage in ("float32", "int16"):
        out, options = str(tmp_path / storage), ["--storage", storage]
        assert main(["ingest", "table", out, str(first), *words, *options]) == 0
    packed, exact = load(tmp_path / "int16"), load(tmp_path / "float32")
    error = np.abs(packed.images - exact.images) / exact.sky_sigma[:, :, None, None]
    assert 0.01 < error.max() < 1.01 / 64
    for storage in ("float32", "int16"):
        out = str(tmp_path / storage)
        assert main(["ingest", "table", out, *map(str, files), *words, "--append"]) == 0
        found = read_manifest(tmp_path / storage)
        assert (found.rows, found.header.storage) == (7, storage)
