"""RAIL's stages on datasets: the PDFs of `predict`, streamed; inputs of any form that RAIL has; refusals."""

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

pytest.importorskip("rail.core", reason="needs pz-rail-base: pip install 'hpcphotoz[rail]'")

from rail.core.data import QPHandle
from rail.estimation.algos.uniform_binning import UniformBinningClassifier

from hpcphotoz.data.format.manifest import Header, read_manifest
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.errors import BadInput
from hpcphotoz.predict import predict
from hpcphotoz.predict.columns import ANCIL
from hpcphotoz.rail.table import ImageTable
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.run.network import load_network
from rail.hpcphotoz import HpcPhotozEstimator, HpcPhotozInformer, HpcPhotozLabels, ImageHandle
from tests.helpers.data.extra import extra_stamps, write_extra_dataset
from tests.helpers.datasets import load, make_dataset, make_stamps
from tests.helpers.user_networks import NAME
from tests.rail.conftest import SMALL, columns

# The network sees other batches than in `predict`: float32 sums in another order, 1e-7 of a probability.
SAME: Any = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages write into the working folder."""
    monkeypatch.chdir(tmp_path)


def estimate(model: Path | str, data: object, **options: Any) -> Any:
    """The ensemble of an estimator; `data`: a path, or a table in memory."""
    options = {"name": "here", "model": str(model), "device": "cpu", "chunk_size": 40, **options}
    given = ImageHandle("input", path=str(data)) if isinstance(data, Path) else data
    return HpcPhotozEstimator.make_stage(**options).estimate(given).data


def test_the_estimator_gives_what_predict_writes(dataset: Path, model: Path, tmp_path: Path) -> None:
    found = estimate(model, dataset)
    predict([load_network(model)], dataset, tmp_path / "pz.hdf5")
    with h5py.File("output_here.hdf5") as ours, h5py.File("pz.hdf5") as theirs:
        np.testing.assert_allclose(ours["data/pdfs"], theirs["data/pdfs"], **SAME)
        assert ours["data/pdfs"].dtype == theirs["data/pdfs"].dtype == np.float32
        np.testing.assert_array_equal(ours["meta/bins"], theirs["meta/bins"])
        assert set(ours["ancil"]) == {*ANCIL, "distribution_type"}
        for name in ANCIL:
            np.testing.assert_allclose(ours["ancil"][name], theirs["ancil"][name], **SAME)
        np.testing.assert_array_equal(ours["ancil/id"], load(dataset).object_id)
        np.testing.assert_array_equal(ours["ancil/redshift"], load(dataset).z_spec)
    np.testing.assert_allclose(np.squeeze(found.mean()), found.ancil["zmean"], rtol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output_here.hdf5", "pz.hdf5"]


def test_a_run_folder_and_a_manifest_serve_as_well(dataset: Path, model: Path, small_run: Path) -> None:
    wanted = estimate(model, dataset).objdata["pdfs"]
    np.testing.assert_array_equal(estimate(small_run, dataset / "manifest.json").objdata["pdfs"], wanted)


@pytest.mark.parametrize("storage", ["float32", "float16", "int16"])
def test_inputs_of_every_form_give_the_same(model: Path, tmp_path: Path, storage: str) -> None:
    stamps = make_stamps(30)
    with DatasetWriter(tmp_path / "d", Header(tuple("ugriz"), 16, 0.396, storage), 30, {}) as writer:
        writer.append(stamps)
    wanted = estimate(model, tmp_path / "d")
    shard = tmp_path / "one.hdf5"
    shard.write_bytes((tmp_path / "d" / read_manifest(tmp_path / "d").shards[0].file).read_bytes())
    for given in (shard, ImageTable(tmp_path / "d"), columns(load(tmp_path / "d"))):
        found = estimate(model, given)
        np.testing.assert_allclose(found.objdata["pdfs"], wanted.objdata["pdfs"], **SAME)
        np.testing.assert_array_equal(found.ancil["id"], stamps.object_id)
    with h5py.File(tmp_path / "grouped.hdf5", "w") as file:
        for name in ("images", "ebv"):
            file[f"photometry/{name}"] = columns(load(tmp_path / "d"))[name]
    found = estimate(model, tmp_path / "grouped.hdf5", hdf5_groupname="photometry")
    np.testing.assert_allclose(found.objdata["pdfs"], wanted.objdata["pdfs"], **SAME)
    assert "id" not in found.ancil and "redshift" not in found.ancil


def test_names_of_objects_may_be_text(model: Path) -> None:
    stamps = make_stamps(9)
    names = np.array([b"galaxy %d" % k for k in range(9)])  # as h5py reads text of fixed length
    table = {"images": stamps.images, "ebv": stamps.ebv, "object_id": names, "redshift": stamps.z_spec}
    found = estimate(model, table, redshift_col="redshift")
    with h5py.File("output_here.hdf5") as file:
        assert file["ancil/id"][:].tolist() == names.tolist()
    np.testing.assert_array_equal(found.ancil["redshift"], stamps.z_spec)


def test_point_estimates_and_summary_statistics_of_rail(dataset: Path, model: Path) -> None:
    options = {"calc_summary_stats": True, "calculated_point_estimates": ["zmode", "zmean", "zmedian"]}
    found = estimate(model, dataset, **options, recompute_point_estimates=True)
    ours = estimate(model, dataset).ancil
    # RAIL's grid is that of the bins' centres: its mode is the centre of the most probable bin, as ours.
    for name in ("zmode", "zmean"):
        np.testing.assert_allclose(np.squeeze(found.ancil[name]), ours[name], rtol=1e-5)
    np.testing.assert_allclose(np.squeeze(found.ancil["zmedian"]), ours["zmedian"], rtol=1e-4)
    np.testing.assert_allclose(np.squeeze(found.ancil["z_mode"]), ours["zmode"], rtol=1e-5)


def test_a_stage_of_rail_takes_its_names_from_a_file_of_predict(dataset: Path, model: Path) -> None:
    predict([load_network(model)], dataset, Path("pz.hdf5"))
    options = {"name": "bins", "zbin_edges": [0.0, 0.1, 0.2, 0.4], "n_tom_bins": 3, "chunk_size": 20}
    stage = UniformBinningClassifier.make_stage(object_id_col="object_id", **options)
    found = stage.classify(QPHandle("input", path="pz.hdf5")).read(force=True)
    np.testing.assert_array_equal(found["object_id"], load(dataset).object_id)
    with h5py.File("pz.hdf5") as file:
        zmode = file["ancil/zmode"][:]
    np.testing.assert_array_equal(found["tomo_bin_index"], np.digitize(zmode, [0.1, 0.2]))


def test_symmetries_are_averaged_as_in_predict(dataset: Path, model: Path, tmp_path: Path) -> None:
    found = estimate(model, dataset, tta=True)
    predict([load_network(model)], dataset, tmp_path / "pz.hdf5", tta=True)
    with h5py.File("pz.hdf5") as theirs:
        np.testing.assert_allclose(found.ancil["zmean"], theirs["ancil/zmean"], **SAME)


def test_memory_does_not_grow_with_the_dataset(model: Path, tmp_path: Path) -> None:
    def peak(n: int) -> int:
        data = tmp_path / str(n)
        if not data.exists():
            make_dataset(data, n=n, shard_rows=n)
        tracemalloc.start()
        HpcPhotozEstimator.make_stage(
            name=f"n{n}", model=str(model), input=str(data), device="cpu", chunk_size=48
        ).run()
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(48)  # imports and caches
    # A second chunk of 48 stamps in memory would add 245 kB, and the dataset read whole 740 kB; labels,
    # checksums and garbage are 100 bytes each.
    assert peak(192) - peak(48) < 100_000


def test_the_collections_of_rail_leave_out_what_was_there(
    model: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: list[int] = []
    monkeypatch.setattr("rail.estimation.estimator.gc.collect", lambda: frozen.append(gc.get_freeze_count()))
    estimate(model, dataset)
    assert len(frozen) == 2 and min(frozen) > 10_000 and gc.get_freeze_count() == 0


def test_training_gives_the_network_of_the_run(dataset: Path) -> None:
    options = {"name": "small", "training": SMALL, "device": "cpu"}
    handle = HpcPhotozInformer.make_stage(**options).inform(ImageHandle("input", path=str(dataset)))
    assert Path("model_small.safetensors").is_file() and not list(Path().glob("inprogress*"))
    saved = checkpoint.load(checkpoint.paths(Path("model_small"))[0])
    for name, values in load_network("model_small.safetensors").module.state_dict().items():
        assert values.equal(saved["model"][name]) and values.equal(handle.data.module.state_dict()[name])


def test_a_network_of_the_user_is_loaded_only_if_it_is_trusted(dataset: Path) -> None:
    training = {**SMALL, "name": f"{NAME}:mixer", "max_steps": 1}
    del training["width"]
    stage = HpcPhotozInformer.make_stage(name="own", training=training, device="cpu")
    stage.inform(ImageHandle("input", path=str(dataset)))
    for model in ("model_own.safetensors", "model_own"):
        with pytest.raises(BadInput, match="trust_code=True in Python and RAIL"):
            estimate(model, dataset)
        assert estimate(model, dataset, trust_code=True).npdf == 75


def test_nothing_is_left_where_the_model_is_only_returned(dataset: Path, tmp_path: Path) -> None:
    stage = HpcPhotozInformer.make_stage(name="x", training=SMALL, device="cpu", output_mode="return")
    network = stage.inform(ImageTable(dataset)).data
    assert network.step == 4 and list(tmp_path.iterdir()) == []
    options = {"device": "cpu", "output_mode": "return", "chunk_size": 20}
    found = HpcPhotozEstimator.make_stage(name="y", model=network, **options).estimate(ImageTable(dataset))
    assert found.data.npdf == 75 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chunk_size", [75, 38, 37, 25])
def test_returned_estimates_have_one_axis_in_any_number_of_chunks(
    dataset: Path, model: Path, chunk_size: int
) -> None:
    written = estimate(model, dataset).ancil
    found = estimate(model, ImageTable(dataset), chunk_size=chunk_size, output_mode="return").ancil
    assert set(found) == {*ANCIL, "distribution_type"}
    for name in ANCIL:
        assert found[name].shape == (75,)
        np.testing.assert_allclose(found[name], written[name], **SAME)
    assert found["distribution_type"].shape == (75,)


def test_labels_are_in_the_order_of_the_pdfs(dataset: Path) -> None:
    whole = load(dataset)
    for mode in ("default", "return"):
        stage = HpcPhotozLabels.make_stage(name="truth", output_mode=mode)
        found = stage(ImageHandle("input", path=str(dataset))).data
        assert set(found) == {"object_id", "redshift", "ebv", "ra", "dec"}
        np.testing.assert_array_equal(found["redshift"], whole.z_spec)
        np.testing.assert_array_equal(found["object_id"], whole.object_id)


def test_extra_columns_are_among_the_labels(tmp_path: Path) -> None:
    folder, stamps = write_extra_dataset(tmp_path / "d", 20), extra_stamps(20)
    for mode in ("default", "return"):
        stage = HpcPhotozLabels.make_stage(name="truth", output_mode=mode)
        found = stage(ImageHandle("input", path=str(folder))).data
        assert {"petro_r", "clean", "redshift"} <= set(found) and not {"variance", "mask"} & set(found)
        for name in set(found) & set(stamps.extra):
            np.testing.assert_array_equal(found[name], stamps.extra[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "the input has no column 'images', only .*ebv"),
        ({"ebv": None}, "the input has no column 'ebv'"),
        ({"images": np.zeros((9, 4, 16, 16))}, r"images of shape \(4, 16, 16\) but run 'small' takes"),
        ({"images": np.full((9, 5, 16, 16), np.nan)}, "the input: row 0 has a pixel that is not finite"),
    ],
)
def test_tables_that_the_network_cannot_take_are_refused(
    model: Path, change: dict[str, Any], message: str
) -> None:
    table = {**columns(make_stamps(9)), **change}
    with pytest.raises(BadInput, match=message):
        estimate(model, {name: values for name, values in table.items() if values is not None})


def test_pixels_of_a_shard_are_compared_with_its_checksums(
    model: Path, dataset: Path, tmp_path: Path
) -> None:
    shard = tmp_path / "one.hdf5"
    shard.write_bytes((dataset / read_manifest(dataset).shards[0].file).read_bytes())
    with h5py.File(shard, "r+") as file:
        file["images"][25, 0, 0, 0] += 1
    with pytest.raises(BadInput, match="object 197975: pixels differ from the checksum"):
        estimate(model, shard)
    assert not Path("output_here.hdf5").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "standart"}, "standart: not a readable TOML file nor a recipe"),
        ({"training": {"epoch": 3}}, r"here: training: unknown option epoch \(did you mean epochs\?\)"),
        ({"input": "nowhere"}, "here: training reads a dataset, not nowhere: name its folder"),
        ({"input": "."}, "no manifest.json"),
    ],
)
def test_training_is_refused_before_it_begins(options: dict[str, Any], message: str, dataset: Path) -> None:
    stage = HpcPhotozInformer.make_stage(**{"name": "here", "input": str(dataset), **options})
    with pytest.raises(BadInput, match=message):
        stage.validate()
