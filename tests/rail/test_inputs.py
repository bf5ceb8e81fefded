"""What the stages are given: paths in any form, and refusals in one line before anything is computed."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

pytest.importorskip("rail.core", reason="needs pz-rail-base: pip install 'hpcphotoz[rail]'")

from hpcphotoz.data.format.manifest import Header, read_manifest
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.errors import BadInput
from hpcphotoz.predict import predict
from hpcphotoz.rail.table import ImageTable
from hpcphotoz.training.run.network import load_network
from rail.hpcphotoz import HpcPhotozEstimator, HpcPhotozInformer, HpcPhotozLabels, ImageHandle
from tests.helpers.datasets import make_dataset, make_stamps
from tests.rail.conftest import columns


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages write into the working folder."""
    monkeypatch.chdir(tmp_path)


def estimate(model: Path, data: object, **options: Any) -> Any:
    """The ensemble of an estimator."""
    options = {"name": "here", "model": str(model), "device": "cpu", "chunk_size": 40, **options}
    return HpcPhotozEstimator.make_stage(**options).estimate(data).data


def refused(model: Path, data: object, message: str, **options: Any) -> None:
    """Check that an estimator refuses an input and leaves no file."""
    with pytest.raises(BadInput, match=message):
        estimate(model, data, **options)
    assert not list(Path().glob("*output*"))


def table_file(path: Path, group: str = "", **changed: Any) -> Path:
    """An HDF5 file with the columns of nine objects, some of them replaced; None: left out."""
    table = {**columns(make_stamps(9)), **changed}
    with h5py.File(path, "w") as file:
        for name, values in table.items():
            if values is not None:
                file[f"{group}/{name}"] = values
    return path


def test_paths_are_taken_in_every_form(
    model: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = estimate(model, ImageTable(dataset)).objdata["pdfs"]
    monkeypatch.setenv("WHERE", str(dataset))
    forms: list[object] = [dataset, str(dataset / "manifest.json"), "$WHERE"]
    for given in (*forms, ImageHandle("input", path="$WHERE")):
        np.testing.assert_array_equal(estimate(model, given).objdata["pdfs"], wanted)
    labels = HpcPhotozLabels.make_stage(name="truth")("$WHERE").data
    assert len(labels["redshift"]) == 75
    table_file(tmp_path / "t.hdf5")
    monkeypatch.setenv("TABLE", str(tmp_path / "t"))
    assert estimate(model, "$TABLE.hdf5").npdf == 9


def test_what_is_no_input_is_refused(model: Path, dataset: Path, tmp_path: Path) -> None:
    refused(model, None, "^here: no input: give the folder of a dataset")
    refused(model, "nowhere", "^here: nowhere: no such file or folder$")
    refused(model, tmp_path, "no manifest.json")
    refused(model, [1, 2], "^here: the input is a list: want a table, or the path of a dataset$")
    refused(model, table_file(tmp_path / "t.h5"), r"t\.h5: RAIL reads images only from files named \*\.hdf5")
    (tmp_path / "text.hdf5").write_text("no HDF5")
    refused(model, "text.hdf5", "^text.hdf5: cannot be read as HDF5")
    refused(model, dataset, "^here: chunk_size 0: want 1 or more", chunk_size=0)
    with pytest.raises(BadInput, match=r"^truth: reads a dataset, not .*text\.hdf5: name its folder"):
        HpcPhotozLabels.make_stage(name="truth")("text.hdf5")


def test_inputs_without_objects_are_refused(model: Path, tmp_path: Path) -> None:
    none = {name: values[:0] for name, values in columns(make_stamps(9)).items()}
    refused(model, none, "^here: the table in memory holds no objects$")
    refused(model, table_file(tmp_path / "none.hdf5", **none), r"none\.hdf5 holds no objects$")
    with DatasetWriter(tmp_path / "d", Header(tuple("ugriz"), 16, 0.396), 30, {}):
        pass
    refused(model, tmp_path / "d", "d holds no objects$")
    with pytest.raises(BadInput, match="d holds no objects$"):
        HpcPhotozLabels.make_stage(name="truth")(tmp_path / "d")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": None}, r"t\.hdf5: has no column 'images', only dec, ebv"),
        ({"ebv": None}, r"t\.hdf5: has no column 'ebv', only dec, images"),
        ({"ebv": np.zeros(8)}, r"t\.hdf5: ebv of shape \(8,\) for 9 images$"),
        ({"images": np.zeros((9, 5, 16))}, r"images of shape \(9, 5, 16\): want \(objects, bands, y, x\)"),
        ({"images": np.zeros((9, 5, 8, 8))}, r"t\.hdf5: stamps of 8 pixels but run 'small' takes 16"),
        ({"images": np.zeros((9, 4, 16, 16))}, r"images of shape \(4, 16, 16\) but run 'small' takes"),
        ({"images": np.full((9, 5, 16, 16), np.inf)}, "the input: row 0 has a pixel that is not finite"),
    ],
)
def test_files_that_lack_something_are_refused(
    model: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        estimate(model, table_file(tmp_path / "t.hdf5", **changed))
    assert not Path("output_here.hdf5").exists()


def test_the_group_of_the_columns_is_named(model: Path, tmp_path: Path) -> None:
    file = table_file(tmp_path / "t.hdf5", group="photometry")
    refused(model, file, r"t\.hdf5: has no column 'images', only groups$")
    refused(
        model, file, r"has no group 'other', only photometry: set hdf5_groupname$", hdf5_groupname="other"
    )
    assert estimate(model, file, hdf5_groupname="photometry").npdf == 9


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, -999.0, 101.0])
def test_an_unknown_ebv_is_refused_by_object(model: Path, tmp_path: Path, value: float) -> None:
    stamps = make_stamps(9)
    ebv = stamps.ebv.copy()
    ebv[4] = value
    message = f"^object {stamps.object_id[4]}: {value:g} in ebv: E.B-V. is not known"
    refused(model, {**columns(stamps), "ebv": ebv}, message)
    refused(model, table_file(tmp_path / "t.hdf5", ebv=ebv), message)
    refused(model, {**columns(stamps), "ebv": ebv[:5]}, r"^ebv of shape \(5,\) and float32 for 9 images")


