"""Runs of earlier versions, with old names of options, still resume, predict and evaluate."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import pytest

import hpcphotoz
from hpcphotoz.__main__ import main
from hpcphotoz.config.renamed import RENAMED
from hpcphotoz.training.run import checkpoint
from tests.helpers import ranks
from tests.helpers.user_networks import NAME

SMALL: dict[str, Any] = {
    "width": 8,
    "bins": 20,
    "global_batch": 16,
    "precision": "fp32",
    "learning_rate": 3e-3,
}


def in_old_names(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A configuration like those of the version that had one section for all of training."""
    old_of = {new: old for old, new in RENAMED.items()}
    old: dict[str, dict[str, Any]] = {}
    for section, keys in tree.items():
        for key, value in keys.items():
            if f"{section}.{key}" not in old_of and section not in ("model", "data", "attack"):
                continue  # an option that is newer
            name, _, old_key = old_of.get(f"{section}.{key}", f"{section}.{key}").partition(".")
            old.setdefault(name, {})[old_key] = value
    old["training"] |= {"merged": "auto", "padded": "off"}  # options that are gone
    return old


@pytest.fixture
def old_run(dataset: Path, tmp_path: Path) -> Path:
    run = hpcphotoz.train("adversarial", dataset, tmp_path / "run", device="cpu", max_steps=3, **SMALL)
    (path,) = (run / "checkpoints").iterdir()
    state = checkpoint.load(path)
    state["config"] = in_old_names(state["config"])
    checkpoint.save(run, {name: value for name, value in state.items() if name != "format"}, 1)
    tree = in_old_names(tomllib.loads((run / "config.toml").read_text()))
    assert set(tree) == {"model", "data", "training", "attack"} and "fraction" in tree["attack"]
    lines = [
        f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in tree[name].items()) for name in tree
    ]
    (run / "config.toml").write_text("\n".join(lines))
    return run


def test_an_old_run_resumes_under_todays_names(old_run: Path, dataset: Path, tmp_path: Path) -> None:
    options = {**SMALL, "max_steps": 6}
    hpcphotoz.train("adversarial", dataset, old_run, device="cpu", **options)
    network = hpcphotoz.load(old_run, device="cpu")
    assert network.step == 6 and network.config.adversarial.fraction > 0
    begun = hpcphotoz.train("adversarial", dataset, tmp_path / "whole", device="cpu", **options)
    ours, theirs = (ranks.curve(run) for run in (old_run, begun))
    assert (old_run / "config.toml").read_text() == (begun / "config.toml").read_text()
    assert ours == theirs


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_an_old_run_predicts_and_is_evaluated(old_run: Path, dataset: Path, tmp_path: Path) -> None:
    words = ["--data", str(dataset), "--device", "cpu", "--out"]
    assert main(["predict", str(old_run), *words, str(tmp_path / "pz.hdf5")]) == 0
    with h5py.File(tmp_path / "pz.hdf5") as file:
        assert file["data/pdfs"].shape == (75, 20)
    assert main(["attack", str(old_run), *words, str(tmp_path / "adv"), "--steps", "1"]) == 0
    evaluated = ["--limit", "5", "--eps", "0.1", "--attacks", "fgsm"]
    assert main(["evaluate", str(old_run), *words, str(tmp_path / "report"), *evaluated]) == 0


def test_an_old_run_of_a_users_network_resumes_and_predicts(dataset: Path, tmp_path: Path) -> None:
    """Its configuration has a width, which its network never took; the copy of its source is model.py."""
    options = {**SMALL, "name": f"{NAME}:mixer"}
    del options["width"]
    run = hpcphotoz.train("adversarial", dataset, tmp_path / "run", device="cpu", max_steps=3, **options)
    (path,) = (run / "checkpoints").iterdir()
    state = checkpoint.load(path)
    state["config"]["model"]["width"] = 32
    checkpoint.save(run, {name: value for name, value in state.items() if name != "format"}, 1)
    text = (run / "config.toml").read_text()
    assert "\nwidth = 48\n" in text
    (run / "config.toml").write_text(text.replace("\nwidth = 48\n", "\nwidth = 32\n"))
    (run / "model.py.txt").rename(run / "model.py")
    for steps in (4, 5):
        hpcphotoz.train("adversarial", dataset, run, device="cpu", max_steps=steps, **options)
        assert hpcphotoz.load(run, "cpu", trust_code=True).step == steps
    assert not (run / "model.py.txt").exists() and "\nwidth = 48\n" in (run / "config.toml").read_text()
    out = tmp_path / "pz.hdf5"
    words = ["predict", run, "--trust-code", "--data", dataset, "--device", "cpu", "--out", out]
    assert main([str(word) for word in words]) == 0
