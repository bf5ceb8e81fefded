"""Damaged input files: listed and left out with `--damaged skip`, and read again once they are replaced."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.read.rows import verify
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.build import UnitStamps
from hpcphotoz.sources.engine.damage import damage_entry, merge_damage
from hpcphotoz.sources.optional_imports import MissingPackage
from tests.helpers.builds import content, run
from tests.helpers.datasets import load, make_stamps
from tests.helpers.sources.array_files import hayat


@dataclass(frozen=True)
class FromFile:
    """Makes as many galaxies as the unit's file says."""

    damaged: str = field(default="fail", compare=False)

    def __call__(self, unit: Any) -> UnitStamps:
        text = unit.read_text()
        if text == "bug":
            raise ZeroDivisionError("a bug")
        if not text.isdecimal():
            return UnitStamps(None, (damage_entry(self.damaged, unit.name, BadInput(f"{unit}: torn"), 7),))
        return UnitStamps(make_stamps(int(text), seed=int(text)))


def test_finished_shards_stay_and_a_replaced_file_is_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / f"{k}.dat" for k in range(4)]
    for file, text in zip(files, ("3", "x", "5", "y"), strict=True):
        file.write_text(text)
    out, fresh = tmp_path / "set", tmp_path / "fresh"
    with pytest.raises(BadInput, match="1.dat: torn"):
        run(out, files, FromFile())
    first = (out / "shard-00000.hdf5").stat().st_mtime_ns
    files[3].write_text("bug")
    with pytest.raises(ZeroDivisionError):
        run(out, files, FromFile("skip"))
    stay = {k: (out / f"shard-{k:05d}.hdf5").stat().st_mtime_ns for k in (0, 2)}
    assert stay[0] == first  # the same shard under either choice
    files[1].write_text("4")
    files[3].write_text("z")
    manifest, skipped = run(out, files, FromFile("skip"))
    assert all((out / f"shard-{k:05d}.hdf5").stat().st_mtime_ns == then for k, then in stay.items())
    assert skipped == [{"damaged": "3.dat", "reason": f"{files[3]}: torn", "count": 7}]
    assert manifest.provenance["skipped"] == skipped
    assert capsys.readouterr().err.count(f"left out 3.dat (7 objects): {files[3]}: torn") == 1
    files[3].write_text("8")
    run(fresh, files[:3], FromFile())
    assert [shard.sha256 for shard in read_manifest(fresh).shards] == [s.sha256 for s in manifest.shards]


def test_a_file_in_several_shards_is_listed_once() -> None:
    error = BadInput("f: torn")
    entries = [damage_entry("skip", "f", error, n) for n in (3, 4)]
    other = {"object_id": 1, "reason": "masked"}
    assert merge_damage([entries[0], other, entries[1]]) == [
        {"damaged": "f", "reason": "f: torn", "count": 7},
        other,
    ]


def test_a_missing_package_is_no_damage() -> None:
    with pytest.raises(MissingPackage):
        damage_entry("skip", "f", MissingPackage("no zarr"))
    with pytest.raises(BadInput, match="torn"):
        damage_entry("fail", "f", BadInput("torn"))


def ingest(out: Path, *words: Any, rows: int = 4) -> int:
    options = ["--format", "hayat", "--shard-rows", rows, "--processes", 1]
    return main([str(word) for word in ("ingest", "table", out, *words, *options)])


def table(path: Path, first: int, n: int = 6, **other: Any) -> Path:
    return hayat(path, n, 24, ObjID=np.arange(first, first + n), **other)


