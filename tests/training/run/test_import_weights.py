"""`import-weights` makes a run folder that loads, and refuses other files in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import hpcphotoz
from hpcphotoz.__main__ import main
from hpcphotoz.config import Model
from hpcphotoz.models.build import build
from tests.helpers.commands import fails


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    state = build(Model(name="cnn"), stamp=64, scale=(1.0,) * 5).state_dict()
    del state["normalise.scale"]
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save({"epoch": 3, "model_state_dict": state}, path)
    return path


def test_the_run_folder_loads(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["import-weights", str(weights), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: the weights of Campagne's cnn with E(B-V), 180 bins\n"
    network = hpcphotoz.load(out, "cpu")
    assert (network.bands, network.stamp, network.step) == (("u", "g", "r", "i", "z"), 64, 0)
    saved = torch.load(weights, weights_only=True)["model_state_dict"]
    assert all(torch.equal(network.module.state_dict()[name], saved[name]) for name in saved)
    assert network.pdf(torch.randn(2, 5, 64, 64), torch.zeros(2)).shape == (2, 180)
    record = json.loads((out / "provenance.json").read_text())["imported"]
    assert record["code"] == "campagne" and record["file"] == str(weights.resolve())
    fails(capsys, ["import-weights", weights, "--out", out], "is not empty")


def test_other_files_are_refused(
    weights: Path, tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    (tmp_path / "torn.pt").write_bytes(weights.read_bytes()[:1000])
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "w.txt").write_text("x")
    for name, says in (
        ("x.npz", "names of neither public code (x ...)"),
        ("torn.pt", "not a state dict"),
        ("list.pth", "holds no state dict"),
        ("w.txt", "want a state dict of torch (*.pt, *.pth) or arrays by name (*.npz)"),
        ("absent.pt", "no such file"),
    ):
        fails(capsys, ["import-weights", tmp_path / name, "--out", tmp_path / "run"], says)
    assert not (tmp_path / "run").exists()
    fails(capsys, ["import-weights", weights, "--out", dataset], "")
