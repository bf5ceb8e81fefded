"""The Python and the commands of the how-to pages run."""

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from astropy.table import Table

import hpcphotoz
from hpcphotoz.__main__ import main
from hpcphotoz.config import Data
from hpcphotoz.data.format.extra import ExtraColumn
from hpcphotoz.data.format.index import index_folder
from hpcphotoz.data.format.manifest import STORAGE
from hpcphotoz.data.select.subset import Subset
from hpcphotoz.training.run.network import TrainedNetwork
from tests.helpers.datasets import load, make_dataset, make_stamps, write_stamps
from tests.helpers.pages import blocks, example, module, write_coadd
from tests.helpers.paths import ROOT
from tests.helpers.sources.sdss_files import DEC, RA, ingest_frames, write_set, write_table


def test_own_network_examples_run() -> None:
    torch.manual_seed(1)
    names: dict[str, object] = {}
    for block in blocks("docs/how-to/attack-own-network.md"):
        exec(block, names)
    images, adv, smallest = names["images"], names["adv"], names["smallest"]
    assert isinstance(images, torch.Tensor) and isinstance(adv, torch.Tensor)
    assert isinstance(smallest, torch.Tensor) and adv.shape == images.shape and len(smallest) == len(images)


def test_own_network_trains(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "docs/how-to/train-own-network.md"
    (tmp_path / "my_networks.py").write_text(example(page, "my_networks.py"))
    monkeypatch.syspath_prepend(tmp_path)
    command = next(line for line in (ROOT / page).read_text().splitlines() if "my_networks:resnet " in line)
    given = ["--data", str(dataset), "--out", str(tmp_path / "run"), "--run.max_steps", "2"]
    words = [word for word in shlex.split(command)[1:] if word not in ("--data", "data/train", "--out")]
    words.remove("runs/mine")
    assert main([*words, *given, "--device", "cpu"]) == 0
    network = hpcphotoz.load(tmp_path / "run", "cpu", trust_code=True)
    assert network.config.model.options == {"width": 64}
    assert network.pdf(torch.zeros(2, 5, 16, 16), torch.zeros(2)).shape == (2, 180)


@pytest.mark.slow
def test_exported_networks_are_used_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("safetensors", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    page = "docs/how-to/export-network.md"
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^hpcphotoz (.*)", (ROOT / page).read_text(), re.MULTILINE)
    assert main(["simulate", "data/test", "--n", "24"]) == 0
    training = "--run.max_steps 1 --run.global_batch 8 --model.width 8 --data.validation 0.3 --device cpu"
    words = ["train", "adversarial", "--data", "data/test", "--out", "runs/robust", *training.split()]
    assert main(words) == 0
    for command in commands:
        short = ["--limit", "4", "--steps", "1", "--device", "cpu"] if "evaluate" in command else []
        assert main([*shlex.split(command), *short]) == 0
    for module_, name in ((torch, "load"), (pickle, "loads")):  # no file holds a pickle, as the page says
        monkeypatch.delattr(module_, name)
    names: dict[str, object] = {}
    for block in blocks(page):
        exec(block, names)
    stamps, pdf, logits = names["stamps"], names["pdf"], names["logits"]
    network = names["network"]
    assert isinstance(network, TrainedNetwork) and isinstance(stamps, torch.Tensor)
    wanted = network.pdf(stamps, torch.zeros(3))
    torch.testing.assert_close(pdf, wanted)
    assert isinstance(logits, np.ndarray)
    torch.testing.assert_close(torch.from_numpy(logits).softmax(1), wanted)


@pytest.mark.slow
def test_several_datasets_train_by_the_commands_as_printed(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/several-datasets.md").read_text()
    (commands,) = re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
    done = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "every global batch of 32 objects holds 22 of data/shallow, 10 of data/deep" in done.stdout


def test_own_hdf5_example_is_indexed(tmp_path: Path) -> None:
    write_shard = module(blocks("docs/how-to/own-hdf5.md")[0], tmp_path, "own_hdf5").write_shard
    rng, ones = np.random.default_rng(0), np.ones(4)
    folder = tmp_path / "mine"
    folder.mkdir()
    images = rng.normal(size=(4, 3, 16, 16))
    write_shard(
        folder / "shard-00000.hdf5", images, 0.1 * ones, ones, np.arange(4), np.ones((4, 3)), ones, ones
    )
    header = index_folder(folder).header
    assert header.bands == ("g", "r", "z") and header.extra == (ExtraColumn("petro_r", "float32", "mag"),)


def test_survey_script_cuts_stamps(tmp_path: Path) -> None:
    path = tmp_path / "image.fits"
    sky = write_coadd(path)
    for band in "grz":
        (tmp_path / f"image-{band}.fits").write_bytes(path.read_bytes())
    rows = {"id": [5, 6], "ra": sky[:, 0], "dec": sky[:, 1], "z": [0.1, 0.2], "ebv": [0.02, 0.03]}
    Table(rows).write(tmp_path / "objects.fits")
    script = module(blocks("docs/how-to/survey-fits.md")[0], tmp_path, "survey")
    script.cut(tmp_path, tmp_path / "objects.fits", tmp_path / "d")
    assert (tmp_path / "d" / "manifest.json").is_file()
    with h5py.File(next((tmp_path / "d").glob("shard-00000.*5"))) as file:
        assert file["object_id"][:].tolist() == [5]
        assert file["images"][0].max() == 7


@pytest.mark.parametrize("storage", STORAGE)
def test_h5py_alone_reads_fluxes_as_the_page_on_shards_does(tmp_path: Path, storage: str) -> None:
    (code,) = blocks("docs/explanation/shard-format.md")
    stamps = make_stamps(20)
    stamps.images[3, 1, 4, 4], stamps.images[4, 2, 5, 5] = 900, -700  # thousands of sky sigmas
    folder = write_stamps(tmp_path / "d", stamps, storage=storage)
    found = module(code, tmp_path, "shards").read_flux(folder / "shard-00000.hdf5", 2, 16)
    np.testing.assert_allclose(found, load(folder).images[2:16], rtol=3e-7)  # which is rounded twice
    with h5py.File(folder / "shard-00000.hdf5") as file:
        said = file["images"].attrs.get("flux", b"").decode()
    assert all(word in said for word in ("image_unit", "16384", "256")) == (storage == "int16")


@pytest.mark.slow
def test_own_data_becomes_pdfs_by_the_commands_as_printed(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/my-own-data.md").read_text()
    code, guess, corrected, rest = re.findall(
        r"^```(?:python|bash|toml)\n(.*?)^```", page, re.DOTALL | re.MULTILINE
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}

    def run(words: list[str]) -> None:
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr

    run([sys.executable, "-c", code])
    run(["bash", "-e", "-c", guess])
    guessed, wanted = tomllib.loads((tmp_path / "map.toml").read_text()), tomllib.loads(corrected)
    assert {key for key in wanted if guessed[key] != wanted[key]} == {"bands", "pixel_scale", "unit"}
    (tmp_path / "map.toml").write_text(corrected)
    run(["bash", "-e", "-c", rest])
    qp = pytest.importorskip("qp")
    ensemble = qp.read(str(tmp_path / "pz.hdf5"))
    with h5py.File(tmp_path / "survey.hdf5") as file:
        assert sorted(ensemble.ancil["object_id"]) == sorted(file["SOURCE_ID"][:])
    assert np.isfinite(ensemble.mode(np.linspace(0, 1.2, 121))).all()


@pytest.mark.slow
def test_splits_by_the_commands_as_printed(tmp_path: Path) -> None:
    """A field of 30 galaxies, each twice in the table, half an arcsecond apart."""
    rng = np.random.default_rng(0)
    places = [(RA + ra, DEC + dec) for ra, dec in rng.uniform(-0.007, 0.007, (30, 2))]
    write_set(tmp_path / "frames", places)
    rows: list[dict[str, object]] = [
        {"object_id": 100 * copy + k, "ra": ra + copy * 0.5 / 3600, "dec": dec, "z_spec": 0.1 + 0.001 * k}
        for copy in (0, 1)
        for k, (ra, dec) in enumerate(places)
    ]
    write_table(tmp_path / "objects.csv", rows)
    ingest_frames(tmp_path / "data" / "mine", tmp_path / "frames", tmp_path / "objects.csv", stamp=16)
    make_dataset(tmp_path / "data" / "survey", n=120, shard_rows=60)
    ids = np.array([row["object_id"] for row in rows[::-1]] + [7000])  # one that the dataset does not have
    with h5py.File(tmp_path / "mine.hdf5", "w") as file:
        file["id"], file["images"] = ids, rng.normal(size=(len(ids), 3, 16, 16))
        file["z"] = np.full(len(ids), 0.1)
    keys = 'images = "images"\nbands = ["g", "r", "z"]\npixel_scale = 0.262\nobject_id = "id"\nz_spec = "z"'
    (tmp_path / "map.toml").write_text(keys)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
    page = (ROOT / "docs/how-to/splits.md").read_text()
    for language, code in re.findall(r"^```(python|bash)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        words = [sys.executable, "-c", code] if language == "python" else ["bash", "-e", "-c", code]
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    stamps = load(tmp_path / "data" / "grouped")
    subset = Subset.from_options(
        Data(split_by="group", test=0.2), "test", tuple("ugriz"), (ExtraColumn("group", "int64"),)
    )
    test = subset({"group": stamps.extra["group"]})
    twins = {int(i): bool(t) for i, t in zip(stamps.object_id, test, strict=True)}
    assert all(twins[k] == twins[100 + k] for k in range(30)) and 0 < test.sum() < len(test)
    arrays = load(tmp_path / "data" / "grouped-arrays")
    group = dict(zip(stamps.object_id.tolist(), stamps.extra["group"].tolist(), strict=True))
    assert arrays.object_id.tolist() == ids.tolist() and len(group) == 60
    assert arrays.extra["group"].tolist() == [*(group[one] for one in ids[:-1].tolist()), 7000]
    with h5py.File(tmp_path / "pz-grouped.hdf5") as file:
        assert file["ancil/object_id"][:].tolist() == stamps.object_id[test].tolist()
        assert json.loads(file.attrs["dataset"])["subset"]["split"]["by"] == "group"
