"""Building a dataset gives the same bytes with any number of processes, and keeps finished shards."""

import json
import os
import weakref
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcphotoz.data.format.folder import check_dataset_folder
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.read.rows import verify
from hpcphotoz.errors import BadInput
from hpcphotoz.sources import build as module
from hpcphotoz.sources.build import UnitStamps
from hpcphotoz.sources.mpi import mpi_ranks
from tests.helpers.builds import TIMEOUT_S, UNITS, Blobs, content, run, start, until
from tests.helpers.datasets import load, make_dataset, make_stamps


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "set"
    run(out)
    return out


def test_shards_are_units_and_empty_ones_are_left_out(whole: Path) -> None:
    manifest = read_manifest(whole)
    verify(whole, manifest)
    assert [shard.file for shard in manifest.shards] == [f"shard-{k:05d}.hdf5" for k in (0, 2, 4, 5)]
    assert sorted(content(whole)) == ["manifest.json", *(shard.file for shard in manifest.shards)]
    assert manifest.provenance["skipped"] == [{"object_id": 7, "reason": "masked"}] * 2
    stamps = load(whole, manifest)
    expected = Stamps.concatenate([make_stamps(n, seed=n) for n in UNITS if n > 1])
    np.testing.assert_array_equal(stamps.images, expected.images)
    np.testing.assert_array_equal(stamps.object_id, expected.object_id)
    np.testing.assert_allclose(manifest.statistics.std, expected.images.std(axis=(0, 2, 3)), rtol=1e-5)


def test_any_number_of_processes_gives_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    for processes in (2, 3):
        out = tmp_path / str(processes)
        manifest, skipped = run(out, processes=processes)
        assert content(out) == content(whole)
        assert (manifest, len(skipped)) == (read_manifest(whole), 2)


