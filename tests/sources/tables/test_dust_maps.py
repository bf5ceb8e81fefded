"""E(B-V) by position, from small maps in the files that dustmaps reads."""

import importlib
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("dustmaps.sfd")
    pytest.importorskip("dustmaps.csfd")

from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table

from hpcphotoz.__main__ import main
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.tables.dust_maps import galactic_ebv
from tests.helpers.datasets import load
from tests.helpers.sources.array_files import hayat
from tests.helpers.sources.sdss_files import DEC, RA, ingest_frames, write_set, write_table

PIXELS, CSFD = 400, 0.05


def latitude(ra: float, dec: float) -> float:
    return float(SkyCoord(ra, dec, unit="deg").galactic.b.rad)


@pytest.fixture
def maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of maps: in SFD, E(B-V) = (1 - |sin b|) / 4 in the north and twice that in the south."""
    folder = tmp_path / "maps"
    (folder / "sfd").mkdir(parents=True)
    (folder / "csfd").mkdir()
    scale = np.degrees(np.sqrt(2)) * 2.1 / PIXELS  # deg; a hemisphere in zenithal equal-area projection
    y, x = np.mgrid[:PIXELS, :PIXELS] - (PIXELS - 1) / 2
    below = np.radians(np.hypot(x, y) * scale) ** 2 / 2  # 1 - |sin b|
    for pole, sign in (("ngp", 1), ("sgp", -1)):
        header = {"CTYPE1": "GLON-ZEA", "CTYPE2": "GLAT-ZEA", "CRVAL1": 0.0, "CRVAL2": 90.0 * sign}
        header |= {"CRPIX1": (PIXELS + 1) / 2, "CRPIX2": (PIXELS + 1) / 2, "LONPOLE": 180.0}
        header |= {"CDELT1": -scale, "CDELT2": scale}
        values = (below / (4 if sign > 0 else 2)).astype(np.float32)
        fits.PrimaryHDU(values, fits.Header(header)).writeto(folder / "sfd" / f"SFD_dust_4096_{pole}.fits")
    for name, values in (("csfd_ebv", np.full(768, CSFD, np.float32)), ("mask", np.zeros(768, np.int16))):
        table = fits.BinTableHDU(Table({"T": values}), name="xtension")
        fits.HDUList([fits.PrimaryHDU(), table]).writeto(folder / "csfd" / f"{name}.fits")
    for name in ("sfd", "csfd"):
        monkeypatch.setattr(importlib.import_module(f"dustmaps.{name}"), "data_dir", lambda: str(folder))
    return folder


def test_the_value_is_that_of_the_map_at_the_position(maps: Path) -> None:
    ra, dec = np.array([192.8, 150.0, 200.0, 12.8, 351.65, np.nan]), np.array([27.0, 2.0, -5.0, -27, 0.1, 0])
    b = np.array([latitude(*one) for one in zip(ra[:5], dec[:5], strict=True)])
    expected = (1 - np.abs(np.sin(b))) / np.where(b > 0, 4, 2)
    found = galactic_ebv("sfd", ra, dec)
    np.testing.assert_allclose(found[:5], expected, atol=2e-4)
    assert np.isnan(found[5]) and found.dtype == np.float64
    assert np.ptp(expected) > 0.08
    np.testing.assert_allclose(galactic_ebv("csfd", ra[:2], dec[:2]), CSFD)


def test_objects_of_a_table(maps: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "f", [(RA, DEC)])
    rows = [{"object_id": 1, "ra": RA, "dec": DEC, "ebv": ""}]  # unknown in the table: left out without a map
    objects = write_table(tmp_path / "t.csv", rows)
    manifest = ingest_frames(tmp_path / "o", tmp_path / "f", objects, ebv_map="sfd", stamp=16, processes=1)
    expected = (1 - abs(np.sin(latitude(RA, DEC)))) / 2
    np.testing.assert_allclose(load(tmp_path / "o").ebv, [expected], atol=2e-4)
    assert manifest.provenance["ebv"].startswith("the map of Schlegel, Finkbeiner & Davis 1998")


def test_rows_of_arrays(maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ra, dec = np.linspace(100, 250, 7), np.linspace(-20, 60, 7)
    ra[2] = np.nan
    path = hayat(tmp_path / "a.h5", 7, 16, ra=ra, dec=dec)
    words = ["ingest", "table", str(tmp_path / "o"), "--format", "hayat", str(path), "--processes", "1"]
    assert main([*words, "--ebv-map", "sfd", "--shard-rows", "4"]) == 0
    assert "6 stamps in 2 shards; left out 1, listed in" in capsys.readouterr().out
    found = load(tmp_path / "o")
    np.testing.assert_allclose(found.ebv, galactic_ebv("sfd", found.ra, found.dec), rtol=1e-6)
    assert len(np.unique(found.ebv)) == 6


def test_what_is_not_installed_is_said_in_one_line(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at = np.array([1.0]), np.array([2.0])
    with pytest.raises(BadInput, match="E.B-V. map 'planck': must be one of sfd, csfd"):
        galactic_ebv("planck", *at)
    (maps / "sfd" / "SFD_dust_4096_ngp.fits").unlink()
    with pytest.raises(BadInput, match=r"map sfd cannot be read .*dustmaps\.sfd\.fetch\(\)") as caught:
        galactic_ebv("sfd", *at)
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "dustmaps.sfd", None)
    with pytest.raises(BadInput, match=r"needs `pip install 'hpcphotoz\[dust\]'`"):
        galactic_ebv("sfd", *at)
    said = capsys.readouterr()
    assert said.out == said.err == ""
