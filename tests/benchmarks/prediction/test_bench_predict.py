"""The benchmark of prediction: ratios, the peer's best form, and rivals that compute the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bench_predict
from benchmarks.harness import Benchmark
from benchmarks.streaming.stream_data import make_stamps, write


def constant(seconds: float) -> Callable[..., float]:
    return lambda *arguments: seconds


def test_ratios_are_of_rates_over_the_peers_best_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = {(32, 0): 9.0, (32, 1): 5.0, (128, 0): 7.0, (128, 1): 8.0}

    def peer(task: dict[str, Any], folder: Path, tuned: bool, batch: int, workers: int) -> float:
        return forms[batch, workers] - tuned

    monkeypatch.setattr(bench_predict, "prepare", lambda network, folder: {})
    monkeypatch.setattr(bench_predict, "peer", peer)
    seconds = {"auto": 2.0, "fp32": 2.5}
    monkeypatch.setattr(bench_predict, "ours", lambda folder, network, precision: seconds[precision])
    monkeypatch.setattr(bench_predict, "change", lambda folder, network: {})
    benchmark = Benchmark("predict", None)
    found = bench_predict.measure_rates("inception", tmp_path, 100, 3, benchmark, False)
    assert found["peer_batch_and_workers"] == {"peer": (32, 1), "peer_tuned": (32, 1)}
    assert found["ratio_author_network"] == 5.0 / 2.0 and found["ratio_author_network_fp32"] == 5.0 / 2.5
    assert found["ratio_author_network_tuned"] == 4.0 / 2.0
    assert found["objects_per_s"]["ours"] == {"median": 50, "p20": 50, "p80": 50, "n": 3}


@pytest.mark.slow
def test_rivals_compute_the_same(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    write(tmp_path / "d", make_stamps(48, 64), 24)
    task = bench_predict.prepare("cnn", tmp_path)
    assert bench_predict.peer(task, tmp_path, False, 16, 0) > 0
    assert bench_predict.ours(tmp_path, "cnn", "auto") > 0
    assert bench_predict.ours(tmp_path, "cnn", "fp32") > 0
    change = bench_predict.change(tmp_path, "cnn")
    assert change["ours_fp32"] < 1e-4 and change["ours"] < 0.05


@pytest.mark.slow
def test_memory_is_that_of_a_batch(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    found = bench_predict.measure_memory(tmp_path, 40_000)
    assert found["many"]["objects"] == 40_000 and found["small"]["objects"] == 1000
    # 16,384 rows of 20 bins and the columns are kept until they are a file, 3.5 MB; the data set has 210 MB.
    assert found["mib_growth"] < 40
    assert np.isfinite(json.loads(json.dumps(found))["many"]["objects_per_s"])
