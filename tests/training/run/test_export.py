"""Exported files hold the network, and the card beside them says what it is."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import hpcphotoz
from hpcphotoz.__main__ import main
from hpcphotoz.training.trainer import train
from tests.helpers.commands import fails
from tests.helpers.training.runs import config
from tests.helpers.user_networks import NAME

NETWORKS = ["compact", "cnn", "inception", f"{NAME}:resnet", f"{NAME}:vit", f"{NAME}:mixer"]

SLOW = ["cnn", "inception", f"{NAME}:mixer"]  # as ONNX


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "run"
    train(config(epochs=2), dataset, out)  # two validations
    return out


@pytest.fixture(scope="module", params=NETWORKS)
def every_run(
    request: pytest.FixtureRequest, run: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of each network."""
    if request.param == "compact":
        return run
    out = tmp_path_factory.mktemp("export") / "run"
    train(config(name=request.param, max_steps=1, fraction=0.0), dataset, out)
    return out


def inputs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 5, 16, 16, generator=generator), torch.rand(n, generator=generator)


def export(*words: object) -> None:
    assert main(["export", *map(str, words)]) == 0


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("something was unpickled")


def test_the_safetensors_file_loads_and_the_card_says_what_it_is(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    report, out = tmp_path / "report", tmp_path / "net.safetensors"
    words = ["evaluate", run, "--data", dataset, "--out", report, "--device", "cpu"]
    assert main([str(word) for word in [*words, "--steps", 2, "--eps", 0.2, "--limit", 16]]) == 0
    capsys.readouterr()
    export(run, out, "--report", report)
    theirs = hpcphotoz.load(run, "cpu")
    assert capsys.readouterr().out == f"{out}: compact of run at step {theirs.step}; {out}.json\n"
    ours = hpcphotoz.load(out, "cpu")
    assert torch.equal(ours.pdf(*inputs(3)), theirs.pdf(*inputs(3)))
    card = json.loads((tmp_path / "net.safetensors.json").read_text())
    assert card["file"] == "net.safetensors" and card["name"] == "run" and card["source"] is None
    assert card["parameters"] == sum(tensor.numel() for tensor in theirs.module.parameters())
    assert card["input"]["images"]["bands"] == list("ugriz") and card["input"]["images"]["stamp"] == 16
    training = card["training"]
    assert training["data"] == str(dataset.resolve()) and training["steps"] == theirs.step
    assert training["manifest_sha256"] == theirs.manifest_sha256
    assert training["eps_sky_sigma"] == theirs.config.attack.eps == training["attack"]["eps"] > 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert card["validation"] == [line for line in lines if line.get("part") == "validation"][-1]
    summary = json.loads((report / "metrics.json").read_text())
    assert card["evaluation"]["robustness"] == summary["robustness_curves"]["run"]
    assert card["evaluation"]["metrics"] == summary["run"]
    # The file, without the folder, can be exported again; the facts of the folder are not in it.
    export(out, tmp_path / "again.pt2")
    again = json.loads((tmp_path / "again.pt2.json").read_text())
    assert again["training"] == {**training, "data": None} and again["validation"] is None


def test_the_exported_program_computes_the_same_for_any_number_of_images(
    every_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "net.pt2"
    export(every_run, out, "--trust-code")
    network = hpcphotoz.load(every_run, "cpu", trust_code=True)
    with zipfile.ZipFile(out) as archive:
        names = [name for name in archive.namelist() if name.endswith("_config.json")]
        for name in names:
            assert all(not entry["use_pickle"] for entry in json.loads(archive.read(name))["config"].values())
        assert len(names) == 2
    # Nothing of the file is a pickle: the program loads where nothing can be unpickled.
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", refuse)
        patch.setattr(pickle, "loads", refuse)
        patch.setattr(torch._C, "_pickle_load_obj", refuse)
        program = torch.export.load(out).module()
    for n in (1, 5):
        with torch.no_grad():
            torch.testing.assert_close(program(*inputs(n)), network.module(*inputs(n)), rtol=1e-4, atol=1e-5)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "every_run",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NETWORKS],
    indirect=True,
)
def test_onnx_computes_the_same_for_any_number_of_images(every_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    out = tmp_path / "net.onnx"
    export(every_run, out, "--trust-code")
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    network = hpcphotoz.load(every_run, "cpu", trust_code=True)
    for n in (1, 5):
        images, ebv = inputs(n)
        given = {"images": images.numpy(), "ebv": ebv.numpy()}
        (logits,) = session.run(["logits"], {one.name: given[one.name] for one in session.get_inputs()})
        with torch.no_grad():
            wanted = network.module(images, ebv)
        torch.testing.assert_close(torch.from_numpy(logits), wanted, rtol=1e-4, atol=1e-5)
    assert [one.name for one in session.get_inputs()] == ["images", "ebv"]


def test_what_cannot_be_exported_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "net.pt2"
    fails(capsys, ["export", run, tmp_path / "net.bin"], "the name says the form")
    fails(capsys, ["export", run, tmp_path / "absent" / "net.pt2"], "no such folder")
    fails(capsys, ["export", tmp_path, out], "no checkpoint")
    fails(capsys, ["export", run, out, "--report", tmp_path], "metrics.json: cannot be read")
    (tmp_path / "metrics.json").write_text('{"robustness_curves": {}}')
    fails(capsys, ["export", run, out, "--report", tmp_path], "holds no evaluation of run 'run'")
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: 1 / 0)
    fails(capsys, ["export", run, out], "torch.export cannot follow the network (ZeroDivisionError: division")
    assert not list(tmp_path.glob("net*"))


def test_a_damaged_record_is_named(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "net.pt2"
    train(config(max_steps=1), dataset, run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "pa')  # a line that is being written
    (run / "provenance.json").write_text("{")
    fails(capsys, ["export", run, out], "provenance.json: cannot be read")
    (run / "provenance.json").unlink()
    export(run, out)
    card = json.loads((tmp_path / "net.pt2.json").read_text())
    assert card["training"]["data"] is None and card["training"]["steps"] == 1
    (run / "metrics.jsonl").write_text("[\n")
    fails(capsys, ["export", run, out], "metrics.jsonl: cannot be read")
