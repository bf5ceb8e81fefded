"""Precision and graphs of a run: measured, agreed on by all ranks, printed once, and kept when resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpcphotoz.config import load as configuration
from hpcphotoz.errors import BadInput
from hpcphotoz.training import compute
from hpcphotoz.training.compute import (
    MIN_IMAGES_TO_COMPILE,
    choose_compute,
    compute_options,
)
from hpcphotoz.training.distributed import group
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.training.fake_gpu import GPU, ONE_RANK, FakeGPU
from tests.helpers.training.runs import (
    arguments,
    config,
)
from tests.helpers.training.steps import CPU, configured


@pytest.mark.parametrize(("speedup", "want"), [(0.1, "fp32"), (1.0, "fp32"), (1.5, "bf16"), (3.0, "bf16")])
def test_auto_chooses_bfloat16_where_it_is_measured_to_be_faster(
    speedup: float, want: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "bfloat16_speedup", lambda: speedup)
    auto = configured(precision="auto")
    found = compute_options(auto.compute, CPU)
    assert found.training is found.attack is (torch.bfloat16 if want == "bf16" else None)
    assert found.facts()["training"] == found.facts()["attack"] == want
    agreed = choose_compute(auto, ONE_RANK, nn.Linear(1, 1), CPU, (4, 5, 8, 8), 100)
    assert agreed.compute.precision == want and not agreed.warning
    assert agreed.message.startswith(f"CPU: precision {want} (measured: convolutions in bf16 are ")


def test_bfloat16_asked_for_without_units_is_warned_of_with_its_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compute, "bfloat16_speedup", lambda: 0.125)
    for training, attack in (("bf16", "training"), ("fp32", "bf16")):
        asked = configured(precision=training, attack_precision=attack)
        found = choose_compute(asked, ONE_RANK, nn.Linear(1, 1), CPU, (4, 5, 8, 8), 100)
        assert found.compute.precision == training and "as asked" in found.message
        assert "8.0 times as long as in fp32 (measured)" in found.warning
        advice = "want auto or fp32" if training == "bf16" else "want attack_precision training or fp32"
        assert found.warning.endswith(advice)
        resumed = choose_compute(asked, ONE_RANK, nn.Linear(1, 1), CPU, (4, 5, 8, 8), 100, begun=training)
        assert resumed.warning.endswith("another one wants a new --out")


def test_precisions_that_a_cpu_is_given() -> None:
    found = compute_options(configured(precision="fp32", attack_precision="bf16").compute, CPU)
    assert found.training is None and found.attack is torch.bfloat16
    assert found.passes.autocast is torch.bfloat16
    assert compute_options(configured(micro_batch=7).compute, CPU).micro_batch == 7
    assert compute_options(configured(precision="tf32").compute, CPU).facts()["training"] == "fp32"


def test_a_run_prints_its_precision_and_keeps_it(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run continued on another machine, or after another outcome of the trial, keeps its precision."""
    out = tmp_path / "run"
    monkeypatch.setattr(compute, "bfloat16_speedup", lambda: 3.0)
    train(config(precision="auto", max_steps=1), dataset, out)
    assert capsys.readouterr().out.count("CPU: precision bf16 (measured: ") == 1
    assert configuration.load(str(out / "config.toml")).compute.precision == "bf16"
    monkeypatch.setattr(compute, "bfloat16_speedup", lambda: 0.1)
    train(config(precision="auto", max_steps=2), dataset, out)
    printed = capsys.readouterr()
    assert "CPU: precision bf16 (as the run was begun)" in printed.out
    assert "10.0 times as long as in fp32" in printed.err
    assert "another one wants a new --out" in printed.err and "want auto" not in printed.err
    starts = json.loads((out / "provenance.json").read_text())["starts"]
    assert [start["speed"]["training"] for start in starts] == ["bf16", "bf16"]
    with pytest.raises(BadInput, match="another compute.precision"):
        train(config(precision="fp32"), dataset, out)


@pytest.mark.slow
def test_all_ranks_use_one_precision_and_one_rank_prints_it(dataset: Path, tmp_path: Path) -> None:
    """Every rank measures and the slowest decides: here only one rank lacks bfloat16 units."""
    words = arguments(dataset, tmp_path / "run", tmp_path, precision="auto", max_steps=1)
    started = ranks.start(2, words, [{}, {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}])
    found = ranks.finish(started)
    assert [status for status, _, _ in found] == [0, 0], found
    assert configuration.load(str(tmp_path / "run" / "config.toml")).compute.precision == "fp32"
    assert "CPU: precision fp32" in found[0][1] and "precision" not in found[1][1]


def test_auto_on_a_gpu_is_compiled_and_a_graph_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGPU(monkeypatch)
    found = gpu.settle()
    assert found.message == (
        "NVIDIA H200: precision bf16 (measured: a pass over 64 images takes 20 ms in tf32, 15 ms in bf16), "
        "graph of the step (a smaller last batch of an epoch and the attack's warm-up run without), compiled"
    )
    assert gpu.calls[-1] == (True, True), "the trial is compiled and captured like the run"
    how = compute_options(found.compute, GPU)
    assert (how.graphs, how.compiled, how.training, how.tf32) == ("step", True, torch.bfloat16, False)
    assert how.passes.autocast is torch.bfloat16 and how.passes.compiled and how.passes.tf32 is False
    assert how.facts()["training"] == "bf16"


