"""Published image sets: small files in each layout, as their authors write them."""

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.data.format.manifest import Manifest, read_manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.catalogue import read_redshifts
from hpcphotoz.sources.identifiers import identifier
from hpcphotoz.sources.noise import outer_pixels, stamp_sky_sigma
from hpcphotoz.sources.published.file_layouts import FILE_LAYOUTS
from hpcphotoz.sources.published.ingest_table import ingest_table
from tests.helpers.commands import TINY
from tests.helpers.datasets import load
from tests.helpers.sources.published_files import GZIP, hayat, labels, mmu, pixels, write

RNG = np.random.default_rng(5)


def made(out: Path, sources: list[Path], layout: str, **how: Any) -> tuple[Manifest, Stamps, list[Any]]:
    manifest, skipped = ingest_table(out, sources, layout, processes=1, **how)
    assert read_manifest(out) == manifest and manifest.provenance["skipped"] == skipped
    return manifest, load(out, manifest), skipped


def test_pasquet_npz_is_mapped_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cube, rows = pixels(20, 5, 64).transpose(0, 2, 3, 1), labels(20)
    np.savez(tmp_path / "sdss.npz", cube=cube, labels=rows)
    monkeypatch.setattr(np, "load", None)
    manifest, stamps, _ = made(tmp_path / "out", [tmp_path / "sdss.npz"], "pasquet", shard_rows=8)
    assert [shard.rows for shard in manifest.shards] == [8, 8, 4]
    assert manifest.header.bands == ("u", "g", "r", "i", "z") and manifest.header.pixel_scale == 0.396
    np.testing.assert_array_equal(stamps.images, cube.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(stamps.z_spec, rows["z"])
    np.testing.assert_array_equal(stamps.ebv, rows["EBV"])
    np.testing.assert_array_equal(stamps.object_id, rows["specObjID"])
    np.testing.assert_array_equal(stamps.ra, rows["ra"])
    np.testing.assert_allclose(stamps.sky_sigma, np.tile(np.arange(1, 6), (20, 1)), rtol=0.12)


def test_pasquet_compressed_is_refused_and_its_folder_taken(tmp_path: Path) -> None:
    cube, rows = pixels(4, 5, 16).transpose(0, 2, 3, 1), labels(4)
    np.savez_compressed(tmp_path / "sdss.npz", cube=cube, labels=rows)
    with pytest.raises(BadInput, match=r"cube\.npy is compressed .* `unzip sdss\.npz -d FOLDER`"):
        ingest_table(tmp_path / "out", [tmp_path / "sdss.npz"], "pasquet")
    with zipfile.ZipFile(tmp_path / "sdss.npz") as archive:
        archive.extractall(tmp_path / "sdss")
    _, stamps, _ = made(tmp_path / "out", [tmp_path / "sdss"], "pasquet")
    np.testing.assert_array_equal(stamps.images, cube.transpose(0, 3, 1, 2))


def test_pickled_or_cut_npz_is_refused(tmp_path: Path) -> None:
    cube = pixels(4, 5, 16).transpose(0, 2, 3, 1)
    np.savez(tmp_path / "p.npz", cube=cube, labels=np.array([{"z": 1}] * 4, object))
    with pytest.raises(BadInput, match="pickled objects, which are never loaded"):
        ingest_table(tmp_path / "out", [tmp_path / "p.npz"], "pasquet")
    np.save(tmp_path / "cube.npy", cube)
    np.save(tmp_path / "labels.npy", labels(4))
    with (tmp_path / "cube.npy").open("r+b") as file:
        file.truncate(9000)
    with pytest.raises(BadInput, match="bytes of an array of float32.* there: copy it again"):
        ingest_table(tmp_path / "out", [tmp_path], "pasquet")
    (tmp_path / "x.npz").write_bytes(b"PK nothing")
    with pytest.raises(BadInput, match=r"x\.npz: not a readable npz file"):
        ingest_table(tmp_path / "out", [tmp_path / "x.npz"], "pasquet")


@pytest.mark.parametrize("crop", [None, 64, 33])
def test_hayat(tmp_path: Path, crop: int | None) -> None:
    path = hayat(tmp_path / "sdss.h5")
    manifest, stamps, _ = made(tmp_path / "out", [path], "hayat", crop=crop, shard_rows=3)
    size = crop or 107
    low = (107 - size) // 2
    assert manifest.header.stamp == size
    np.testing.assert_array_equal(stamps.images, pixels(7, 5, 107)[:, :, low : low + size, low : low + size])
    np.testing.assert_allclose(stamps.ebv, np.linspace(0.01, 0.1, 7), rtol=1e-5)
    assert stamps.object_id[3] == 1237661971724599003


def test_galaxiesml_counts_become_nanomaggies(tmp_path: Path) -> None:
    z = np.array([0.1, 0.2, -99.0], np.float32)
    images = pixels(3, 5, 64)
    path = write(
        tmp_path / "hsc.hdf5", GZIP, image=images, specz_redshift=z, object_id=np.arange(3), g_cmodel_mag=z
    )
    manifest, stamps, _ = made(tmp_path / "out", [path], "galaxiesml")
    assert manifest.header.bands == ("g", "r", "i", "z", "y") and manifest.header.pixel_scale == 0.168
    np.testing.assert_allclose(stamps.images, images * 10**-1.8, rtol=1e-6)
    assert manifest.provenance["zero_point_ab"] == 27 and manifest.provenance["ebv"] == "not in the files: 0"
    assert not stamps.ebv.any() and np.isnan(stamps.ra).all()
    assert np.isnan(stamps.z_spec[2]) and manifest.shards[0].unlabelled == 1


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
    _, stamps, skipped = made(tmp_path / "out", [path], "hayat")
    np.testing.assert_allclose(stamps.z_spec, [0.1, np.nan, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_array_equal(stamps.ra, [np.nan, 0, np.nan, 1])
    np.testing.assert_array_equal(stamps.dec, [np.nan, 0, 1, np.nan])
    assert [(entry["row"], entry["reason"].split(":")[0]) for entry in skipped] == [
        (1, "the redshift is above 20"),
        (3, "E(B-V) is not known"),
    ]


def test_files_without_extinction_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(2):
        fields: dict[str, Any] = {"image": pixels(3, 5, 24, k), "specz_redshift": np.full(3, 0.1)}
        write(tmp_path / "in" / f"{k}.h5", **fields, object_id=np.arange(3) + 10 * k)
    made(tmp_path / "out", [tmp_path / "in"], "galaxiesml", shard_rows=2)
    assert capsys.readouterr().err.count("no E(B-V) in 2 of 2 files: for their objects 0 is stored\n") == 1
    with h5py.File(mmu(tmp_path / "m" / "a.h5", [1, 2]), "r+") as file:
        del file["EBV"]
    mmu(tmp_path / "m" / "b.h5", [3, 4])
    manifest, stamps, _ = made(tmp_path / "mmu", [tmp_path / "m"], "mmu", keep_unlabelled=True)
    assert manifest.provenance["files_without_ebv"] == 1 and (stamps.ebv == 0).sum() == 2
    assert "no E(B-V) in 1 of 2 files: " in capsys.readouterr().err


def test_help_says_what_each_format_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "table", "--help"]) == 0
    said = capsys.readouterr().out
    for name, layout in FILE_LAYOUTS.items():
        (part,) = re.findall(rf"^{name}: .*\n(?:  .*\n)+", said, re.MULTILINE)
        fields = (layout.images, layout.object_id, *layout.ebv, *layout.ra, *layout.dec)
        assert all(re.search(rf"\b{field}\b", part) for field in fields), name
        assert layout.z_spec is None or f"redshift  {layout.z_spec}\n" in part
        assert not layout.bands or f'{" ".join(layout.bands)}; pixel scale {layout.pixel_scale}"' in part
        assert ("(N, y, x, band)" in part) == layout.channels_last
    assert max(map(len, said.splitlines())) <= 110


def test_ssl_legacy_in_several_files(tmp_path: Path) -> None:
    for k, n in enumerate([5, 3]):
        write(
            tmp_path / f"images_{k}.h5",
            images=pixels(n, 3, 152, k),
            z_spec=np.full(n, 0.1 + k, np.float32),
            ebv=np.full(n, 0.02, np.float32),
            ra=np.zeros(n),
            dec=np.zeros(n),
            inds=np.arange(n) + 100 * k,
        )
    sources = [tmp_path / "images_1.h5", tmp_path / "images_0.h5"]
    manifest, stamps, _ = made(tmp_path / "out", sources, "ssl-legacy", shard_rows=4, limit=7)
    assert manifest.header.bands == ("g", "r", "z") and manifest.header.pixel_scale == 0.262
    assert [shard.rows for shard in manifest.shards] == [4, 3]
    np.testing.assert_array_equal(stamps.object_id, [0, 1, 2, 3, 4, 100, 101])
    np.testing.assert_array_equal(stamps.images[5:], pixels(3, 3, 152, 1)[:2])


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

    def ingest(name: str) -> dict[str, bytes]:
        ingest_table(tmp_path / name, sources, layout, shard_rows=4, processes=1)
        return {one.name: one.read_bytes() for one in (tmp_path / name).iterdir()}

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("hpcphotoz.sources.build.finish_dataset", None)
        with pytest.raises(TypeError):  # ended before the manifest
            ingest("out")
    shards = sorted((tmp_path / "out").glob("shard-*.h5"))
    before = [one.stat().st_mtime_ns for one in shards]
    if layout == "hayat":
        with h5py.File(path, "r+") as file:
            file["specz_redshift"][0] = 0.35
    else:
        rows = np.load(path)
        rows["z"][0] = 0.35
        np.save(path, rows)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    done = ingest("out")
    after = [one.stat().st_mtime_ns for one in shards]
    assert [now == then for now, then in zip(after, before, strict=True)] == [True, False, True]
    assert done == ingest("fresh")


def test_mmu_join_masks_and_bands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [f"0001m002-{k}" for k in range(6)]
    mask, ivar = np.ones((6, 24, 24), np.bool_), np.ones((6, 4, 24, 24), np.float32)
    mask[1, 12, 8:16] = False  # in the crop
    mask[2, 0, :] = False  # outside it
    ivar[3, 2, 12, 8:16] = 0
    band = np.array([[b"des-g", b"des-r", b"des-i", b"des-z"]] * 6)
    band[4, 1] = b"des-y"
    mmu(
        tmp_path / "in" / "healpix=7" / "001-of-001.hdf5",
        ids,
        image_mask=mask,
        image_ivar=ivar,
        image_band=band,
    )
    mmu(tmp_path / "in" / "healpix=12" / "001-of-001.hdf5", ["17", "18"], seed=2)
    z = tmp_path / "z.csv"
    z.write_text(
        "object_id,z\n" + "".join(f"{one},0.{k + 1}\n" for k, one in enumerate(ids)) + "18,0.9\n99,\n"
    )
    words = ["ingest", "table", tmp_path / "out", "--format", "mmu", tmp_path / "in", "--redshifts", z]
    assert main([str(word) for word in [*words, "--crop", 16, "--processes", 1]]) == 0
    assert "4 stamps in 1 shard; left out 4" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out")
    assert manifest.header.bands == ("des-g", "des-r", "des-i", "des-z")
    stamps = Stamps.concatenate(list(read_rows(tmp_path / "out", manifest)))
    kept = [ids[0], ids[2], ids[5]]
    np.testing.assert_array_equal(stamps.object_id, [18, *map(identifier, kept)])
    np.testing.assert_allclose(stamps.z_spec, [0.9, 0.1, 0.3, 0.6])
    np.testing.assert_array_equal(stamps.images[0], pixels(2, 4, 24, 2)[1][:, 4:20, 4:20])
    reasons = {entry.get("row", -1): entry["reason"] for entry in manifest.provenance["skipped"]}
    assert reasons == {
        -1: "no redshift in the table",
        1: "too many pixels are masked or without inverse variance in the des-g band",
        3: "too many pixels are masked or without inverse variance in the des-i band",
        4: "another band in place of the des-r band",
    }
    assert "BLAKE2b" in manifest.provenance["object_id"]
    _, stamps, _ = made(tmp_path / "all", [tmp_path / "in"], "mmu", redshifts=z, keep_unlabelled=True)
    assert np.isnan(stamps.z_spec).sum() == 1 and stamps.object_id[0] == 17


@pytest.mark.parametrize("absent", [("image_ivar",), ("image_mask",), ("image_ivar", "image_mask")], ids=str)
def test_mmu_masks_and_inverse_variance_may_be_absent(tmp_path: Path, absent: tuple[str, ...]) -> None:
    mask, ivar = np.ones((3, 24, 24), np.bool_), np.ones((3, 4, 24, 24), np.float32)
    mask[1, 8:16, 8:16], ivar[1, :, 8:16, 8:16] = False, 0
    path = mmu(tmp_path / "a.hdf5", [1, 2, 3], image_mask=mask, image_ivar=ivar)
    with h5py.File(path, "r+") as file:
        for name in absent:
            del file[name]
    _, stamps, skipped = made(tmp_path / "out", [path], "mmu", keep_unlabelled=True)
    assert stamps.object_id.tolist() == ([1, 3] if len(absent) == 1 else [1, 2, 3])
    assert [entry["row"] for entry in skipped] == ([1] if len(absent) == 1 else [])


def test_mmu_pixels_of_hsc_are_counts_and_others_must_be_told(tmp_path: Path) -> None:
    hsc = np.array([[b"hsc-g", b"hsc-r"]] * 2)
    path = mmu(
        tmp_path / "a.hdf5", [1, 2], "gr", image_band=hsc, image_mask=np.ones((2, 2, 24, 24), np.bool_)
    )
    manifest, _, _ = made(tmp_path / "out", [path], "mmu", keep_unlabelled=True)
    assert manifest.provenance["zero_point_ab"] == 27
    path = mmu(tmp_path / "b.hdf5", [1, 2], "gr", image_band=np.array([[b"kids-g", b"kids-r"]] * 2))
    with pytest.raises(BadInput, match="bands kids-g, kids-r: give the pixels' --zero-point"):
        ingest_table(tmp_path / "b", [path], "mmu", keep_unlabelled=True)
    manifest, _, _ = made(tmp_path / "b", [path], "mmu", keep_unlabelled=True, zero_point=25.0)
    assert manifest.provenance["nanomaggies_per_unit"] == pytest.approx(0.1)


def test_bad_objects_are_listed_not_fatal(tmp_path: Path) -> None:
    images = pixels(6, 5, 32)
    images[0, 2, 1, 1], images[1, 0] = np.nan, 0.0
    images[2, 1, 16, 16], images[5, 4, 3, 3] = 1e5, np.inf
    ids = np.array([1, 2, 3, 4, 4, 5])
    ebv = np.full((6, 5), 0.1)
    path = hayat(tmp_path / "a.h5", 6, 32, images=images, ObjID=ids, e_bv=ebv)
    _, stamps, skipped = made(tmp_path / "out", [path], "hayat", storage="float16")
    np.testing.assert_array_equal(stamps.object_id, [4])
    assert [(entry["object_id"], entry["reason"]) for entry in skipped] == [
        (1, "a pixel is not finite in the r band"),
        (2, "no noise in the outer pixels of the u band"),
        (3, "a pixel is beyond float16's 65504 nMgy in the g band"),
        (4, "an earlier row has this object"),
        (5, "a pixel is not finite in the z band"),
    ]
    with pytest.raises(BadInput, match="no object could be used, 1 were skipped; the first: a pixel is not"):
        ingest_table(tmp_path / "none", [path], "hayat", limit=1)


def test_counted_objects_are_summed(tmp_path: Path) -> None:
    path, z = mmu(tmp_path / "a.h5", range(30)), tmp_path / "z.csv"
    z.write_text("object_id,z\n99,0.1\n3,-9999\n")
    with pytest.raises(BadInput, match="no object could be used, 30 were skipped; the first: no redshift in"):
        ingest_table(tmp_path / "none", [path], "mmu", redshifts=z, shard_rows=8, processes=1)


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
def test_wrong_fields_are_named(
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
        (["--format", "hayat", good, "--redshifts", good], "format hayat holds redshifts"),
        (["--format", "mmu", good], "format mmu holds no redshifts: give --redshifts"),
        (["--format", "hayat", good, "--zero-point", -99], "zero point -99: must be an AB magnitude from 0"),
        (["--format", "hayat", good, "--zero-point", "nan"], "--zero-point: nan: must be a finite"),
        (["--format", "hayat", good, "--zero-point", 40.5], "zero point 40.5"),
        (["--format", "fits", good], "invalid choice"),
    ]
    for words, says in cases:
        assert main(["ingest", "table", str(tmp_path / "out"), *map(str, words)]) == 2, words
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and says in error, error


def test_the_folder_to_make_is_looked_at_first(tmp_path: Path) -> None:
    made(tmp_path / "done", [hayat(tmp_path / "a.h5", 3, 16)], "hayat")
    with pytest.raises(BadInput, match="already holds a finished dataset"):
        ingest_table(tmp_path / "done", [tmp_path / "absent.h5"], "hayat")


def test_redshift_tables(tmp_path: Path) -> None:
    from astropy.table import Table

    rows = Table({"object_id": np.array([b"b", b"a", b"c"]), "z": [0.2, 0.1, np.nan]})
    for kind, name in (("fits", "z.fits"), ("votable", "z.vot")):
        rows.write(tmp_path / name, format=kind)
        found = read_redshifts(tmp_path / name)
        ids = np.array([identifier(one) for one in ("a", "b", "c", "d")])
        np.testing.assert_allclose(found.lookup(ids), [0.1, 0.2, np.nan, np.nan])
    for text, says in (
        ("id,z\n1,2\n", "needs columns object_id and z_spec or z; it has id, z"),
        ("object_id,z\n1,x\n", "line 2: z x is not a number"),
        ("object_id,z\n1,0.1\n1,0.2\n", "object_id 1 has redshifts 0.1 and 0.2: keep one"),
    ):
        (tmp_path / "z.csv").write_text(text)
        with pytest.raises(BadInput, match=says):
            read_redshifts(tmp_path / "z.csv")


def test_sky_sigma_is_not_moved_by_a_galaxy_and_its_neighbours() -> None:
    rng = np.random.default_rng(0)
    images = (
        rng.normal(size=(40, 2, 64, 64)).astype(np.float32) * np.array([0.02, 5.0], np.float32)[:, None, None]
    )
    y, x = np.mgrid[:64, :64]
    for row, column, width in ((32, 32, 6), (3, 50, 3), (60, 10, 2)):
        profile = np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * width**2))
        images += (profile * np.array([1.0, 250.0])[:, None, None]).astype(np.float32)
    sigma = stamp_sky_sigma(images)
    # 3 % of the outer pixels belong to neighbours below the clipping limit; 1.7 % is the noise of one stamp.
    np.testing.assert_allclose(sigma.mean(axis=0), [0.02, 5.0], rtol=0.06)
    assert (sigma.std(axis=0) / sigma.mean(axis=0) < 0.03).all()
    assert len(outer_pixels(152)) <= 2048 and len(outer_pixels(4)) == 12


@pytest.mark.parametrize("layout", ["galaxiesml", "ssl-legacy"])
def test_a_set_of_other_bands_trains(tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    n, bands, size = (72, 5, 64) if layout == "galaxiesml" else (72, 3, 152)
    fields: dict[str, Any] = {
        FILE_LAYOUTS[layout].images: pixels(n, bands, size),
        FILE_LAYOUTS[layout].object_id: np.arange(n),
    }
    fields[str(FILE_LAYOUTS[layout].z_spec)] = np.linspace(0.02, 0.38, n).astype(np.float32)
    fields |= {name: np.zeros(n) for name in ("ebv", "ra", "dec")}
    path = write(tmp_path / "in.h5", **fields)
    words = ["ingest", "table", tmp_path / "data", "--format", layout, path, "--storage", "int16"]
    assert main([str(word) for word in [*words, "--processes", 1]]) == 0
    run = tmp_path / "run"
    assert main(["train", "standard", "--data", str(tmp_path / "data"), "--out", str(run), *TINY]) == 0
    assert "finished at step 2" in capsys.readouterr().out
    assert (
        main(["predict", str(run), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "pz.hdf5")]) == 0
    )