def test_arrays_of_every_kind_of_damage_are_left_out_and_appended_when_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [table(tmp_path / "a.h5", 0), table(tmp_path / "b.h5", 10)]
    truncated = table(tmp_path / "c.h5", 20)
    whole = truncated.read_bytes()
    truncated.write_bytes(whole[: len(whole) // 2])
    text, absent = tmp_path / "d.h5", tmp_path / "e.h5"
    text.write_text("not HDF5")
    other = hayat(tmp_path / "f.h5", 6, 26, ObjID=np.arange(30, 36))
    sources = [*good, truncated, text, absent, other]
    for broken in (truncated, text, absent, other):
        assert ingest(tmp_path / "fail", *good, broken) == 2
        said = capsys.readouterr()
        assert str(broken) in said.err and said.err.count("\n") == 1
    out = tmp_path / "out"
    assert ingest(out, *sources, "--damaged", "skip") == 0
    said = capsys.readouterr()
    assert f"{out}: 12 stamps in 3 shards" in said.out
    damaged = [entry["damaged"] for entry in read_manifest(out).provenance["skipped"]]
    assert sorted(damaged) == ["c.h5", "d.h5", "e.h5", "f.h5"]
    assert all(said.err.count(f"left out {name}: ") == 1 for name in damaged)
    before = content(out)
    truncated.write_bytes(whole)
    table(absent, 14)  # of which 14 and 15 are there
    assert ingest(out, *sources, "--damaged", "skip", "--append") == 0
    said = capsys.readouterr()
    assert "added 10 objects" in said.err and "14 were there already" in said.err
    manifest = read_manifest(out)
    verify(out, manifest)
    assert load(out).object_id.tolist() == [*range(6), *range(10, 16), *range(20, 26), *range(16, 20)]
    after = content(out)
    assert all(after[name] == before[name] for name in before if name != "manifest.json")
    assert ingest(out, *good, "--append") == 0
    assert "added 0 objects in 0 shards; 12 were there already" in capsys.readouterr().err
    assert read_manifest(out) == manifest


def test_no_file_is_left_out_whose_rows_number_the_objects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = tmp_path / "map.toml"
    keys = 'images = "images"', 'bands = ["u", "g", "r", "i", "z"]', "pixel_scale = 0.396"
    named.write_text("\n".join((*keys, 'z_spec = "specz_redshift"')))
    bad, good = tmp_path / "a.h5", table(tmp_path / "b.h5", 0)
    bad.write_text("not HDF5")
    out, words = tmp_path / "out", ["--map", str(named), "--damaged", "skip", "--processes", "1"]
    for broken in (bad, tmp_path / "absent.h5"):
        assert main(["ingest", "arrays", str(out), str(broken), str(good), *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and str(broken) in error and "names no object_id" in error
    assert not out.exists()
    assert main(["ingest", "arrays", str(out), str(good), *words]) == 0


def test_pixels_that_cannot_be_read_leave_out_the_rows_of_that_file_alone(tmp_path: Path) -> None:
    import h5py

    good = [table(tmp_path / "a.h5", 0), table(tmp_path / "c.h5", 20)]
    bad = tmp_path / "b.h5"
    with h5py.File(table(tmp_path / "plain.h5", 10)) as plain, h5py.File(bad, "w") as file:
        for name, data in plain.items():
            chunks = {"chunks": (3, *data.shape[1:]), "compression": "gzip"} if name == "images" else {}
            file.create_dataset(name, data=data[...], **chunks)
        place = file["images"].id.get_chunk_info(1)
    with bad.open("r+b") as raw:
        raw.seek(place.byte_offset)
        raw.write(b"\xff" * place.size)
    out = tmp_path / "out"
    assert ingest(out, *good, bad, "--damaged", "skip", rows=16) == 0
    assert load(out).object_id.tolist() == [*range(6), *range(20, 26)]
    (entry,) = read_manifest(out).provenance["skipped"]
    assert (entry["damaged"], entry["count"]) == ("b.h5", 6) and "'images'" in entry["reason"]
    fresh = tmp_path / "fresh"
    assert ingest(fresh, *good, rows=16) == 0
    np.testing.assert_array_equal(load(out).images, load(fresh).images)


def test_frames_that_cannot_be_read_are_left_out_and_appended_when_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("astropy")
    from tests.helpers.sources.sdss_files import DEC, RA, ingest_frames, write_set, write_table

    for k in range(3):
        write_set(tmp_path / "frames", [(RA, DEC)], field=11 + k, offset=0.1 * k)
    objects = write_table(
        tmp_path / "t.csv", [{"object_id": k, "ra": RA + 0.1 * k, "dec": DEC} for k in range(3)]
    )
    header, pixels = (tmp_path / "frames" / f"fpC-000094-{band}.fit" for band in ("r4-0011", "g4-0012"))
    kept = {path: path.read_bytes() for path in (header, pixels)}
    header.write_bytes(b"SIMPLE")
    pixels.write_bytes(kept[pixels][: len(kept[pixels]) // 2])
    out, how = tmp_path / "out", {"shard_rows": 1, "processes": 1}
    with pytest.raises(BadInput, match="fpC-000094-r4-0011.fit"):
        ingest_frames(out, tmp_path / "frames", objects, **how)
    manifest = ingest_frames(out, tmp_path / "frames", objects, damaged="skip", **how)
    assert load(out).object_id.tolist() == [2]
    found = [entry["reason"] for entry in manifest.provenance["skipped"] if "damaged" in entry]
    assert len(found) == 2 and header.name in found[0] and pixels.name in found[1]
    assert capsys.readouterr().err.count("left out ") == 2
    for path, data in kept.items():
        path.write_bytes(data)
    manifest = ingest_frames(out, tmp_path / "frames", objects, append=True, **how)
    assert "added 2 objects in 2 shards; 1 were there already" in capsys.readouterr().err
    assert load(out).object_id.tolist() == [2, 0, 1]
    fresh = tmp_path / "fresh"
    ingest_frames(fresh, tmp_path / "frames", objects, **how)
    order = np.argsort(load(out).object_id)
    np.testing.assert_array_equal(load(out).images[order], load(fresh).images)
    again = ingest_frames(out, tmp_path / "frames", objects, append=True, **how)
    assert again == manifest
