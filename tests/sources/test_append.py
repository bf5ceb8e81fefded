"""`--append` adds shards to a dataset that stays readable as it was until all of them are there."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcphotoz.data.format.folder import SIDECAR_SUFFIX
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.format.stamps import BandMoments, Stamps
from hpcphotoz.data.format.writer import finish_dataset
from hpcphotoz.data.read.object_ids import read_object_ids
from hpcphotoz.data.read.rows import verify
from hpcphotoz.errors import BadInput
from hpcphotoz.sources import build as module
from hpcphotoz.sources.build import UnitStamps
from hpcphotoz.sources.engine.append import find_target
from tests.helpers.builds import HEADER, TIMEOUT_S, Blobs, content, run, until
from tests.helpers.datasets import load, make_stamps
from tests.helpers.paths import ROOT


def append(out: Path, units: list[int], make: Any = None, **how: Any) -> Any:
    """Appends units of `Blobs` whose objects are not in the dataset."""
    target = find_target(out, append=True)
    new = [n for n in units if target.lacks(make_stamps(n, seed=n).object_id).all()]
    return run(out, new, make, append=target.append(sum(units) - sum(new)), **how)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    run(tmp_path / "set", [3, 4])
    return tmp_path / "set"


def test_new_shards_follow_the_last_and_known_objects_are_left_out(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(dataset)
    manifest, _ = append(dataset, [3, 5, 4, 6])
    assert manifest == read_manifest(dataset)
    verify(dataset, manifest)
    after = content(dataset)
    assert sorted(after) == ["manifest.json", *(f"shard-{k:05d}.hdf5" for k in range(4))]
    assert all(after[name] == before[name] for name in before if name != "manifest.json")
    found, wanted = load(dataset), Stamps.concatenate([make_stamps(n, seed=n) for n in (3, 4, 5, 6)])
    np.testing.assert_array_equal(found.object_id, wanted.object_id)
    np.testing.assert_array_equal(found.images, wanted.images)
    exact = BandMoments.of(wanted).result()
    for name in ("mean", "std", "sky_sigma"):
        np.testing.assert_allclose(getattr(manifest.statistics, name), getattr(exact, name), rtol=2e-15)
    (record,) = manifest.provenance["appended"]
    assert (record["rows_added"], record["already_there"]) == (11, 7)
    assert record["shards"] == ["shard-00002.hdf5", "shard-00003.hdf5"]
    assert manifest.provenance["made"] == record["made"] == "for a test"
    assert f"{dataset}: added 11 objects in 2 shards; 7 were there already" in capsys.readouterr().err


def test_nothing_new_leaves_the_dataset_as_it_is(dataset: Path) -> None:
    before = content(dataset)
    manifest, _ = append(dataset, [3, 4])
    assert manifest == read_manifest(dataset) and content(dataset) == before
    manifest, skipped = append(dataset, [1])  # which gives no stamp
    assert len(skipped) == 1 and content(dataset) == before


def test_a_killed_append_leaves_the_dataset_readable_and_goes_on(dataset: Path, tmp_path: Path) -> None:
    before, manifest = load(dataset), read_manifest(dataset)
    code = (
        "from pathlib import Path; from tests.sources.test_append import append\n"
        f"append(Path({str(dataset)!r}), [5, 6, 9])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "BLOCK_AT": "9"}, stderr=subprocess.PIPE
    )
    sidecar = dataset / f"shard-00003.hdf5{SIDECAR_SUFFIX}"
    until(lambda: sidecar.exists() or process.poll() is not None, "two units")
    with pytest.raises(BadInput, match="another process is writing"):
        append(dataset, [5, 6, 9])
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    assert read_manifest(dataset) == manifest
    np.testing.assert_array_equal(load(dataset).images, before.images)
    verify(dataset, manifest)
    kept = {path: path.stat().st_mtime_ns for path in dataset.glob("shard-*.hdf5")}
    assert len(kept) == 4
    with pytest.raises(BadInput, match="unfinished --append .* delete shard-00002.hdf5 and those after it"):
        append(dataset, [7], Blobs("other"))
    append(dataset, [5, 6, 9])
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    run(tmp_path / "fresh", [3, 4, 5, 6, 9])
    mine, fresh = content(dataset), content(tmp_path / "fresh")
    assert sorted(mine) == sorted(fresh)
    assert all(mine[name] == fresh[name] for name in mine if name != "manifest.json")


def test_an_append_killed_after_the_manifest_was_written_has_nothing_left_to_do(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish_and_stop(*arguments: Any) -> None:
        finish_dataset(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "finish_dataset", finish_and_stop)
    with pytest.raises(KeyboardInterrupt):
        append(dataset, [5])
    monkeypatch.undo()
    assert list(dataset.glob(f"*{SIDECAR_SUFFIX}")) and read_manifest(dataset).rows == 12
    manifest, _ = append(dataset, [5])
    assert manifest.rows == 12 and not list(dataset.glob(f"*{SIDECAR_SUFFIX}"))
    assert len(np.unique(read_object_ids(dataset, manifest))) == 12


def test_appends_follow_each_other(dataset: Path) -> None:
    for n in (5, 6, 7):
        append(dataset, [n])
    manifest = read_manifest(dataset)
    verify(dataset, manifest)
    assert [one["shards"] for one in manifest.provenance["appended"]] == [
        [f"shard-{k:05d}.hdf5"] for k in (2, 3, 4)
    ]
    assert [shard.rows for shard in manifest.shards] == [3, 4, 5, 6, 7]


def test_what_cannot_be_appended_to_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="holds no finished dataset to append to: leave out --append"):
        find_target(tmp_path / "absent", append=True)
    with pytest.raises(BadInput, match="already holds a finished dataset"):
        find_target(dataset, append=False)
    before = content(dataset)
    target = find_target(dataset, append=True)
    monkeypatch.setattr("tests.helpers.builds.HEADER", replace(HEADER, storage="int16"))
    with pytest.raises(BadInput, match="cannot append: storage int16, but float32 in the dataset"):
        run(dataset, [5], append=target.append(0))
    monkeypatch.undo()
    assert content(dataset) == before
    append(dataset, [6])
    with pytest.raises(BadInput, match="another process has changed the dataset meanwhile"):
        run(dataset, [5], append=target.append(0))


def test_other_files_beside_a_dataset_stay(dataset: Path) -> None:
    strangers = [dataset / name for name in ("notes.txt", "shard-00009.tar")]
    for path in strangers:
        path.write_text("mine")
    append(dataset, [5])
    assert all(path.read_text() == "mine" for path in strangers)
    verify(dataset, read_manifest(dataset))


@dataclass(frozen=True)
class Squares:
    """Makes the stamps of a part: n galaxies of seed n."""

    def __call__(self, unit: Any) -> UnitStamps:
        return UnitStamps(Stamps.concatenate([make_stamps(n, seed=n) for n in unit]))


@pytest.mark.parametrize("processes", [1, 2])
def test_parts_of_a_unit_give_the_bytes_of_the_whole(tmp_path: Path, processes: int) -> None:
    units = [(3, 4, 5), (6,), (7, 8)]
    run(tmp_path / "whole", units, Squares())
    parts = module.Parts(lambda unit: [(n,) for n in unit], "making, parts")
    run(tmp_path / "parts", units, Squares(), parts=parts, processes=processes)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
