"""Each layout of published image sets is read as its authors write it."""

import re
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.arrays.array_map import load_map, shipped_maps
from hpcphotoz.sources.identifiers import identifier
from tests.helpers.commands import TINY
from tests.helpers.datasets import load
from tests.helpers.sources.array_files import GZIP, hayat, ingest, ingest_and_load, labels, mmu, pixels, write


def test_pasquet_npz_is_mapped_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cube, rows = pixels(20, 5, 64).transpose(0, 2, 3, 1), labels(20)
    np.savez(tmp_path / "sdss.npz", cube=cube, labels=rows)
    monkeypatch.setattr(np, "load", None)
    manifest, stamps, _ = ingest_and_load(tmp_path / "out", [tmp_path / "sdss.npz"], "pasquet", shard_rows=8)
    assert [shard.rows for shard in manifest.shards] == [8, 8, 4]
    assert manifest.header.bands == ("u", "g", "r", "i", "z") and manifest.header.pixel_scale == 0.396
    np.testing.assert_array_equal(stamps.images, cube.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(stamps.z_spec, rows["z"])
    np.testing.assert_array_equal(stamps.ebv, rows["EBV"])
    np.testing.assert_array_equal(stamps.object_id, rows["specObjID"])
    np.testing.assert_array_equal(stamps.ra, rows["ra"])
    np.testing.assert_allclose(stamps.sky_sigma, np.tile(np.arange(1, 6), (20, 1)), rtol=0.12)


def test_compressed_pasquet_is_refused_and_its_unpacked_folder_read(tmp_path: Path) -> None:
    cube, rows = pixels(4, 5, 16).transpose(0, 2, 3, 1), labels(4)
    np.savez_compressed(tmp_path / "sdss.npz", cube=cube, labels=rows)
    with pytest.raises(BadInput, match=r"cube\.npy is compressed .* `unzip sdss\.npz -d FOLDER`"):
        ingest(tmp_path / "out", [tmp_path / "sdss.npz"], "pasquet")
    with zipfile.ZipFile(tmp_path / "sdss.npz") as archive:
        archive.extractall(tmp_path / "sdss")
    _, stamps, _ = ingest_and_load(tmp_path / "out", [tmp_path / "sdss"], "pasquet")
    np.testing.assert_array_equal(stamps.images, cube.transpose(0, 3, 1, 2))


def test_pickled_or_cut_npz_is_refused(tmp_path: Path) -> None:
    cube = pixels(4, 5, 16).transpose(0, 2, 3, 1)
    np.savez(tmp_path / "p.npz", cube=cube, labels=np.array([{"z": 1}] * 4, object))
    with pytest.raises(BadInput, match="pickled objects, which are never loaded"):
        ingest(tmp_path / "out", [tmp_path / "p.npz"], "pasquet")
    np.save(tmp_path / "cube.npy", cube)
    np.save(tmp_path / "labels.npy", labels(4))
    with (tmp_path / "cube.npy").open("r+b") as file:
        file.truncate(9000)
    with pytest.raises(BadInput, match="bytes of an array of float32.* there: copy it again"):
        ingest(tmp_path / "out", [tmp_path], "pasquet")
    (tmp_path / "x.npz").write_bytes(b"PK nothing")
    with pytest.raises(BadInput, match=r"x\.npz: not a readable npz file"):
        ingest(tmp_path / "out", [tmp_path / "x.npz"], "pasquet")


@pytest.mark.parametrize("crop", [None, 64, 33])
def test_hayat(tmp_path: Path, crop: int | None) -> None:
    path = hayat(tmp_path / "sdss.h5")
    manifest, stamps, _ = ingest_and_load(tmp_path / "out", [path], "hayat", crop=crop, shard_rows=3)
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
    manifest, stamps, _ = ingest_and_load(tmp_path / "out", [path], "galaxiesml")
    assert manifest.header.bands == ("g", "r", "i", "z", "y") and manifest.header.pixel_scale == 0.168
    np.testing.assert_allclose(stamps.images, images * 10**-1.8, rtol=1e-6)
    assert manifest.provenance["zero_point_ab"] == 27 and manifest.provenance["ebv"] == "not in the files: 0"
    assert not stamps.ebv.any() and np.isnan(stamps.ra).all()
    assert np.isnan(stamps.z_spec[2]) and manifest.shards[0].unlabelled == 1


def test_help_says_what_each_format_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "table", "--help"]) == 0
    said = capsys.readouterr().out
    for name in shipped_maps():
        one = load_map(name)
        (part,) = re.findall(rf"^{name}: .*\n(?:  .*\n)+", said, re.MULTILINE)
        assert all(re.search(rf"\b{column}\b", part) for column in one.columns), name
        assert not one.z_spec or f"redshift  {one.z_spec}" in part
        assert not one.pixel_scale or f'{" ".join(one.bands)}; pixel scale {one.pixel_scale}"' in part
        assert ("(N, y, x, band)" in part) == (one.order == ("y", "x", "band"))
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
    manifest, stamps, _ = ingest_and_load(tmp_path / "out", sources, "ssl-legacy", shard_rows=4, limit=7)
    assert manifest.header.bands == ("g", "r", "z") and manifest.header.pixel_scale == 0.262
    assert [shard.rows for shard in manifest.shards] == [4, 3]
    np.testing.assert_array_equal(stamps.object_id, [0, 1, 2, 3, 4, 100, 101])
    np.testing.assert_array_equal(stamps.images[5:], pixels(3, 3, 152, 1)[:2])


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
    assert main([str(word) for word in [*words, "--crop", 16, "--processes", 1, "--storage", "float32"]]) == 0
    assert "4 stamps in 1 shard; left out 4" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out")
    assert manifest.header.bands == ("des-g", "des-r", "des-i", "des-z")
    stamps = load(tmp_path / "out", manifest)
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
    _, stamps, _ = ingest_and_load(
        tmp_path / "all", [tmp_path / "in"], "mmu", redshifts=z, keep_unlabelled=True
    )
    assert np.isnan(stamps.z_spec).sum() == 1 and stamps.object_id[0] == 17


