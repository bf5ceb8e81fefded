"""Which frames are found, what each object is cut from, and bad files named."""

import bz2
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("astropy")

from astropy.io import fits  # noqa: E402

import hpcphotoz.sources.cutouts  # noqa: E402
import hpcphotoz.sources.surveys.sdss_plan  # noqa: E402
from hpcphotoz.__main__ import main  # noqa: E402
from hpcphotoz.data.format.manifest import MANIFEST, read_manifest  # noqa: E402
from hpcphotoz.errors import BadInput  # noqa: E402
from hpcphotoz.sources.catalogue import RUN_FACTOR, Catalogue  # noqa: E402
from hpcphotoz.sources.surveys.frame import Frame  # noqa: E402
from hpcphotoz.sources.surveys.ingest_sdss import ingest_frames  # noqa: E402
from hpcphotoz.sources.surveys.sdss import read_fpc  # noqa: E402
from hpcphotoz.sources.surveys.sdss_fields import find_frame_sets  # noqa: E402
from hpcphotoz.sources.surveys.sdss_plan import plan_cutouts, sky_range  # noqa: E402
from tests.helpers.datasets import load  # noqa: E402
from tests.helpers.sources.sdss_files import (  # noqa: E402
    DEC,
    RA,
    SCALE,
    SHAPE,
    header,
    write_dr8,
    write_set,
    write_table,
)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    write_set(tmp_path / "frames" / "run-000094", [(RA, DEC), (RA + 0.0031, DEC - 0.0022)])
    return tmp_path / "frames"


def test_both_kinds_of_frames_in_one_tree(tmp_path: Path, frames: Path) -> None:
    write_set(frames / "new", [(RA, DEC)], run=752, dr8="fits.bz2")
    table = write_table(tmp_path / "t.csv", [{"object_id": 5, "ra": RA, "dec": DEC}])
    manifest = ingest_frames(tmp_path / "out", frames, table, epochs="all")
    assert (load(tmp_path / "out", manifest).object_id % RUN_FACTOR).tolist() == [94, 752]
    write_set(frames / "again", [(RA, DEC)], dr8="fits")
    with pytest.raises(BadInput, match="the same field as .*frame-.*another calibration"):
        ingest_frames(tmp_path / "both", frames, table)


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


def test_an_object_is_cut_where_it_lies_farthest_from_the_edge(tmp_path: Path) -> None:
    # Two fields that overlap by half: y runs to the east, so the second one starts 110 pixels farther up.
    places = [(RA + k * SCALE, DEC) for k in (20, 40, 70, 90)]
    for field, offset in ((12, 0.0), (13, 110 * SCALE)):
        write_set(tmp_path / "f", places, field=field, offset=offset)
    sets, _ = find_frame_sets(tmp_path / "f")
    ra, dec = np.array(places).T
    table = Catalogue(np.arange(4), ra, dec, np.full(4, np.nan), np.zeros(4))
    for rows, units in (
        (4, [[[0, 1], [2, 3]]]),
        (3, [[[0, 1]], [[2, 3]]]),
        (1, [[[0]], [[1]], [[2]], [[3]]]),
    ):
        plan = plan_cutouts(sets, table, reference=2, stamp=32, shard_rows=rows, epochs="one")
        assert [[piece.objects.object_id.tolist() for piece in unit] for unit in plan.units] == units
    assert [piece.frame_set.field for unit in plan.units for piece in unit] == [12, 12, 13, 13]


def test_a_unit_reads_each_frame_once(tmp_path: Path, frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(frames, [(RA, DEC)], run=752)
    read: list[str] = []

    def counted(path: Path) -> Frame:
        read.append(path.name)
        return read_fpc(path)

    monkeypatch.setitem(hpcphotoz.sources.cutouts._READERS, "fpC", counted)
    rows: list[dict[str, object]] = [
        {"object_id": k, "ra": RA + k * SCALE, "dec": DEC + k * SCALE} for k in range(6)
    ]
    table = write_table(tmp_path / "t.csv", rows)
    manifest = ingest_frames(tmp_path / "out", frames, table, epochs="all", processes=1)
    assert manifest.rows == 12 and len(read) == len(set(read)) == 10


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
    shards = sorted((tmp_path / "out").glob("shard-*.h5"))
    before = [path.stat().st_mtime_ns for path in shards]
    assert len(shards) == 2
    bad.write_bytes(good)
    out = ingest("out")
    assert [path.stat().st_mtime_ns for path in shards] == before
    fresh = ingest("fresh")
    for path in fresh.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_one_stamp_a_run_and_one_only_of_overlapping_fields(tmp_path: Path, frames: Path) -> None:
    write_set(frames / "run-000094", [(RA, DEC)], field=13)
    write_set(frames / "run-000752", [(RA, DEC)], run=752)
    table = write_table(tmp_path / "t.csv", [{"object_id": 5, "ra": RA, "dec": DEC}])
    manifest = ingest_frames(tmp_path / "all", frames, table, stamp=32, epochs="all")
    assert load(tmp_path / "all", manifest).object_id.tolist() == [5 * RUN_FACTOR + 94, 5 * RUN_FACTOR + 752]
    manifest = ingest_frames(tmp_path / "one", frames, table, stamp=32)
    assert load(tmp_path / "one", manifest).object_id.tolist() == [5]


def test_several_stamps_of_an_object_are_said_once(
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


def test_places_in_words() -> None:
    dec = np.array([0.5, -0.25])
    assert sky_range(np.array([351.5, 10.25]), dec) == "ra 351.5000 to 10.2500, dec -0.2500 to 0.5000"
    assert sky_range(np.array([-8.5, 368.0]), dec).startswith("ra 351.5000 to 8.0000")
    assert sky_range(np.array([20.0, 10.0, 170.0, 189.0]), dec).startswith("ra 10.0000 to 189.0000")
    assert sky_range(dec[:1], dec[:1]) == "ra 0.5000 to 0.5000, dec 0.5000 to 0.5000"


def test_the_folder_to_make_is_looked_at_first(
    tmp_path: Path, frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(tmp_path / "t.csv", [{"object_id": 1, "ra": RA, "dec": DEC}])
    ingest_frames(tmp_path / "done", frames, table, processes=1)

    def read(*_: object) -> None:
        raise AssertionError("a header was read")

    monkeypatch.setattr(hpcphotoz.sources.surveys.sdss_plan, "read_header", read)
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


def test_nothing_in_the_frames_is_an_error(tmp_path: Path, frames: Path) -> None:
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
    assert names == [MANIFEST, *(f"shard-{k:05d}.h5" for k in range(6))]
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