def test_another_pixel_scale_is_refused(model: Path, tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "d", Header(tuple("ugriz"), 16, 0.2), 30, {}) as writer:
        writer.append(make_stamps(30))
    message = r"pixels of 0\.2 arcsec but run 'small' takes 0\.396: resample the images"
    refused(model, tmp_path / "d", message)
    shard = tmp_path / "one.hdf5"
    shard.write_bytes((tmp_path / "d" / read_manifest(tmp_path / "d").shards[0].file).read_bytes())
    refused(model, shard, message)
    with pytest.raises(BadInput, match=message):
        predict([load_network(model)], tmp_path / "d", tmp_path / "pz.hdf5")
    with DatasetWriter(tmp_path / "near", Header(tuple("ugriz"), 16, 0.39612), 30, {}) as writer:
        writer.append(make_stamps(30))  # the same scale, from a WCS
    assert estimate(model, tmp_path / "near").npdf == 30


def test_a_model_of_another_name_is_refused_before_training(dataset: Path) -> None:
    stage = HpcPhotozInformer.make_stage(name="here", model="net.pkl", input=str(dataset))
    with pytest.raises(
        BadInput, match=r"net\.pkl: models are safetensors files: name it .*net\.safetensors$"
    ):
        stage.inform(dataset)
    with pytest.raises(BadInput, match="^here: training reads a dataset, not nothing: name its folder"):
        HpcPhotozInformer.make_stage(name="here").inform(None)
    with pytest.raises(BadInput, match="^here: training reads a dataset, not a table in memory"):
        HpcPhotozInformer.make_stage(name="here").inform(columns(make_stamps(9)))
    assert list(Path().iterdir()) == []


def test_a_dataset_of_other_bands_is_refused(model: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "gri", n=9, shard_rows=9, bands="griz")
    refused(model, other, "gri: holds bands g,r,i,z but run 'small' takes u,g,r,i,z")
    shard = tmp_path / "one.hdf5"
    shard.write_bytes((other / read_manifest(other).shards[0].file).read_bytes())
    refused(model, shard, r"one\.hdf5: holds bands g,r,i,z but")