def test_a_run_too_short_to_earn_a_compile_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    found = FakeGPU(monkeypatch).settle(objects=MIN_IMAGES_TO_COMPILE - 1)
    assert "precision tf32 (measured: a pass over 64 images takes 31 ms in tf32, 38.2 ms in" in found.message
    few = "not compiled (1,999,999 images a rank: a compile is earned back after 2,000,000)"
    assert found.message.endswith(few)
    how = compute_options(found.compute, GPU)
    assert (how.graphs, how.compiled, how.training, how.tf32) == ("step", False, None, True)
    assert how.attack_tf32 and how.passes.tf32 and how.facts()["attack"] == "tf32"
    assert compute_options(configured(precision="fp32").compute, GPU).passes.tf32 is False, "fp32 is float32"


def test_a_failing_compiler_is_reported_and_the_graph_runs_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = FakeGPU(monkeypatch)
    gpu.compiler_fails = True
    found = gpu.settle()
    assert (
        "not compiled (torch.compile failed here: RuntimeError: Failed to find C compiler)" in found.message
    )
    assert (found.compute.graphs, found.compute.compiled, found.compute.precision) == (
        "step",
        "off",
        "tf32",
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert FakeGPU(monkeypatch).settle().message.endswith("not compiled (triton is not installed)")


@pytest.mark.parametrize(
    ("how", "graphs", "said"),
    [
        ({"mode": "streams"}, "attack", "graph of the attack (overlap streams is slower than off without"),
        ({"mode": "ranks"}, "off", "no CUDA graphs (overlap ranks: "),
        ({"objective": "free"}, "off", "no CUDA graphs (objective free: "),
        ({"graphs": "off"}, "off", "graphs off (as asked)"),
        (
            {"mode": "streams", "graphs": "off"},
            "off",
            "as asked, though overlap streams is slower than off",
        ),
        ({"compiled": "on", "graphs": "attack"}, "attack", "compiled on (as asked)"),
    ],
    ids=str,
)
def test_configurations_without_a_step_graph_say_so(
    how: dict[str, Any], graphs: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = FakeGPU(monkeypatch).settle(**how)
    assert found.compute.graphs == graphs and said in found.message
    assert found.compute.compiled == how.get("compiled", "off")


def test_a_gpu_without_units_and_a_run_that_was_begun_need_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGPU(monkeypatch, capability=(7, 0))
    found = gpu.settle()
    assert (
        found.compute.precision == "fp32" and "no units for tf32 and bf16" in found.message and not gpu.calls
    )
    assert "precision bf16 (as the run was begun)" in gpu.settle(begun="bf16").message
    assert "precision fp32 (as asked)" in FakeGPU(monkeypatch).settle(precision="fp32").message


class ReachedTheData(Exception):
    """Raised where training would read the first object."""


@pytest.mark.parametrize("how", [{"epochs": 100_000}, {}, {"mode": "streams"}], ids=str)
def test_train_on_a_gpu_prints_its_precision(
    how: dict[str, Any],
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Runs up to the first object, with the network on the CPU; config.toml holds the precision."""

    def stop(*_: object) -> None:
        raise ReachedTheData

    gpu = FakeGPU(monkeypatch)
    monkeypatch.setattr(group, "choose_device", lambda world, wanted: GPU)
    monkeypatch.setattr("hpcphotoz.training.trainer.RunPreparation.resume", stop)
    monkeypatch.setattr(compute.ComputeOptions, "placed", lambda self, module, device: module)
    with pytest.raises(ReachedTheData):
        train(config(**{"precision": "auto", **how}), dataset, tmp_path / "run")
    want = {
        "{'epochs': 100000}": "NVIDIA H200: precision bf16 (measured: a pass over 16 images takes 20 ms in "
        "tf32, 15 ms in bf16), graph of the step (a smaller last batch of an epoch and the attack's warm-up "
        "run without), compiled",
        "{}": "NVIDIA H200: precision tf32 (measured: a pass over 16 images takes 31 ms in tf32, 38.2 ms in "
        "bf16), graph of the step (a smaller last batch of an epoch and the attack's warm-up run without), "
        "not compiled (300 images a rank: a compile is earned back after 2,000,000)",
        "{'mode': 'streams'}": "NVIDIA H200: precision tf32 (measured: a pass over 16 images takes 31 ms "
        "in tf32, 38.2 ms in bf16), graph of the attack (overlap streams is slower than off without it), not "
        "compiled (auto compiles with a graph of the step alone)",
    }[str(how)]
    assert capsys.readouterr().out == f"{tmp_path / 'run'}: {want}\n"
    written = configuration.load(str(tmp_path / "run" / "config.toml")).compute
    assert written.precision == ("bf16" if gpu.calls[-1][0] else "tf32")
