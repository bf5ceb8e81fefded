"""Networks of the user train, resume, attack and predict as those of this library."""

import json
import logging
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import hpcphotoz
from hpcphotoz.__main__ import main
from hpcphotoz.errors import BadInput
from hpcphotoz.models.factory import NetworkSource
from hpcphotoz.predict import predict
from hpcphotoz.training.loop import Outcome
from hpcphotoz.training.run.network import save_network
from hpcphotoz.training.run.run_folder import keep_source
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.commands import fails
from tests.helpers.training.runs import SAME, arguments, assert_same_curve, config, training_lines
from tests.helpers.user_networks import NAME

RESNET, VIT, MIXER = (f"{NAME}:{name}" for name in ("resnet", "vit", "mixer"))
SHORT: dict[str, object] = {"epochs": 2}
FACTORY = """from tests.helpers import user_networks


def make(**given):
    return user_networks.mixer(**given)
"""


@pytest.mark.parametrize("name", [RESNET, VIT, MIXER])
def test_trained_resumed_attacked_and_used_to_predict(name: str, dataset: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(config(name=name, **SHORT), dataset, whole) is Outcome.FINISHED
    train(config(name=name, **SHORT, max_steps=4), dataset, parts)
    train(config(name=name, **SHORT), dataset, parts)
    assert_same_curve(parts, whole, 0.0)
    lines = training_lines(whole)
    assert lines[-1]["loss"] < lines[0]["loss"]
    ours, theirs = (
        hpcphotoz.load(parts, "cpu", trust_code=True),
        hpcphotoz.load(whole, "cpu", trust_code=True),
    )
    state = theirs.module.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in ours.module.state_dict().items())
    batch = next(iter(hpcphotoz.open(dataset, device="cpu")))
    attacked = hpcphotoz.attack(ours, batch, eps=0.5, steps=3)
    change = (attacked - batch.images).abs().amax((2, 3))
    assert (change > 0).all() and (change <= 0.5 * batch.sky_sigma * (1 + 1e-5)).all()
    assert all(torch.equal(tensor, state[key]) for key, tensor in ours.module.state_dict().items())
    assert predict([ours], dataset, tmp_path / "pz.hdf5", device="cpu") == 75
    with h5py.File(tmp_path / "pz.hdf5") as file:
        first = file["data/pdfs"][: len(batch)] * ours.bins.width
    np.testing.assert_allclose(first, ours.pdf(batch.images, batch.ebv).numpy(), atol=1e-5)


def test_evaluate_measures_its_robustness(dataset: Path, tmp_path: Path) -> None:
    train(config(name=RESNET, max_steps=2), dataset, tmp_path / "run")
    words = ["evaluate", tmp_path / "run", "--data", dataset, "--out", tmp_path / "report", "--device", "cpu"]
    assert (
        main([str(word) for word in [*words, "--trust-code", "--eps", 0.2, "--steps", 2, "--limit", 16]]) == 0
    )
    summary = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert "run" in json.dumps(summary)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), [(VIT, "off"), (MIXER, "streams")])
def test_without_batch_normalisation_two_ranks_give_the_same_curve(
    name: str, mode: str, dataset: Path, tmp_path: Path
) -> None:
    train(config(name=name, **SHORT), dataset, tmp_path / "one")
    words = arguments(dataset, tmp_path / "two", tmp_path, name=name, **SHORT, mode=mode)
    for status, _, error in ranks.run(2, words):
        assert status == 0, error
    assert_same_curve(tmp_path / "two", tmp_path / "one", SAME)


@pytest.mark.parametrize("mode", [pytest.param("off", marks=pytest.mark.slow), "streams"])
def test_running_statistics_agree_over_ranks_in_attacks_and_validations(
    mode: str, dataset: Path, tmp_path: Path
) -> None:
    options = {"folder": str(tmp_path)}
    words = arguments(
        dataset, tmp_path / "run", tmp_path, name=RESNET, options=options, **SHORT, mode=mode, micro_batch=3
    )
    for status, _, error in ranks.run(2, words):
        assert status == 0, error
    seen = [set((tmp_path / f"rank-{rank}.txt").read_text().splitlines()) for rank in range(2)]
    # The fresh ones and those after each of 10 steps. A rank may have nothing to attack in a small last
    # batch, and then does not use one of them; statistics of its own would be 10 further ones.
    assert len(seen[0] | seen[1]) == 11 and len(seen[0] & seen[1]) > 6


@pytest.mark.slow
def test_attackers_receive_running_statistics(dataset: Path, tmp_path: Path) -> None:
    """One learner normalises with its own passes; its attacker must attack with the learner's statistics."""
    train(config(name=RESNET, **SHORT, mode="streams"), dataset, tmp_path / "one")
    options = {"name": RESNET, "mode": "ranks", "attackers": 1, "timeout_s": 60.0}
    for status, _, error in ranks.run(2, arguments(dataset, tmp_path / "two", tmp_path, **SHORT, **options)):
        assert status == 0, error
    assert_same_curve(tmp_path / "two", tmp_path / "one", SAME)


@pytest.mark.slow
def test_a_trial_of_costs_leaves_the_statistics_as_they_were(dataset: Path, tmp_path: Path) -> None:
    """`overlap.attackers = auto` times passes before the first step, on random shares of ranks."""
    options = {"name": RESNET, "mode": "ranks", "timeout_s": 60.0, "max_steps": 3}
    for out, attackers in (("auto", "auto"), ("one", 1)):
        words = arguments(dataset, tmp_path / out, tmp_path, **options, attackers=attackers)
        for status, _, error in ranks.run(2, words):
            assert status == 0, error
    assert_same_curve(tmp_path / "auto", tmp_path / "one", SAME)


