"""The record program, end to end on tiny data."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.record.entry import read
from benchmarks.record.task import QUICK
from benchmarks.record.training import as_network, configured
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.models.build import build
from hpcphotoz.training.run.network import load_network, save_network
from tests.helpers.datasets import make_dataset
from tests.helpers.paths import ROOT


def test_the_peers_state_dict_is_a_network_of_ours(tmp_path: Path) -> None:
    """`benchmarks/peers/train.py` saves what its own `build` made: it computes the same here."""
    from benchmarks.peers.attack import build as peer_build
    from benchmarks.peers.driver import peer_task

    manifest = read_manifest(make_dataset(tmp_path / "data", n=8, shard_rows=8))
    config = configured(read("users-loop").config, 0, QUICK)
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
