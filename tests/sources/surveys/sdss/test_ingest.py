"""Ingestion of SDSS frames: bands, skipped objects, replaced frames, processes and the command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("astropy")


import hpcphotoz.sources.cutouts
import hpcphotoz.sources.surveys.sdss.frames
from hpcphotoz.__main__ import main
from hpcphotoz.data.format.manifest import MANIFEST, read_manifest
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.data.select.predicate import Predicate
from hpcphotoz.errors import BadInput
from tests.helpers.datasets import load
from tests.helpers.sources.sdss_files import (
    DEC,
    RA,
    SCALE,
    ingest_frames,
    write_set,
    write_table,
)


def test_bands_are_a_choice(tmp_path: Path, frames: Path) -> None:
    table = write_table(tmp_path / "t.csv", [{"object_id": 5, "ra": RA, "dec": DEC}])
    whole = load(tmp_path / "all", ingest_frames(tmp_path / "all", frames, table))
    for path in frames.rglob("*-[uz]4-*"):
        path.unlink()
    manifest = ingest_frames(tmp_path / "irg", frames, table, bands="irg")
    some = load(tmp_path / "irg", manifest)
    assert manifest.header.bands == ("i", "r", "g")
    np.testing.assert_array_equal(some.images, whole.images[:, [3, 2, 1]])
    np.testing.assert_array_equal(some.sky_sigma, whole.sky_sigma[:, [3, 2, 1]])
    manifest = ingest_frames(tmp_path / "ig", frames, table, bands="ig")
    assert "onto the i frame" in manifest.provenance["resampling"]


def test_columns_of_the_table_are_kept_and_select_objects(
    tmp_path: Path, frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [
        {"object_id": k, "ra": RA, "dec": DEC, "petro_r": 15 + k, "class": name, "primtarget": 64 * k}
        for k, name in ((1, "GALAXY"), (2, "QSO"), (3, "GALAXY"))
    ]
    table = write_table(tmp_path / "t.csv", rows)
    words = [
        "ingest",
        "sdss-frames",
        tmp_path / "out",
        "--frames",
        frames,
        "--objects",
        table,
        "--processes",
        1,
    ]
    kept = ["petro_r", "spectype=class", "primtarget"]
    assert main([str(word) for word in (*words, "--keep", *kept)]) == 0
    manifest = read_manifest(tmp_path / "out")
    assert [(one.name, one.dtype) for one in manifest.header.extra] == [
        ("petro_r", "int64"),
        ("spectype", "S6"),
        ("primtarget", "int64"),
    ]
    found = load(tmp_path / "out")
    at = np.argsort(found.object_id)
    assert found.extra["petro_r"][at].tolist() == [16, 17, 18]
    assert found.extra["spectype"][at].tolist() == [b"GALAXY", b"QSO", b"GALAXY"]
    assert manifest.provenance["kept"]["spectype"] == "column 'class'"
    where = Predicate.parse(
        "petro_r <= 17 and spectype == 'GALAXY'", manifest.header.bands, manifest.header.extra
    )
    assert [s.object_id.tolist() for s in read_rows(tmp_path / "out", manifest, row_filter=where)] == [[1]]
    capsys.readouterr()
    for word, says in (
        ("class", "give another"),
        ("=a", "must be a column's name"),
        ("nothing", "no column nothing"),
    ):
        again = [tmp_path / "other" if one == tmp_path / "out" else one for one in words]
        assert main([str(one) for one in (*again, "--keep", word)]) == 2
        assert says in capsys.readouterr().err


def test_skipped_objects_are_listed_with_the_reason(
    tmp_path: Path, frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [(RA, DEC), (RA, DEC + 100 * SCALE), (RA - 180, -DEC)]  # the last is where a tangent plane folds
    rows: list[dict[str, object]] = [
        {"object_id": k, "ra": ra, "dec": dec} for k, (ra, dec) in enumerate(places, 1)
    ]
    table = write_table(tmp_path / "t.csv", rows)
    manifest = ingest_frames(tmp_path / "out", frames, table)
    reasons = {one["object_id"]: one["reason"] for one in manifest.provenance["skipped"]}
    assert manifest.rows == 1 and set(reasons) == {2, 3}
    assert "edge of the r frame of run 94 camcol 4 field 12" in reasons[2]
    assert reasons[3] == "outside every frame"
    assert "skipped 2: 1 outside every frame, 1 too near an edge" in capsys.readouterr().err


def test_an_object_of_unknown_extinction_is_left_out_and_listed(
    tmp_path: Path, frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [
        {"object_id": k, "ra": RA, "dec": DEC, "ebv": ebv}
        for k, ebv in enumerate(["0.03", "", "nan", "-9999", "0"])
    ]
    manifest = ingest_frames(tmp_path / "out", frames, write_table(tmp_path / "t.csv", rows), processes=1)
    stamps = load(tmp_path / "out", manifest)
    assert stamps.object_id.tolist() == [0, 4]
    np.testing.assert_allclose(stamps.ebv, [0.03, 0.0])
    assert [one["object_id"] for one in manifest.provenance["skipped"]] == [1, 2, 3]
    assert manifest.provenance["ebv"] == "column 'ebv'"
    assert "skipped 3: 3 of unknown E(B-V) (listed" in capsys.readouterr().err
    with pytest.raises(BadInput, match="t.csv: E\\(B-V\\) is known of none of its 2 objects"):
        ingest_frames(tmp_path / "none", frames, write_table(tmp_path / "t.csv", rows[1:3]), processes=1)
    bare = [{key: one[key] for key in ("object_id", "ra", "dec")} for one in rows]
    manifest = ingest_frames(tmp_path / "bare", frames, write_table(tmp_path / "t.csv", bare), processes=1)
    assert manifest.rows == 5 and manifest.provenance["ebv"] == "not in the table: 0"
    assert capsys.readouterr().err.count("t.csv: has no column of E(B-V): for its objects 0 is stored") == 1


def test_a_replaced_frame_makes_only_its_own_shards_again(tmp_path: Path, frames: Path) -> None:
    for run in (752, 800):
        write_set(frames / f"run-{run:06d}", [(RA, DEC)], run=run)
    table = write_table(tmp_path / "t.csv", [{"object_id": 1, "ra": RA, "dec": DEC}])

    def ingest(name: str) -> Path:
        ingest_frames(tmp_path / name, frames, table, stamp=32, shard_rows=1, epochs="all", processes=1)
        return tmp_path / name

    bad = next(frames.rglob("fpC-000800-g4-*"))
    good = bad.read_bytes()
    bad.write_bytes(good[: len(good) // 2])
    with pytest.raises(BadInput, match="fpC-000800-g4-0012.fit: not a readable"):
        ingest("out")
    shards = sorted((tmp_path / "out").glob("shard-*.hdf5"))
    before = [path.stat().st_mtime_ns for path in shards]
    assert len(shards) == 2
    bad.write_bytes(good)
    out = ingest("out")
    assert [path.stat().st_mtime_ns for path in shards] == before
    fresh = ingest("fresh")
    for path in fresh.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_unusable_output_folder_is_refused_first(
    tmp_path: Path, frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(tmp_path / "t.csv", [{"object_id": 1, "ra": RA, "dec": DEC}])
    ingest_frames(tmp_path / "done", frames, table, processes=1)

    def read(*_: object) -> None:
        raise AssertionError("a header was read")

    monkeypatch.setattr(hpcphotoz.sources.surveys.sdss.frames, "read_header", read)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for out, message in (
        (tmp_path / "done", "already holds a finished dataset"),
        (tmp_path / "mine", r"holds other files \(thesis.tex\)"),
        (table, "t.csv is a file"),
        (table / "below", "t.csv is a file"),
    ):
        with pytest.raises(BadInput, match=message):
            ingest_frames(out, frames, table)


def test_a_table_without_objects_in_the_frames_is_an_error(tmp_path: Path, frames: Path) -> None:
    table = write_table(tmp_path / "t.csv", [{"object_id": 1, "ra": 10.0, "dec": 10.0}])
    places = "at ra 10.0000 to 10.0000, dec 10.0000 to 10.0000, the frames at ra 351.6[0-9]* to 351.6"
    with pytest.raises(BadInput, match=f"none of its 1 objects .*: they are {places}"):
        ingest_frames(tmp_path / "out", frames, table)
    with pytest.raises(BadInput, match="no such folder"):
        ingest_frames(tmp_path / "out", tmp_path / "elsewhere", table)
    with pytest.raises(BadInput, match="objects.csv: not a readable"):
        ingest_frames(tmp_path / "out", frames, tmp_path / "objects.csv")
    wrong: list[dict[str, Any]] = [{"stamp": 2}, {"bands": "rr"}, {"bands": "ux"}, {"epochs": "two"}]
    for options in [*wrong, {"masked_fraction": 1.5}, {"shard_rows": 0}]:
        with pytest.raises(BadInput, match=next(iter(options)).replace("_", " ")):
            ingest_frames(tmp_path / "out", frames, table, **options)


def test_any_number_of_processes_gives_the_same_bytes(tmp_path: Path, frames: Path) -> None:
    write_set(frames, [(RA, DEC)], run=752)
    rows: list[dict[str, object]] = [
        {"object_id": k, "ra": RA + 3 * k * SCALE, "dec": DEC + 2 * k * SCALE} for k in range(5)
    ]
    table = write_table(tmp_path / "t.csv", rows)
    for processes in (1, 2):
        out = tmp_path / str(processes)
        ingest_frames(out, frames, table, stamp=32, shard_rows=2, epochs="all", processes=processes)
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert names == [MANIFEST, *(f"shard-{k:05d}.hdf5" for k in range(6))]
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_the_command_line(tmp_path: Path, frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sdss = 1237661971724599442
    rows: list[dict[str, object]] = [
        {"objID": sdss, "RA": RA, "DE": DEC, "zsp": 0.2},
        {"objID": 5, "RA": RA, "DE": DEC, "zsp": -9999},
    ]
    table = write_table(tmp_path / "t.csv", rows)
    out = tmp_path / "out"
    words = ["ingest", "sdss-frames", str(out), "--frames", str(frames), "--objects", str(table)]
    assert main([*words, "--columns", "ra=RA", "dec"]) == 2
    assert capsys.readouterr().err.endswith("--columns dec: must be of the form ra=RAJ2000\n")
    assert main([*words, "--columns", "ra=RA", "ra=DE"]) == 2
    assert capsys.readouterr().err.endswith("--columns ra=DE: ra is RA already: name one column for it\n")
    names = ["--columns", "ra=RA", "dec=DE", "object_id=objID", "z_spec=zsp"]
    options = ["--bands", "gri", "--stamp", "32", "--epochs", "one", "--masked-fraction", "0.1"]
    assert main([*words, *names, *options, "--shard-rows", "8", "--processes", "1"]) == 0
    assert capsys.readouterr().out == f"{out}: 2 stamps in 1 shard, 1 of unknown redshift\n"
    manifest = read_manifest(out)
    stamps = load(out, manifest)
    assert stamps.images.shape == (2, 3, 32, 32) and stamps.object_id.tolist() == [sdss, 5]
    np.testing.assert_allclose(stamps.z_spec, [0.2, np.nan])
    assert manifest.provenance["masks"]["masked_fraction"] == 0.1
    assert main([*words, *names]) == 2
    assert "already holds a finished dataset" in capsys.readouterr().err
