"""Which frames are found in a folder, and which are left out."""

from pathlib import Path

import pytest

pytest.importorskip("astropy")

from hpcphotoz.__main__ import main
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.catalogue import RUN_FACTOR
from tests.helpers.datasets import load
from tests.helpers.sources.sdss_files import (
    DEC,
    RA,
    ingest_frames,
    write_set,
    write_table,
)


def test_both_kinds_of_frames_in_one_tree(tmp_path: Path, frames: Path) -> None:
    write_set(frames / "new", [(RA, DEC)], run=752, dr8="fits.bz2")
    table = write_table(tmp_path / "t.csv", [{"object_id": 5, "ra": RA, "dec": DEC}])
    manifest = ingest_frames(tmp_path / "out", frames, table, epochs="all")
    assert (load(tmp_path / "out", manifest).object_id % RUN_FACTOR).tolist() == [94, 752]
    write_set(frames / "again", [(RA, DEC)], dr8="fits")
    with pytest.raises(BadInput, match="the same field as .*frame-.*another calibration"):
        ingest_frames(tmp_path / "both", frames, table)


def test_a_frame_set_without_a_band_is_left_out_and_listed(
    tmp_path: Path, frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(frames / "run-000752", [(RA, DEC)], run=752)
    for band in "uz":
        next(frames.rglob(f"fpC-000752-{band}4-*")).unlink()
    table = write_table(tmp_path / "t.csv", [{"object_id": 1, "ra": RA, "dec": DEC}])
    words = ["ingest", "sdss-frames", tmp_path / "out", "--frames", frames, "--objects", table]
    assert main([str(word) for word in [*words, "--epochs", "all", "--processes", 1]]) == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest.rows == 1 and manifest.provenance["frame_sets"] == ["fpC 94-4-12"]
    reason = "lacks its u, z frame"
    assert manifest.provenance["skipped"] == [
        {"frame_set": "run 752 camcol 4 field 12", "count": 0, "reason": reason}
    ]
    error = capsys.readouterr().err
    assert error.count("left out 1 of 2 frame sets") == 1
    assert f"the first: run 752 camcol 4 field 12 {reason}\n" in error
    assert "skipped" not in error
