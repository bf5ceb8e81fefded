"""Columns beside the images of survey stamps: widths of the PSF, variance and mask of every pixel."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

pytest.importorskip("astropy")

from hpcphotoz.__main__ import main
from hpcphotoz.data.format.extra import unpack_mask
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.cutouts import stored_variance
from hpcphotoz.sources.surveys.ingest import ingest_images
from tests.helpers.sources.sdss_files import DEC as SDSS_DEC
from tests.helpers.sources.sdss_files import FLUX20, ingest_frames, write_set, write_table, write_tsfield
from tests.helpers.sources.sdss_files import RA as SDSS_RA
from tests.helpers.sources.survey_files import (
    DEC,
    FWHM_PX,
    RA,
    SHAPE,
    Sky,
    write_des,
    write_euclid,
    write_legacy,
)

SIDE = 24


def table(folder: Path) -> Path:
    return write_table(folder / "t.csv", [{"object_id": 1, "ra": RA, "dec": DEC}])


def read(out: Path) -> dict[str, Any]:
    with h5py.File(next(out.glob("shard-00000.hdf5"))) as file:
        return {name: values[:] for name, values in file.items()}


def test_the_width_of_the_psf_is_kept_where_a_file_gives_it(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    write_legacy(tmp_path / "f", Sky(0.262, [(RA, DEC)], {"g": 80.0, "r": 90.0, "z": 100.0}))
    next((tmp_path / "f").glob("*psfsize-z*")).unlink()
    manifest = ingest_images(
        tmp_path / "o", "legacy", tmp_path / "f", table(tmp_path), stamp=SIDE, processes=1
    )
    assert [(one.name, one.dtype, one.unit) for one in manifest.header.extra] == [
        ("psf_fwhm", "float32", "arcsec")
    ]
    np.testing.assert_allclose(
        read(tmp_path / "o")["psf_fwhm"], [[FWHM_PX * 0.262, FWHM_PX * 0.262, np.nan]], rtol=1e-6
    )


def test_the_width_of_the_psf_of_an_sdss_field_is_that_of_its_table(tmp_path: Path) -> None:
    write_set(tmp_path / "f", [(SDSS_RA, SDSS_DEC)])
    objects = write_table(tmp_path / "t.csv", [{"object_id": 1, "ra": SDSS_RA, "dec": SDSS_DEC}])
    assert ingest_frames(tmp_path / "bare", tmp_path / "f", objects, processes=1).header.extra == ()
    write_tsfield(tmp_path / "f", 10 / np.array(list(FLUX20.values())))
    ingest_frames(tmp_path / "o", tmp_path / "f", objects, processes=1)
    np.testing.assert_allclose(read(tmp_path / "o")["psf_fwhm"], [[1.44, 1.34, 1.18, 1.15, 1.22]])


def test_variance_and_mask_of_every_pixel_are_those_of_the_frame(tmp_path: Path) -> None:
    # The middle of the frame lies between pixels, as that of a stamp does: its pixels are the frame's.
    y0, x0 = SHAPE[0] // 2 - 1 - (SIDE // 2 - 1), SHAPE[1] // 2 - 1 - (SIDE // 2 - 1)
    sky = Sky(0.263, [(RA, DEC)], {"g": 80.0, "r": 90.0}, shift=(-0.5, -0.5))
    sky.bad = [(y0 + 3, x0 + 5), (y0 + 20, x0 + 7)]
    (tmp_path / "f").mkdir()
    write_des(tmp_path / "f", sky)
    words = ["ingest", "images", str(tmp_path / "o"), "--survey", "des", "--images", str(tmp_path / "f")]
    words += ["--objects", str(table(tmp_path)), "--stamp", str(SIDE), "--bands", "gr", "--processes", "1"]
    assert main([*words, "--pixels", "variance", "mask"]) == 0
    found = read(tmp_path / "o")
    mask = unpack_mask(found["mask"], SIDE)
    assert np.argwhere(mask[0, 0]).tolist() == np.argwhere(mask[0, 1]).tolist() == [[3, 5], [20, 7]]
    assert found["variance"].dtype == np.float16 and found["variance"].shape == (1, 2, SIDE, SIDE)
    # float16 has steps of 6e-8 below 6e-5: 6 % of this variance.
    np.testing.assert_allclose(found["variance"], 1e-6, rtol=0.06)
    assert "psf_fwhm" not in found


def test_columns_of_the_table_lie_beside_those_of_the_frames(tmp_path: Path) -> None:
    write_set(tmp_path / "f", [(SDSS_RA, SDSS_DEC)])
    write_tsfield(tmp_path / "f", 10 / np.array(list(FLUX20.values())))
    row: dict[str, object] = {"object_id": 1, "ra": SDSS_RA, "dec": SDSS_DEC, "psf_fwhm": 3.5}
    objects = write_table(tmp_path / "t.csv", [row])
    with pytest.raises(BadInput, match="extra column 'psf_fwhm': the name 'psf_fwhm' is taken"):
        ingest_frames(tmp_path / "o", tmp_path / "f", objects, keep={"psf_fwhm": "psf_fwhm"}, processes=1)
    assert not (tmp_path / "o").exists()
    manifest = ingest_frames(
        tmp_path / "o", tmp_path / "f", objects, keep={"seeing": "psf_fwhm"}, processes=1
    )
    assert [one.name for one in manifest.header.extra] == ["seeing", "psf_fwhm"]
    found = read(tmp_path / "o")
    np.testing.assert_allclose(found["psf_fwhm"], [[1.44, 1.34, 1.18, 1.15, 1.22]])
    assert found["seeing"].tolist() == [3.5]


def test_no_variance_is_rounded_to_zero() -> None:
    found = stored_variance(np.array([1e-3, 1e-9, 0, -1, np.nan, 1e6], np.float32))
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, [1e-3, 2.0**-24, np.nan, np.nan, np.nan, np.inf], rtol=1e-3)


def test_a_map_that_no_frame_has_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    write_euclid(tmp_path / "f", Sky(0.1, [(RA, DEC)], {"VIS": 80.0}))
    for path in (tmp_path / "f").glob("*RMS*"):
        path.unlink()
    options: dict[str, Any] = {"bands": ["VIS"], "stamp": SIDE, "processes": 1}
    with pytest.raises(BadInput, match="has no variance of any frame: leave out `--pixels variance`"):
        ingest_images(
            tmp_path / "o", "euclid", tmp_path / "f", table(tmp_path), pixels=["variance"], **options
        )
    with pytest.raises(BadInput, match="pixels 'seeing': must be some of variance, mask"):
        ingest_images(tmp_path / "o", "euclid", tmp_path / "f", table(tmp_path), pixels=["seeing"], **options)