@pytest.mark.parametrize("absent", [("image_ivar",), ("image_mask",), ("image_ivar", "image_mask")], ids=str)
def test_mmu_masks_and_inverse_variance_may_be_absent(tmp_path: Path, absent: tuple[str, ...]) -> None:
    mask, ivar = np.ones((3, 24, 24), np.bool_), np.ones((3, 4, 24, 24), np.float32)
    mask[1, 8:16, 8:16], ivar[1, :, 8:16, 8:16] = False, 0
    path = mmu(tmp_path / "a.hdf5", [1, 2, 3], image_mask=mask, image_ivar=ivar)
    with h5py.File(path, "r+") as file:
        for name in absent:
            del file[name]
    _, stamps, skipped = ingest_and_load(tmp_path / "out", [path], "mmu", keep_unlabelled=True)
    assert stamps.object_id.tolist() == ([1, 3] if len(absent) == 1 else [1, 2, 3])
    assert [entry["row"] for entry in skipped] == ([1] if len(absent) == 1 else [])


def test_mmu_pixels_of_hsc_are_counts_and_others_need_a_zero_point(tmp_path: Path) -> None:
    hsc = np.array([[b"hsc-g", b"hsc-r"]] * 2)
    path = mmu(
        tmp_path / "a.hdf5", [1, 2], "gr", image_band=hsc, image_mask=np.ones((2, 2, 24, 24), np.bool_)
    )
    manifest, _, _ = ingest_and_load(tmp_path / "out", [path], "mmu", keep_unlabelled=True)
    assert manifest.provenance["zero_point_ab"] == 27
    path = mmu(tmp_path / "b.hdf5", [1, 2], "gr", image_band=np.array([[b"kids-g", b"kids-r"]] * 2))
    with pytest.raises(BadInput, match="bands kids-g, kids-r: give the pixels' --zero-point"):
        ingest(tmp_path / "b", [path], "mmu", keep_unlabelled=True)
    manifest, _, _ = ingest_and_load(tmp_path / "b", [path], "mmu", keep_unlabelled=True, zero_point=25.0)
    assert manifest.provenance["nanomaggies_per_unit"] == pytest.approx(0.1)


@pytest.mark.parametrize("layout", ["galaxiesml", "ssl-legacy"])
def test_a_set_of_other_bands_trains(tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    n, bands, size = (72, 5, 64) if layout == "galaxiesml" else (72, 3, 152)
    one = load_map(layout)
    fields: dict[str, Any] = {one.images[0]: pixels(n, bands, size), one.object_id: np.arange(n)}
    fields[one.z_spec] = np.linspace(0.02, 0.38, n).astype(np.float32)
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