def test_the_source_is_recorded_and_a_change_is_said(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = FACTORY
    file, out = tmp_path / "own_recorded.py", tmp_path / "run"
    file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    given: dict[str, object] = {"name": "own_recorded:make", "options": {"dim": 8}}
    train(config(**given, max_steps=2), dataset, out)
    assert (out / "model.py.txt").read_text() == text
    start = json.loads((out / "provenance.json").read_text())["starts"][0]["network"]
    assert start["file"] == str(file.resolve()) and start["copy"] == "model.py.txt"
    assert "options = {dim = 8}" in (out / "config.toml").read_text()
    with caplog.at_level(logging.WARNING, "hpcphotoz"):
        train(config(**given, max_steps=3), dataset, out)
        assert not caplog.records
        file.write_text(text + "# changed\n")
        train(config(**given, max_steps=4), dataset, out)
    assert "own_recorded.py: its SHA-256 is " in caplog.text and start["sha256"][:8] in caplog.text
    starts = json.loads((out / "provenance.json").read_text())["starts"]
    now = starts[-1]["network"]
    assert now["sha256"] != start["sha256"] and now["copy"] == f"model-{now['sha256'][:8]}.py.txt"
    assert (out / "model.py.txt").read_text() == text and (
        out / now["copy"]
    ).read_text() == text + "# changed\n"
    caplog.clear()
    with caplog.at_level(logging.WARNING, "hpcphotoz"):
        save_network(hpcphotoz.load(out, "cpu", trust_code=True), tmp_path / "network.safetensors")
        hpcphotoz.load(tmp_path / "network.safetensors", "cpu", trust_code=True)
        assert not caplog.records
        file.write_text(text)
        hpcphotoz.load(tmp_path / "network.safetensors", "cpu", trust_code=True)
        assert "own_recorded.py: its SHA-256 is " in caplog.text
        caplog.clear()
        hpcphotoz.load(out, "cpu", trust_code=True)
    assert "own_recorded.py: its SHA-256 is " in caplog.text
    with pytest.raises(BadInput, match="another model.options"):
        train(config(**{**given, "options": {"dim": 16}}, max_steps=5), dataset, out)


def test_a_run_whose_network_is_missing_or_another_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = FACTORY
    (tmp_path / "code").mkdir()
    file, out = tmp_path / "code" / "own_removed.py", tmp_path / "run"
    file.write_text(text)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(file.parent)
        train(config(name="own_removed:make", max_steps=1), dataset, out)
        sys.modules.pop("own_removed")
        file.write_text(text.replace("mixer", "vit"))
        shutil.rmtree(file.parent / "__pycache__", ignore_errors=True)
        words = [
            "predict",
            out,
            "--trust-code",
            "--data",
            dataset,
            "--out",
            tmp_path / "pz.hdf5",
            "--device",
            "cpu",
        ]
        fails(capsys, words, "the weights do not belong to the configuration")
        file.write_text("raise RuntimeError('no GPU here')\n")
        sys.modules.pop("own_removed")
        shutil.rmtree(file.parent / "__pycache__", ignore_errors=True)
        fails(capsys, words, "cannot import own_removed: RuntimeError: no GPU here")
        sys.modules.pop("own_removed", None)
    fails(capsys, words, "there is no module own_removed here: install it, or name its folder in PYTHONPATH")
    assert not (tmp_path / "pz.hdf5").exists()


def test_a_network_that_a_file_names_is_imported_only_if_it_is_trusted(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out, weights = tmp_path / "own_unasked.py", tmp_path / "run", tmp_path / "net.safetensors"
    file.write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    train(config(name="own_unasked:make", max_steps=1), dataset, out)
    save_network(hpcphotoz.load(out, "cpu", trust_code=True), weights)
    rest = ["--data", dataset, "--device", "cpu", "--out"]
    for given in (out, weights):
        sys.modules.pop("own_unasked", None)
        says = "network own_unasked:make: loading it imports and calls that code: add --trust-code"
        with pytest.raises(BadInput, match=says):
            hpcphotoz.load(given, "cpu")
        fails(capsys, ["predict", given, *rest, tmp_path / "pz.hdf5"], says)
        fails(capsys, ["evaluate", given, *rest, tmp_path / "report"], says)
        fails(capsys, ["attack", given, *rest, tmp_path / "attacked"], says)
        fails(capsys, ["export", given, tmp_path / "out.safetensors"], says)
        assert "own_unasked" not in sys.modules
        for words in (
            ["predict", given, *rest, tmp_path / f"{given.name}.hdf5"],
            ["export", given, tmp_path / f"{given.name}.pt2"],
        ):
            assert main([str(word) for word in [*words, "--trust-code"]]) == 0
    train(config(name="own_unasked:make", max_steps=2), dataset, out)  # a resume: the caller names it


def test_the_copy_of_an_earlier_version_is_kept(tmp_path: Path) -> None:
    source = NetworkSource("own:make", tmp_path / "own.py", b"a = 1\n")
    assert keep_source(tmp_path, source) == "model.py.txt"
    (tmp_path / "model.py.txt").rename(tmp_path / "model.py")
    assert keep_source(tmp_path, source) == "model.py" and not (tmp_path / "model.py.txt").exists()
    changed = NetworkSource("own:make", tmp_path / "own.py", b"a = 2\n")
    assert keep_source(tmp_path, changed) == f"model-{changed.sha256[:8]}.py.txt"
