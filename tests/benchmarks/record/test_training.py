"""An entry is trained as its user would train it, timed from start to end, and not again in the same way."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.harness import versions
from benchmarks.record import training
from benchmarks.record.entry import Entry, read
from benchmarks.record.task import QUICK, TASKS, Task
from benchmarks.record.training import as_network, configured
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.models.build import build
from hpcphotoz.training.run.network import load_network, save_network
from tests.helpers.datasets import make_dataset

LOOPS = ("users-loop", "users-loop-gpu")


@pytest.mark.parametrize("entry", ["users-loop", "users-loop-gpu"])
def test_the_peers_state_dict_is_a_network_of_ours(entry: str, tmp_path: Path) -> None:
    """`benchmarks/peers/train.py` saves what its own `build` made: it computes the same here."""
    from benchmarks.peers.attack import build as peer_build
    from benchmarks.peers.driver import peer_task

    manifest = read_manifest(make_dataset(tmp_path / "data", n=8, shard_rows=8))
    config = configured(read(entry).config, 0, QUICK)
    task = peer_task(config, tmp_path, manifest.header.stamp, manifest.statistics.sky_sigma, 1, 1, 1)
    torch.manual_seed(0)
    theirs = peer_build(task).eval()
    given = theirs.state_dict(), manifest, tuple(task["scale"]), 1
    save_network(as_network("loop", config, *given), tmp_path / "loop.safetensors")
    ours = load_network(tmp_path / "loop.safetensors")
    images, ebv = torch.randn(3, 5, 16, 16), torch.rand(3)
    assert ours.name == "loop" and ours.config == config
    # channels_last convolutions round differently.
    torch.testing.assert_close(ours.module(images, ebv), theirs(images, ebv), rtol=1e-4, atol=1e-5)
    other = build(config.model, stamp=16, scale=ours.scale)
    assert not torch.allclose(other(images, ebv), theirs(images, ebv), atol=1e-3)


def test_an_entry_trains_on_the_device_of_its_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[tuple[list[str], Mapping[str, str]]] = []

    def launch(
        name: str, python: Path, ranks: int, words: list[Any], environment: Mapping[str, str], **rest: object
    ) -> None:
        started.append((list(map(str, words)), environment))

    monkeypatch.setattr(training, "launch", launch)
    data = make_dataset(tmp_path / "data", n=8, shard_rows=8)
    monkeypatch.setattr(training, "peers_python", lambda: Path(sys.executable))
    monkeypatch.setattr(torch, "load", lambda *given, **options: {})
    monkeypatch.setattr(training, "as_network", lambda *given: None)
    monkeypatch.setattr(training, "save_network", lambda *given: None)
    for name in ("adversarial-2026", "inception-adversarial", "users-loop", "users-loop-gpu"):
        entry = read(name)
        training.train(entry, 0, TASKS[entry.task], data, tmp_path / "runs")
    ours, on_gpu, loop, loop_on_gpu = started
    assert ours[0][-2:] == ["--device", "cpu"] and on_gpu[0][-2:] == ["--device", "cuda"]
    assert loop[0][-2:] == ["--precision", "fp32"] and loop_on_gpu[0][-2:] == ["--precision", "tf32"]
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    assert [one[1] for one in started] == [hidden, {}, hidden, {}]
    specs = [json.loads((tmp_path / f"runs/{name}-seed-0/task.json").read_text()) for name in LOOPS]
    assert [spec["workers"] for spec in specs] == [1, 8] and specs[1]["network"] == "inception"


def test_the_clock_runs_while_the_process_does_and_an_earlier_network_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [100.0]

    def launch(name: str, *given: object, **options: object) -> None:
        run = tmp_path / "runs" / name / name
        assert not run.exists() and (run.parent / "recipe.toml").exists()
        run.mkdir()
        now[0] += 7.0

    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(training, "launch", launch)
    data = make_dataset(tmp_path / "data", n=8, shard_rows=8)
    for _ in range(2):  # the second finds the folder of the first
        seconds, network = training.train(read("adversarial"), 3, QUICK, data, tmp_path / "runs")
        assert seconds == 7.0 and network == tmp_path / "runs/adversarial-seed-3/adversarial-seed-3"
        assert network.is_dir()
        (network.parent / "weights.pt").touch()  # of an earlier entry of this name
    training.train(read("adversarial"), 3, QUICK, data, tmp_path / "runs")
    assert not (network.parent / "weights.pt").exists()


Once = Callable[..., bool]


@pytest.fixture
def trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Once:
    """Calls `train_once`; whether it trained."""
    calls: list[int] = []

    def train(entry: Entry, seed: int, task: Task, data: Path, folder: Path) -> tuple[float, Path]:
        calls.append(seed)
        network = folder / f"{entry.name}-seed-{seed}" / "network"
        network.mkdir(parents=True, exist_ok=True)
        return 10.0 + seed, network

    def once(entry: Entry, data: Path, seed: int = 0, task: Task = TASKS["gpu"]) -> bool:
        before = len(calls)
        seconds, network = training.train_once(entry, seed, task, data, tmp_path / "runs")
        assert seconds == 10.0 + seed and network.is_dir() and network.parent.name.endswith(f"-{seed}")
        return len(calls) > before

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training, "COMMIT", "one")
    monkeypatch.setattr(training, "peer_versions", versions)  # equal: the program tells them apart
    return once


def test_a_network_is_trained_once_in_one_way(
    trains: Once, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data, other = (make_dataset(tmp_path / name, n=n, shard_rows=8) for name, n in (("a", 8), ("b", 16)))
    ours, loop, gpu = read("inception-adversarial"), read("users-loop-gpu"), TASKS["gpu"]
    for entry in (ours, loop):
        assert trains(entry, data) and not trains(entry, data)
        assert trains(entry, data, seed=1) and not trains(entry, data)
    run = ours.config.run.model_copy(update={"epochs": 9})
    for entry in (
        replace(ours, config=ours.config.model_copy(update={"run": run})),
        replace(ours, ranks=2),
        replace(ours, program="peer"),
    ):
        assert trains(entry, data) and not trains(entry, data)
        assert trains(ours, data)
    for way in ({"data": other}, {"data": data, "task": replace(gpu, device="cpu")}):
        assert trains(ours, **way) and not trains(ours, **way) and trains(ours, data)
    for name, value in (
        ("COMMIT", "another"),
        ("machine", lambda: {"device": "another"}),
        ("versions", lambda: {"torch": "9.9"}),
    ):
        monkeypatch.setattr(training, name, value)
        assert trains(ours, data) and not trains(ours, data)
    monkeypatch.setattr(training, "peer_versions", lambda: {"torch": "9.9"})
    assert trains(loop, data)
    shutil.rmtree(tmp_path / "runs/inception-adversarial-seed-0/network")
    assert trains(ours, data)


def test_the_content_of_the_galaxies_counts(trains: Once, tmp_path: Path) -> None:
    data, entry = make_dataset(tmp_path / "data", n=8, shard_rows=8), read("inception-adversarial")
    assert trains(entry, data) and not trains(entry, data)
    shutil.rmtree(data)
    make_dataset(tmp_path / "data", n=16, shard_rows=8)
    assert trains(entry, data)


@pytest.mark.parametrize(("commit", "why"), [("one-dirty", "files differ"), (None, "is not known")])
def test_nothing_is_reused_where_the_source_is_not_known(
    commit: str | None,
    why: str,
    trains: Once,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, entry = make_dataset(tmp_path / "data", n=8, shard_rows=8), read("inception-adversarial")
    training.say_what_is_reused()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(training, "COMMIT", commit)
    training.say_what_is_reused()
    assert why in capsys.readouterr().out
    assert trains(entry, data) and trains(entry, data)
