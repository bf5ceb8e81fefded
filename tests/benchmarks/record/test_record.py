"""The record program, end to end on tiny data."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.record import __main__ as program
from benchmarks.record import training
from benchmarks.record.entry import Entry, read
from benchmarks.record.task import QUICK, TASKS, Task
from benchmarks.record.training import as_network, configured
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.models.build import build
from hpcphotoz.training.run.network import load_network, save_network
from tests.helpers.datasets import make_dataset
from tests.helpers.paths import ROOT

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


def record(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.record", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=840)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute on an idle machine, many on a busy one
def test_a_quick_record_trains_judges_and_writes_a_row(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    done = record("--quick", "--folder", tmp_path, "--json", path, "--entry", "adversarial-2026")
    assert done.returncode == 0, done.stderr
    tree = json.loads(path.read_text())
    (row,) = tree["rows"]
    (seed,) = row["seeds"]
    assert tree["judge"] == "quick" and row["seconds"] == seed["seconds"] > 0 and not row["passes"]
    assert seed["clean"]["n"] == seed["robust"]["n"] == 24
    assert set(seed["confirmations"]) == {"margin", "probability_margin", "square", "apgd_same_objects"}
    assert (tmp_path / "runs/adversarial-2026-seed-0/adversarial-2026-seed-0/config.toml").is_file()


def test_a_wrong_entry_is_one_line(tmp_path: Path) -> None:
    done = record("--quick", "--folder", tmp_path, "--entry", "nobody")
    assert done.returncode == 1 and done.stderr.startswith("benchmarks.record: entry 'nobody': want one of")
    assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_gpu_is_wanted_and_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["record", "--task", "gpu", *words])
        monkeypatch.setattr(program, "train_all", lambda entry, options: [])
        with pytest.raises(SystemExit) as end:
            program.main()
        return str(end.value.code)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused("--judge", "validation") == "benchmarks.record: task gpu: no CUDA device here"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert refused().startswith("benchmarks.record: the target of the task gpu is not set: train")
    wrong = refused("--judge", "validation", "--entry", "users-loop")
    assert wrong == "benchmarks.record: entry 'users-loop' is of the task cpu: want --task cpu"
    assert refused("--judge", "validation") == "1", "training begins, and fails here"


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


def test_a_network_is_trained_once_in_one_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained: list[int] = []

    def train(entry: Entry, seed: int, task: Task, data: Path, folder: Path) -> tuple[float, Path]:
        trained.append(seed)
        (folder / f"{entry.name}-seed-{seed}").mkdir(parents=True, exist_ok=True)
        return 10.0 + seed, folder / "network"

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training, "COMMIT", "one")
    entry, folder = read("users-loop-gpu"), tmp_path / "runs"

    def once(seed: int) -> tuple[float, Path]:
        return training.train_once(entry, seed, TASKS["gpu"], tmp_path, folder)

    assert once(0) == once(0) == (10.0, folder / "network") and once(1)[0] == 11.0
    assert trained == [0, 1]
    changed = entry.config.model_copy(update={"run": entry.config.run.model_copy(update={"epochs": 9})})
    entry = replace(entry, config=changed)
    once(0)
    monkeypatch.setattr(training, "COMMIT", "another")
    once(0)
    assert trained == [0, 1, 0, 0]
