"""RAIL's handles: chunks of a dataset in RAIL's form, checked, and a model that is no pickle."""

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

pytest.importorskip("rail.core", reason="needs pz-rail-base: pip install 'hpcphotoz[rail]'")

import tables_io
from rail.core.data import DataHandle, TableHandle

from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.format.stamps import COLUMNS
from hpcphotoz.errors import BadInput
from hpcphotoz.rail.handles import ImageHandle, NetworkHandle
from hpcphotoz.rail.table import ImageTable
from tests.helpers.commands import copy
from tests.helpers.data.extra import EXTRA, extra_stamps, write_extra_dataset
from tests.helpers.datasets import load
from tests.rail.conftest import columns

Chunks = list[tuple[int, int, dict[str, Any]]]


def chunks(path: Path, handle: type[DataHandle] = ImageHandle, **options: Any) -> Chunks:
    """The chunks of an iterator; copies, because RAIL's own gives one dictionary again and again."""
    found = handle("input", path=str(path)).iterator(groupname="", **options)
    return [(start, end, dict(data)) for start, end, data in found]


def first_shard(folder: Path) -> Path:
    return folder / read_manifest(folder).shards[0].file


def test_chunks_cross_the_shards_in_stored_order(dataset: Path) -> None:
    found, whole = chunks(dataset, chunk_size=20), load(dataset)
    assert [(start, end) for start, end, _ in found] == [(0, 20), (20, 40), (40, 60), (60, 75)]
    assert ImageHandle("input", path=str(dataset / "manifest.json")).size() == 75
    for start, end, data in found:
        for name, values in columns(whole).items():
            np.testing.assert_array_equal(data[name], values[start:end])


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_every_chunk_is_read_by_one_rank(dataset: Path, ranks: int) -> None:
    by_rank = [chunks(dataset, chunk_size=20, rank=rank, parallel_size=ranks) for rank in range(ranks)]
    starts = sorted(start for found in by_rank for start, _, _ in found)
    assert starts == [0, 20, 40, 60] and [found[0][0] if found else None for found in by_rank][:2] == [0, 20]


def test_one_shard_gives_what_rail_itself_reads(dataset: Path) -> None:
    shard = first_shard(dataset)
    (start, end, ours), *more = chunks(shard, chunk_size=100)
    ((_, _, theirs),) = chunks(shard, TableHandle, chunk_size=100)
    assert (start, end, more) == (0, 32, []) and set(ours) == set(theirs) >= {"images", "image_xxh3"}
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values)
    ((_, _, rows),) = chunks(dataset, chunk_size=32, parallel_size=99)
    np.testing.assert_array_equal(rows["images"], theirs["images"])
    whole = tables_io.read(str(shard))
    assert set(whole) == set(theirs) and len(whole["images"]) == 32
    for name in COLUMNS:
        np.testing.assert_array_equal(whole[name], rows[name])


def test_extra_columns_are_columns_of_the_table(tmp_path: Path) -> None:
    folder, stamps = write_extra_dataset(tmp_path / "d", 20), extra_stamps(20)
    labels = [column.name for column in EXTRA if not column.is_pixels]
    table = ImageTable(folder)
    assert table.extra == labels and set(table) == {*COLUMNS, *labels} and len(table) == len({*table})
    read = [data for _, _, data in chunks(folder, chunk_size=6)]
    whole = [tables_io.read(str(folder / shard.file)) for shard in table.manifest.shards]
    for name in labels:
        wanted = stamps.extra[name]
        assert table[name].dtype == wanted.dtype
        np.testing.assert_array_equal(table[name], wanted)
        np.testing.assert_array_equal(np.concatenate([data[name] for data in read]), wanted)
        np.testing.assert_array_equal(np.concatenate([part[name] for part in whole]), wanted)
    assert not {"variance", "mask"} & {*read[0]}


def test_reading_a_dataset_reads_no_image_until_it_is_asked_for(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = ImageHandle("input", path=str(dataset))
    with monkeypatch.context() as closed:
        closed.setattr("hpcphotoz.rail.table.read_rows", None)
        table = handle.read()
        assert isinstance(table, ImageTable) and set(table) == {"images", *columns(load(dataset))}
        assert handle.size() == 75
        np.testing.assert_array_equal(table["z_spec"], load(dataset).z_spec)
    assert table["images"].shape == (75, 5, 16, 16)
    assert [start for start, _, _ in handle.iterator(chunk_size=50)] == [0, 50]
    with pytest.raises(KeyError, match="flux"):
        table["flux"]


def test_columns_are_checked_by_name(dataset: Path) -> None:
    ImageHandle._check_data_columns(str(dataset), ["images", "ebv"])
    with pytest.raises(KeyError, match="mag_i"):
        ImageHandle._check_data_columns(str(dataset), ["images", "mag_i"])


def test_damage_is_named(dataset: Path, tmp_path: Path) -> None:
    folder = copy(dataset, tmp_path / "d")
    path = first_shard(folder)
    with h5py.File(path) as file:
        offset = file["images"].id.get_offset() + 3 * file["images"][0].nbytes
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BadInput, match=f"^{path}: row 3: pixels differ from the checksums"):
        chunks(folder, chunk_size=20)
    chunks(folder, chunk_size=20, rank=1, parallel_size=2)


class Opened:
    """A pickle that would leave a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["model.pkl", "model.safetensors", "model.pt"])
def test_a_pickle_is_no_model_and_is_not_run(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Opened(tmp_path / "trace")))
    with pytest.raises(
        BadInput,
        match=f"^{path}: (not a readable checkpoint|models are no pickles .* such as model.safetensors, or"
        "|cannot be read as safetensors)",
    ):
        NetworkHandle("model", path=str(path)).read()
    assert not (tmp_path / "trace").exists()


def test_a_model_is_written_and_read_again(model: Path, tmp_path: Path) -> None:
    network = NetworkHandle("model", path=str(model)).read()
    again = NetworkHandle("model", data=network, path=str(tmp_path / "deeper" / "again.safetensors"))
    again.write()
    assert (tmp_path / "deeper" / "again.safetensors").read_bytes() == model.read_bytes()
    assert NetworkHandle.make_name("model") == "model.safetensors"
