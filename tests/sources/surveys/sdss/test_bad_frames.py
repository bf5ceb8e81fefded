"""Damaged, incomplete and contradictory frames are named in one line."""

import bz2
import gzip
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("astropy")

from astropy.io import fits

from hpcphotoz.data.format.manifest import MANIFEST
from hpcphotoz.errors import BadInput
from tests.helpers.sources.sdss_files import (
    DEC,
    RA,
    SHAPE,
    header,
    ingest_frames,
    write_dr8,
    write_set,
    write_table,
)


def damage_truncate(folder: Path) -> str:
    path = next(folder.rglob("*-i4-*"))
    path.write_bytes(path.read_bytes()[:-20_000])
    return path.name


def damage_truncate_gzip(folder: Path) -> str:
    path = next(folder.rglob("*-i4-*"))
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), compresslevel=1)[:-5000])
    path.unlink()
    return packed.name


def damage_not_fits(folder: Path) -> str:
    path = next(folder.rglob("*-u4-*"))
    path.write_text("<html>404 not found</html>")
    return path.name


def damage_empty(folder: Path) -> str:
    path = next(folder.rglob("*-u4-*"))
    path.write_bytes(b"")
    return path.name


def damage_remove_band(folder: Path) -> str:
    next(folder.rglob("*-z4-*")).unlink()
    return "field 12 lacks its z frame"


def damage_remove_key(folder: Path) -> str:
    path = next(folder.rglob("*-g4-*"))
    counts = fits.getdata(path)
    head = header("g")
    del head["FLUX20"]
    fits.PrimaryHDU(counts, head).writeto(path, overwrite=True)
    return f"{path.name}: its header lacks FLUX20"


def damage_blank(folder: Path) -> str:
    path = next(folder.rglob("*-g4-*"))
    fits.PrimaryHDU(np.full(SHAPE, 1120, np.uint16), header("g")).writeto(path, overwrite=True)
    return f"{path.name}: no noise"


def damage_twice(folder: Path) -> str:
    path = next(folder.rglob("*-g4-*"))
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), compresslevel=1))
    return "the same frame as"


def damage_all(folder: Path) -> str:
    for path in folder.rglob("fpC-*"):
        path.unlink()
    return "no fpC-"


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_truncate_gzip,
        damage_not_fits,
        damage_empty,
        damage_remove_band,
        damage_remove_key,
        damage_blank,
        damage_twice,
        damage_all,
    ],
)
def test_bad_frames_are_named(tmp_path: Path, frames: Path, damage: Callable[[Path], str]) -> None:
    table = write_table(tmp_path / "t.csv", [{"object_id": 1, "ra": RA, "dec": DEC}])
    expected = damage(frames)
    with pytest.raises(BadInput) as caught:
        ingest_frames(tmp_path / "out", frames, table)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / MANIFEST).exists()


def damage_dr8_truncate(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-2000])
    return path.name


def damage_dr8_no_sky(path: Path) -> str:
    write_dr8(path, np.ones(SHAPE), header("g"), hdus=2)
    return f"{path.name}: HDU 1 is no calibration of {SHAPE[1]} columns, or HDU 2"


def damage_dr8_sky_table(path: Path) -> str:
    with fits.open(io.BytesIO(bz2.decompress(path.read_bytes()))) as hdus:
        hdus[2].columns.change_name("YINTERP", "Y")
        buffer = io.BytesIO()
        hdus.writeto(buffer)
    path.write_bytes(bz2.compress(buffer.getvalue()))
    return f"{path.name}: HDU 2 lacks YINTERP"


def damage_dr8_unit(path: Path) -> str:
    head = header("g")
    head["BUNIT"] = "DN"
    write_dr8(path, np.ones(SHAPE), head)
    return f"{path.name}: BUNIT = 'dn', not nanomaggies"


def damage_dr8_wcs(path: Path) -> str:
    head = header("g")
    del head["CD2_2"]
    write_dr8(path, np.ones(SHAPE), head)
    return f"{path.name}: its header lacks CD2_2"


@pytest.mark.parametrize(
    "damage",
    [damage_dr8_truncate, damage_dr8_no_sky, damage_dr8_sky_table, damage_dr8_unit, damage_dr8_wcs],
)
def test_bad_frames_of_dr8_are_named(tmp_path: Path, damage: Callable[[Path], str]) -> None:
    write_set(tmp_path / "f", [(RA, DEC)], dr8="fits.bz2")
    table = write_table(tmp_path / "t.csv", [{"object_id": 1, "ra": RA, "dec": DEC}])
    expected = damage(tmp_path / "f" / "frame-g-000094-4-0012.fits.bz2")
    with pytest.raises(BadInput) as caught:
        ingest_frames(tmp_path / "out", tmp_path / "f", table)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out" / MANIFEST).exists()
