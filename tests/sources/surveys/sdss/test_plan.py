"""Which frame each object is cut from, and how cutouts are grouped into units."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("astropy")


import hpcphotoz.sources.surveys.sdss.survey
from hpcphotoz.sources.catalogue import RUN_FACTOR, Catalogue
from hpcphotoz.sources.engine.append import Target
from hpcphotoz.sources.surveys.frame import Frame
from hpcphotoz.sources.surveys.plan import plan_cutouts, sky_range
from hpcphotoz.sources.surveys.sdss.fields import find_frame_sets
from hpcphotoz.sources.surveys.sdss.frames import read_fpc
from hpcphotoz.sources.surveys.survey import BandFiles, load_survey
from tests.helpers.datasets import load
from tests.helpers.sources.sdss_files import (
    DEC,
    RA,
    SCALE,
    ingest_frames,
    write_set,
    write_table,
)


def test_an_object_is_cut_where_it_lies_farthest_from_the_edge(tmp_path: Path) -> None:
    # Two fields that overlap by half: y runs to the east, so the second one starts 110 pixels farther up.
    places = [(RA + k * SCALE, DEC) for k in (20, 40, 70, 90)]
    for field, offset in ((12, 0.0), (13, 110 * SCALE)):
        write_set(tmp_path / "f", places, field=field, offset=offset)
    sets = find_frame_sets(tmp_path / "f")
    ra, dec = np.array(places).T
    table = Catalogue(np.arange(4), ra, dec, np.full(4, np.nan), np.zeros(4))
    for rows, units in (
        (4, [[[0, 1], [2, 3]]]),
        (3, [[[0, 1]], [[2, 3]]]),
        (1, [[[0]], [[1]], [[2]], [[3]]]),
    ):
        plan = plan_cutouts(
            load_survey("sdss"),
            sets,
            table,
            reference=2,
            stamp=32,
            shard_rows=rows,
            epochs="one",
            target=Target(),
        )
        assert [[piece.objects.object_id.tolist() for piece in unit] for unit in plan.units] == units
    assert [piece.frame_set.name[-2:] for unit in plan.units for piece in unit] == ["12", "12", "13", "13"]


def test_a_unit_reads_each_frame_once(tmp_path: Path, frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(frames, [(RA, DEC)], run=752)
    read: list[str] = []

    def counted(files: BandFiles) -> Frame:
        read.append(files.image.name)
        return read_fpc(files)

    monkeypatch.setattr(hpcphotoz.sources.surveys.sdss.survey, "read_fpc", counted)
    rows: list[dict[str, object]] = [
        {"object_id": k, "ra": RA + k * SCALE, "dec": DEC + k * SCALE} for k in range(6)
    ]
    table = write_table(tmp_path / "t.csv", rows)
    manifest = ingest_frames(tmp_path / "out", frames, table, epochs="all", processes=1)
    assert manifest.rows == 12 and len(read) == len(set(read)) == 10


def test_one_stamp_per_run_also_where_fields_overlap(tmp_path: Path, frames: Path) -> None:
    write_set(frames / "run-000094", [(RA, DEC)], field=13)
    write_set(frames / "run-000752", [(RA, DEC)], run=752)
    table = write_table(tmp_path / "t.csv", [{"object_id": 5, "ra": RA, "dec": DEC}])
    manifest = ingest_frames(tmp_path / "all", frames, table, stamp=32, epochs="all")
    assert load(tmp_path / "all", manifest).object_id.tolist() == [5 * RUN_FACTOR + 94, 5 * RUN_FACTOR + 752]
    manifest = ingest_frames(tmp_path / "one", frames, table, stamp=32)
    assert load(tmp_path / "one", manifest).object_id.tolist() == [5]


def test_several_stamps_of_an_object_are_reported_once(
    tmp_path: Path, frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(frames / "run-000752", [(RA, DEC)], run=752)
    write_set(frames / "run-000800", [(RA, DEC)], run=800, offset=20 * SCALE)
    places = [(RA, DEC), (RA + 3 * SCALE, DEC), (RA + 80 * SCALE, DEC)]  # the last one in run 800 only
    rows: list[dict[str, object]] = [
        {"object_id": k, "ra": ra, "dec": dec} for k, (ra, dec) in enumerate(places)
    ]
    table = write_table(tmp_path / "t.csv", rows)
    manifest = ingest_frames(tmp_path / "all", frames, table, epochs="all", processes=1)
    said = [line for line in capsys.readouterr().err.splitlines() if "several runs" in line]
    assert manifest.rows == 7 and len(said) == 1
    assert said[0].startswith(
        "2 objects lie in several runs, each stamp with an id of its own: a split by object id"
    )
    assert manifest.provenance["caution"] == said[0]
    manifest = ingest_frames(tmp_path / "one", frames, table, processes=1)
    assert "several runs" not in capsys.readouterr().err and "caution" not in manifest.provenance


def test_sky_ranges_in_messages() -> None:
    dec = np.array([0.5, -0.25])
    assert sky_range(np.array([351.5, 10.25]), dec) == "ra 351.5000 to 10.2500, dec -0.2500 to 0.5000"
    assert sky_range(np.array([-8.5, 368.0]), dec).startswith("ra 351.5000 to 8.0000")
    assert sky_range(np.array([20.0, 10.0, 170.0, 189.0]), dec).startswith("ra 10.0000 to 189.0000")
    assert sky_range(dec[:1], dec[:1]) == "ra 0.5000 to 0.5000, dec 0.5000 to 0.5000"
