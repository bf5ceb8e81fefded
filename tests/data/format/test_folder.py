"""A folder has one writer at a time, whether a dataset is written, built or indexed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hpcphotoz.data.format.folder import LOCK_FILE, SIDECAR_SUFFIX
from hpcphotoz.data.format.index import index_folder
from hpcphotoz.data.format.manifest import MANIFEST, Header, read_manifest
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.data.read.rows import verify
from hpcphotoz.errors import BadInput
from hpcphotoz.locks.lock import lock_file
from hpcphotoz.sources.build import UnitStamps, build_dataset
from tests.helpers.builds import Blobs
from tests.helpers.datasets import make_stamps, write_stamps

HEADER = Header(tuple("ugriz"), 16, 0.396)


def ingest(out: Path) -> None:
    build_dataset(out, HEADER, Blobs(), [3, 4], provenance={}, label="making, shards", processes=1)


def write(out: Path) -> None:
    write_stamps(out, make_stamps(3, seed=9))


@pytest.mark.parametrize("second", [write, ingest, index_folder])
def test_a_second_writer_is_refused_and_the_first_one_ends_well(
    tmp_path: Path, second: Callable[[Path], Any]
) -> None:
    out = tmp_path / "d"
    with DatasetWriter(out, HEADER, 8, {}) as writer:
        writer.append(make_stamps(20))
        with pytest.raises(BadInput, match="another process is writing a dataset in it"):
            second(out)
        writer.append(make_stamps(20, seed=1))
    manifest = read_manifest(out)
    verify(out, manifest)
    assert manifest.rows == 40 and not (out / LOCK_FILE).exists()


@pytest.mark.parametrize("second", [write, ingest, index_folder])
def test_a_writer_that_finishes_while_another_begins_keeps_its_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: Callable[[Path], Any]
) -> None:
    """The first writer finishes between the second writer's check of the folder and its lock."""
    out = tmp_path / "d"
    if second is index_folder:
        write(out)
        (out / MANIFEST).unlink()
    module = "hpcphotoz.data.format.index" if second is index_folder else "hpcphotoz.data.format.folder"

    @contextmanager
    def late(path: Path, refusal: str, advice: str) -> Iterator[None]:
        with monkeypatch.context() as first:
            first.setattr("hpcphotoz.data.format.folder.lock_file", lock_file)
            write(out)
        with lock_file(path, refusal, advice):
            yield

    monkeypatch.setattr(f"{module}.lock_file", late)
    with pytest.raises(BadInput, match="already (holds|has)"):
        second(out)
    manifest = read_manifest(out)
    verify(out, manifest)
    assert manifest.rows == 3 and manifest.provenance == {"made": "for a test"}


def test_a_second_ingest_leaves_the_shards_of_the_first_alone(tmp_path: Path) -> None:
    out = tmp_path / "d"
    refused = []

    class Interrupted(Blobs):
        def __call__(self, unit: Any) -> UnitStamps:
            if unit == 4:  # one shard is finished
                with pytest.raises(BadInput, match="another process is writing") as found:
                    ingest(out)
                refused.append(found)
            return super().__call__(unit)

    build_dataset(out, HEADER, Interrupted(), [3, 4, 5], provenance={}, label="making, shards", processes=1)
    assert len(refused) == 1 and not (out / LOCK_FILE).exists()
    verify(out, read_manifest(out))


def test_a_writer_that_fails_unlocks_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "d"
    with pytest.raises(ZeroDivisionError), DatasetWriter(out, HEADER, 8, {}) as writer:
        writer.append(make_stamps(20))
        raise ZeroDivisionError
    assert not (out / LOCK_FILE).exists()
    write(out)
    assert read_manifest(out).rows == 3


def test_an_unfinished_ingest_is_not_thrown_away_by_another_kind_of_writer(tmp_path: Path) -> None:
    out = tmp_path / "d"
    with pytest.raises(BadInput, match="torn"):
        build_dataset(out, HEADER, Blobs(), [3, "bad"], provenance={}, label="making, shards", processes=1)
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(BadInput, match=r"unfinished ingest \(shard-00000\.hdf5\.done\.json\)"):
        write(out)
    assert sorted(path.name for path in out.iterdir()) == before


def test_an_unfinished_ingest_is_not_indexed(tmp_path: Path) -> None:
    out = tmp_path / "d"
    write(out)
    (out / "manifest.json").unlink()
    (out / f"shard-00000.hdf5{SIDECAR_SUFFIX}").write_text("{}")
    with pytest.raises(BadInput, match=r"shard-00000\.hdf5\.done\.json: of an unfinished ingest"):
        index_folder(out)
    assert not (out / "manifest.json").exists()
