"""An opened dataset: objects by index and slice, subsets, tables and pictures."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

import hpcphotoz as hp
from hpcphotoz.api import StampBatch
from hpcphotoz.config.load import configure
from hpcphotoz.data.format.extra import unpack_mask
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.data.select.subset import SPLIT_PARTS, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.run.network import TrainedNetwork
from tests.helpers.data.extra import SIDE, write_extra_dataset
from tests.helpers.datasets import load, make_dataset, make_stamps, write_stamps

NAMES = ("images", "ebv", "z_spec", "sky_sigma", "object_id")


@pytest.fixture
def pyplot(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    yield pyplot
    pyplot.close("all")


def network(where: str = "", test: float = 0.3) -> TrainedNetwork:
    config = configure("test", where=where, test=test)
    bins = RedshiftBins(20, 0.0, 0.4)
    facts: dict[str, Any] = {
        "pixel_scale": 0.396,
        "config": config,
        "step": 1,
        "manifest_sha256": "0" * 64,
        "scale": (1.0,) * 5,
    }
    return TrainedNetwork("run", torch.nn.Linear(1, 1), bins, tuple("ugriz"), 16, **facts)


def assert_equal(batch: StampBatch, stamps: Stamps) -> None:
    for name in NAMES:
        np.testing.assert_array_equal(getattr(batch, name).numpy(), getattr(stamps, name), err_msg=name)


SLICES = [
    slice(None),
    slice(30, 34),  # over the end of the first shard
    slice(-5, None),
    slice(None, None, 2),
    slice(3, None, 25),
    slice(None, None, -1),
    slice(70, 10, -7),
    slice(5, 5),
    slice(80, 90),
]


@pytest.mark.parametrize("key", SLICES, ids=str)
@pytest.mark.parametrize("where", ["", "z_spec < 0.2", "z_spec > 0.37"])
def test_a_slice_is_that_of_all_objects_in_stored_order(dataset: Path, key: slice, where: str) -> None:
    opened, stored = hp.open(dataset, where=where, device="cpu"), load(dataset)
    if where:
        limit = float(where.split()[-1])
        stored = stored[stored.z_spec < limit if "<" in where else stored.z_spec > limit]
    assert len(opened) == len(stored) > 0
    batch = opened[key]
    assert_equal(batch, stored[np.arange(len(stored))[key]])
    assert batch.bands == tuple("ugriz") and batch.images.shape[1:] == (5, 16, 16)


@pytest.mark.parametrize("storage", ["float16", "int16"])
def test_other_storage_is_decoded_as_in_iteration(tmp_path: Path, storage: str) -> None:
    opened = hp.open(write_stamps(tmp_path / "set", make_stamps(20), storage=storage), device="cpu")
    whole = torch.cat([batch.images for batch in opened])
    assert whole.dtype == torch.float32 and torch.equal(opened[4:18:3].images, whole[4:18:3])


def test_an_index_gives_a_batch_of_one(dataset: Path) -> None:
    opened, stored = hp.open(dataset, device="cpu"), load(dataset)
    for place in (0, 31, 32, 74, -1, -75, np.int64(40)):
        assert_equal(opened[int(place)], stored[np.array([place])])
    for place in (75, -76):
        with pytest.raises(IndexError, match=f"object {place} of a dataset of 75"):
            opened[place]
    key: Any
    for key in (1.0, [1.0], ["z_spec"], (slice(3), 1), None, True, [[1, 2]], np.zeros((75, 1), bool)):
        with pytest.raises(TypeError, match="dataset.*: a .*: want a whole number, a slice, .* a mask"):
            opened[key]
    with pytest.raises(TypeError, match="slice indices must be integers"):
        opened[0.5:3]
    with pytest.raises(ValueError, match="step cannot be zero"):
        opened[::0]


@pytest.mark.parametrize("where", ["", "z_spec < 0.2"])
def test_places_and_masks_give_what_slices_give(dataset: Path, where: str) -> None:
    opened, stored = hp.open(dataset, where=where, device="cpu"), load(dataset)
    stored = stored[stored.z_spec < 0.2] if where else stored
    n = len(stored)
    near = stored.ebv < 0.06
    keys: list[Any] = [
        [1, 2],
        np.array([3, n - 1, 3, 0, -1]),  # any order, twice, from the end
        np.array([2, 1], np.uint8),
        torch.tensor([5, 4]),
        [],
        near,
        torch.from_numpy(near),
        near.tolist(),
        np.zeros(n, bool),
    ]
    for key in keys:
        assert_equal(opened[key], stored[np.asarray(key if len(key) else np.zeros(0, int))])
    with pytest.raises(IndexError, match=f"object {n} of a dataset of {n}"):
        opened[[0, n]]
    with pytest.raises(IndexError, match=f"object {-n - 1} of a dataset of {n}"):
        opened[np.array([0, -n - 1])]
    with pytest.raises(IndexError, match=f"a mask of 3 for a dataset of {n}"):
        opened[[True, False, True]]


def test_an_index_reads_one_shard_and_compares_its_checksums(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(dataset, folder)
    manifest = read_manifest(folder)
    opened = hp.open(folder, device="cpu")
    (folder / manifest.shards[2].file).unlink()
    assert len(opened[:64]) == 64
    with pytest.raises(BadInput, match=manifest.shards[2].file):
        opened[70]
    damaged = folder / manifest.shards[0].file
    content, image = bytearray(damaged.read_bytes()), load(dataset).images[3].tobytes()
    content[content.index(image) + 8] ^= 1
    damaged.write_bytes(bytes(content))
    assert len(opened[4:9]) == 5, "only what is read is compared"
    with pytest.raises(BadInput, match=rf"{manifest.shards[0].file}.*row.* 3"):
        opened[2:9]


def test_extra_columns_come_with_the_objects(tmp_path: Path) -> None:
    folder = write_extra_dataset(tmp_path / "set", 30)
    opened, stored = hp.open(folder, where="zwarning >= 20 and clean", device="cpu"), load(folder)
    stored = stored[(stored.extra["zwarning"] >= 20) & stored.extra["clean"]]
    assert 4 < len(opened) == len(stored) < 30
    with h5py.File(folder / "shard-00000.hdf5") as file:
        assert {"variance", "mask"} <= file.keys(), "the dataset of this test has columns of pixels"
    whole = Stamps.concatenate(list(read_rows(folder, opened.manifest, pixel_columns=("variance", "mask"))))
    whole = whole[(whole.extra["zwarning"] >= 20) & whole.extra["clean"]]
    wanted = {**whole.extra, "mask": unpack_mask(whole.extra["mask"], SIDE)}
    assert wanted["mask"].any() and wanted["mask"].shape == whole.images.shape
    for rows in (slice(1, None, 2), slice(-1, None), slice(0, 0), [2, 0]):
        batch = opened[rows]
        assert batch.extra.keys() == wanted.keys()
        for name, values in batch.extra.items():
            assert values.dtype == wanted[name].dtype
            np.testing.assert_array_equal(values, wanted[name][rows], err_msg=name)
    wanted |= {name: getattr(stored, name) for name in (*NAMES[1:], "ra", "dec")}
    for name, values in wanted.items():
        assert opened[name].dtype == values.dtype
        np.testing.assert_array_equal(opened[name], values, err_msg=name)
    for name in ("psf_fwhm_r", "images"):
        with pytest.raises(KeyError, match=f"no column '{name}': it has z_spec, ebv, .*psf_fwhm, variance"):
            opened[name]
    empty = replace(opened, manifest=replace(opened.manifest, shards=()))
    assert empty["clean"].shape == (0,) and empty["mask"].shape == (0, *whole.images.shape[1:])
    assert "petro_r, z_err" in opened._repr_html_() and "variance, mask" in opened._repr_html_()
    table = opened[:2]._repr_html_()
    assert "<th>spectype</th>" in table and "psf_fwhm" not in table and "&#x27;" not in table
    assert all(batch.extra.keys() == stored.extra.keys() for batch in opened), "none of pixels"


def test_a_column_is_compared_with_its_checksum(tmp_path: Path) -> None:
    folder = write_extra_dataset(tmp_path / "set", 30)
    opened = hp.open(folder, device="cpu")
    path = folder / opened.manifest.shards[1].file
    content, value = bytearray(path.read_bytes()), load(folder).extra["z_err"][8:16].tobytes()
    content[content.index(value)] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BadInput, match=opened.manifest.shards[1].file):
        opened["z_err"]


def test_where_and_part_are_those_of_the_command_line(dataset: Path) -> None:
    trained = network(where="z_spec < 0.3")
    opened = hp.open(dataset, part="test", where="ebv < 0.06", network=trained, device="cpu")
    options = trained.config.data.model_copy(update={"where": "(z_spec < 0.3) and (ebv < 0.06)"})
    wanted = hp.open(dataset, subset=Subset.from_options(options, "test", tuple("ugriz")), device="cpu")
    assert opened.subset == wanted.subset and 0 < len(opened) < 40
    found = torch.cat([batch.object_id for batch in opened])
    assert torch.equal(found, opened[:].object_id) and len(found) == len(opened)
    ids = [
        hp.open(dataset, part=part, network=trained, device="cpu")[:].object_id
        for part in SPLIT_PARTS
        if part != "all"
    ]
    whole = hp.open(dataset, where="z_spec < 0.3", device="cpu")[:].object_id
    assert sorted(torch.cat(ids).tolist()) == sorted(whole.tolist())


def test_open_refuses_what_selects_nothing_or_is_unclear(dataset: Path) -> None:
    with pytest.raises(BadInput, match="part 'test': of which split. give network=hpcphotoz.load.RUN."):
        hp.open(dataset, part="test", device="cpu")
    with pytest.raises(BadInput, match="part 'tset': want one of train, validation, test, all"):
        hp.open(dataset, part="tset", device="cpu")  # type: ignore[arg-type]
    with pytest.raises(
        BadInput, match="none of its 75 objects is selected .where z_spec > 3.: z_spec is 0.0"
    ):
        hp.open(dataset, where="z_spec > 3", device="cpu")
    with pytest.raises(BadInput, match="zspec"):
        hp.open(dataset, where="zspec > 3", device="cpu")
    subset = Subset.from_options(configure("test", test=0.3).data, "test", tuple("ugriz"))
    with pytest.raises(BadInput, match="subset beside where or part"):
        hp.open(dataset, where="z_spec < 1", subset=subset, device="cpu")


def test_a_dataset_and_a_batch_show_what_they_hold(dataset: Path) -> None:
    opened = hp.open(dataset, where="z_spec < 0.2", device="cpu")
    said = f"{len(opened)} of 75 objects (where z_spec < 0.2), bands u g r i z, stamps of 16 x 16 pixels"
    assert repr(opened) == f"<Dataset {dataset}: {said}>"
    batch = opened[:7]
    assert repr(batch) == "<StampBatch: 7 objects, bands u g r i z, stamps of 16 x 16 pixels, cpu>"
    page, table = opened._repr_html_(), batch._repr_html_()
    assert "where z_spec &lt; 0.2" in page and "0.396 arcsec" in page and "z_spec (all objects)" in page
    assert table.count("<tr>") == 6 and "and 2 more" in table and f"{batch.z_spec[0]:.4f}" in table
    assert str(int(batch.object_id[4])) in table and str(int(batch.object_id[5])) not in table


def test_a_table_holds_no_html_of_a_foreign_dataset(tmp_path: Path) -> None:
    bands = ("<b>g", "r")
    folder = write_stamps(tmp_path / "<script>", make_stamps(3, bands=2), bands=bands)
    opened = hp.open(folder, device="cpu")
    for page in (opened._repr_html_(), opened[:]._repr_html_()):
        assert "<script>" not in page and "<b>" not in page and "&lt;b&gt;g" in page


def titles(axes: Any) -> list[str]:
    return [ax.get_title() for ax in axes.flat if ax.images]


def test_stamps_are_drawn_with_their_redshifts(dataset: Path, pyplot: object) -> None:
    opened = hp.open(dataset, device="cpu")
    batch = opened[:10]
    batch = replace(batch, z_spec=torch.cat([torch.tensor([torch.nan]), batch.z_spec[1:]]))
    axes = batch.plot()
    assert axes.shape == (2, 8)
    assert titles(axes) == ["z ?", *(f"z {z:.3f}" for z in batch.z_spec[1:].tolist())]
    assert len(titles(batch.plot(n=3))) == 3 and len(titles(opened[0].plot())) == 1
    few = opened.plot(n=4)
    assert titles(few) == [f"z {z:.3f}" for z in opened[:].z_spec[[0, 25, 49, 74]].tolist()]
    assert "75 objects" in few[0, 0].figure.get_suptitle()
    assert len(titles(opened.plot())) == 32 and len(titles(opened.plot(n=200))) == 75
    picture: Tensor = torch.from_numpy(np.asarray(axes[0, 0].images[0].get_array()))
    assert picture.shape == (16, 16, 3) and picture[8, 8].sum() > 3 * picture[0, 0].sum()


def test_a_plot_of_nothing_is_refused(dataset: Path, pyplot: object) -> None:
    opened = hp.open(dataset, device="cpu")
    with pytest.raises(BadInput, match="no object to draw"):
        opened[:0].plot()
    for n in (0, -1):
        with pytest.raises(BadInput, match=f"n {n}: must be at least 1"):
            opened.plot(n)
    with pytest.raises(BadInput, match="n 2.5: must be a whole number"):
        opened[:3].plot(2.5)  # type: ignore[arg-type]


def test_an_empty_dataset_has_no_objects(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "set", n=4, shard_rows=4)
    opened = replace(hp.open(folder, device="cpu"), manifest=replace(read_manifest(folder), shards=()))
    assert len(opened) == 0 and len(opened[:]) == 0 and list(opened) == []
    with pytest.raises(IndexError):
        opened[0]