def test_a_folder_that_cannot_be_written_is_refused_and_none_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_dataset_folder(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(BadInput, match=f"a/b: cannot make the folder: no permission to write in {tmp_path}"):
        check_dataset_folder(tmp_path / "a" / "b")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_keeps_its_finished_shards(whole: Path, tmp_path: Path, processes: int) -> None:
    out = tmp_path / "set"
    process = start(out, 9, processes)
    until(lambda: len(list(out.glob("*.done.json"))) == 5 or process.poll() is not None, "five units")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    for child in children:  # workers end with the run that started them
        until(partial(_gone, int(child)), f"worker {child}")
    assert not (out / "manifest.json").exists()
    with pytest.raises(BadInput, match="unfinished dataset"):
        read_manifest(out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.hdf5")}
    assert len(before) == 3
    (out / "shard-00005.hdf5.x1.tmp").write_bytes(b"half")
    run(out)
    assert content(out) == content(whole)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_kept_shards_are_reported_and_a_torn_one_is_made_again(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set"
    monkeypatch.setattr(module, "finish_dataset", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    monkeypatch.undo()
    assert len(list(out.glob("*.done.json"))) == len(UNITS)
    with (out / "shard-00002.hdf5").open("r+b") as file:
        file.truncate(100)
    run(out)
    assert "kept 5 finished shards" in capsys.readouterr().err
    assert content(out) == content(whole)


def test_other_options_are_not_mixed_in(tmp_path: Path) -> None:
    source, out = tmp_path / "in.dat", tmp_path / "set"
    source.write_text("1")
    make = Blobs("a", source)
    with pytest.raises(BadInput, match="torn"):
        run(out, [3, "bad"], make)
    refused = pytest.raises(BadInput, match="unfinished dataset of other input or options: delete it")
    with refused:
        run(out, [3, "bad"], Blobs("b", source))
    with refused:
        run(out, [4, "bad"], make)  # with entirely different input
    source.write_text("22")
    with refused:
        run(out, [3, "bad"], make)
    assert (out / "shard-00000.hdf5").exists()


@dataclass(frozen=True)
class FromFile:
    """Makes as many galaxies as the unit's file says."""

    def __call__(self, unit: Any) -> UnitStamps:
        text = unit.read_text()
        if not text.isdecimal():
            raise BadInput(f"{unit}: torn: fetch it again")
        return UnitStamps(make_stamps(int(text), seed=int(text)))


def test_a_replaced_file_makes_its_own_shard_again_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / f"{k}.dat" for k in range(4)]
    for file, text in zip(files, ("3", "4", "5", "x"), strict=True):
        file.write_text(text)
    out, fresh = tmp_path / "set", tmp_path / "fresh"
    with pytest.raises(BadInput, match="3.dat: torn"):
        run(out, files, FromFile())
    before = {k: (out / f"shard-{k:05d}.hdf5").stat().st_mtime_ns for k in range(3)}
    files[3].write_text("6")  # which the message advises
    files[1].write_text("14")
    manifest, _ = run(out, files, FromFile())
    assert (
        "kept 2 finished shards of an earlier run; made again, as the input has changed: 1"
        in capsys.readouterr().err
    )
    after = {k: (out / f"shard-{k:05d}.hdf5").stat().st_mtime_ns for k in range(3)}
    assert [k for k in before if after[k] != before[k]] == [1]
    assert [shard.rows for shard in manifest.shards] == [3, 14, 5, 6]
    run(fresh, files, FromFile())
    assert content(out) == content(fresh)


def test_a_file_of_the_same_size_that_is_newer_is_read_again(tmp_path: Path) -> None:
    files = [tmp_path / f"{k}.dat" for k in range(3)]
    for file, text in zip(files, ("3", "4", "x"), strict=True):
        file.write_text(text)
    with pytest.raises(BadInput, match="torn"):
        run(tmp_path / "set", files, FromFile())
    files[0].write_text("2")
    os.utime(files[0], ns=(0, files[0].stat().st_mtime_ns + 1))
    files[2].write_text("9")
    manifest, _ = run(tmp_path / "set", files, FromFile())
    assert [shard.rows for shard in manifest.shards] == [2, 4, 9]


def test_a_dataset_of_more_or_fewer_units_keeps_its_equal_shards(tmp_path: Path) -> None:
    out, fresh = tmp_path / "set", tmp_path / "fresh"
    with pytest.raises(BadInput, match="torn"):
        run(out, [3, 4, 5, "bad"], provenance={"files": 4})
    before = (out / "shard-00000.hdf5").stat().st_mtime_ns
    run(out, [3, 5], provenance={"files": 2})
    run(fresh, [3, 5], provenance={"files": 2})
    assert content(out) == content(fresh)
    assert (out / "shard-00000.hdf5").stat().st_mtime_ns == before


def test_folders_that_are_refused(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(BadInput, match="already holds a finished dataset"):
        run(dataset)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "shard-00000.tar").write_text("")
    with pytest.raises(BadInput, match="holds other files"):
        run(tmp_path / "photos")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot make the folder"):
        run(tmp_path / "file" / "set")
    out = make_dataset(tmp_path / "simulated", n=40, shard_rows=16)
    (out / "manifest.json").unlink()  # an unfinished dataset of another command is replaced
    run(out)
    assert read_manifest(out).rows == sum(n for n in UNITS if n > 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_failures(tmp_path: Path, processes: int) -> None:
    with pytest.raises(BadInput, match="field.fits: torn"):
        run(tmp_path / "a", [3, "bad", 4], processes=processes)
    with pytest.raises(ZeroDivisionError if processes == 1 else RuntimeError, match="a bug"):
        run(tmp_path / "b", [3, "bug", 4], processes=processes)
    with pytest.raises(BadInput, match="no object could be used, 2 were skipped; the first: masked"):
        run(tmp_path / "c", [1, 1], processes=processes)
    assert not (tmp_path / "c").exists()
    with pytest.raises(TypeError, match="set in a plan"):
        run(tmp_path / "d", [{1, 2}])
    with pytest.raises(BadInput, match="processes 0"):
        run(tmp_path / "d", processes=0)


def test_a_worker_that_dies_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a worker process died"):
        run(tmp_path / "set", [3, "die", 4], processes=2)


def test_one_units_stamps_are_in_memory(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Watched:
        def __call__(self, unit: int) -> UnitStamps:
            assert not any(reference() is not None for reference in made), (
                "stamps of the previous unit are still in memory"
            )
            stamps = make_stamps(unit, seed=unit)
            made.append(weakref.ref(stamps.images))
            return UnitStamps(stamps)

    made: list[Any] = []
    run(tmp_path / "set", [3, 4, 5], Watched())
    assert len(made) == 3


def test_ranks_that_nothing_connects_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match="slurm started 4 processes that nothing connects"):
        mpi_ranks()


def test_sidecars_hold_what_the_manifest_needs(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(BadInput, match="torn"):
        run(tmp_path / "set", [*UNITS, "bad"])
    tree = json.loads((tmp_path / "set" / "shard-00000.hdf5.done.json").read_text())
    assert tree["shard"]["sha256"] == read_manifest(whole).shards[0].sha256
    (tmp_path / "set" / "shard-00000.hdf5.done.json").write_text("{")
    with pytest.raises(BadInput, match="done.json: not readable"):
        run(tmp_path / "set", [*UNITS, "bad"])


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True
