"""`inspect` lists the extra columns with units and ranges."""

import json
from pathlib import Path

import numpy as np
import pytest

from hpcphotoz.__main__ import main
from tests.helpers.data.extra import EXTRA, extra_stamps, write_extra_dataset

N = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_extra_dataset(tmp_path_factory.mktemp("ranges") / "d", N)


def test_ranges(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder), "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)["extra"]}
    values = extra_stamps(N).extra
    assert list(listed) == [column.name for column in EXTRA]
    assert listed["petro_r"] == {
        "name": "petro_r",
        "dtype": "float32",
        "unit": "mag",
        "shape": [],
        "min": float(np.nanmin(values["petro_r"])),
        "max": float(np.nanmax(values["petro_r"])),
        "unknown": 1,
    }
    for name in ("flags", "zwarning", "psf_fwhm"):
        assert listed[name]["min"] == values[name].min() and listed[name]["max"] == values[name].max()
        assert listed[name]["unknown"] == 0
    assert listed["clean"]["true"] == values["clean"].sum()
    texts, counts = np.unique(values["spectype"], return_counts=True)
    assert listed["spectype"]["values"] == {t.decode(): int(n) for t, n in zip(texts, counts, strict=True)}
    assert "min" not in listed["variance"] and listed["mask"]["shape"] == [3, 11]


def test_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("extra: petro_r       float32, mag, 14.") for line in lines)
    assert any(line.startswith("extra: psf_fwhm      float32 a band, arcsec, 1") for line in lines)
    assert "extra: variance      float16 a pixel, nmgy2" in lines
    assert "extra: mask          uint8, one bit a pixel" in lines


def test_a_column_of_unknown_values_has_no_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_extra_dataset(tmp_path / "d", 1)
    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["extra"][0]["unknown"] == 0
