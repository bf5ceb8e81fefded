"""The benchmark of attacks: the rivals on each device, and the precision they are compared in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.attacks import speed as module
from benchmarks.attacks.speed import aliases, precision_of, precision_of_ours, speed, variants
from benchmarks.attacks.task import Task
from benchmarks.harness import Benchmark
from benchmarks.peers.driver import Peer
from benchmarks.training.galaxies import SKY, galaxies
from hpcphotoz.config.load import parse
from hpcphotoz.models.build import bins_of, build


@pytest.fixture(scope="module")
def task() -> Task:
    config = parse({"model": {"name": "compact", "width": 8}}, "test")
    torch.manual_seed(0)
    model = build(config.model, stamp=64, scale=tuple(10 * s for s in SKY)).eval()
    return Task("compact", {}, model, bins_of(config.model), *galaxies(2, seed=1), 0.1 * torch.tensor(SKY))


def recorded(monkeypatch: pytest.MonkeyPatch, device: str, precision: str, task: Task) -> dict[str, Any]:
    """Options of our attacks by name, on a device that this machine may lack."""
    monkeypatch.setattr(module, "DEVICE", torch.device(device))
    monkeypatch.setattr(Task, "attack", lambda self, **options: options)
    return dict(variants(task, precision))


def test_on_a_cpu_ours_run_in_the_precision_of_the_device_and_in_float32(
    monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    found = recorded(monkeypatch, "cpu", "bf16", task)
    assert set(found) == {"ours", "ours_fp32"}
    assert (
        found["ours"]["passes"].autocast == torch.bfloat16 and found["ours_fp32"]["passes"].autocast is None
    )
    assert set(recorded(monkeypatch, "cpu", "fp32", task)) == {"ours"}


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_on_a_gpu_every_fused_form_runs(monkeypatch: pytest.MonkeyPatch, task: Task, precision: str) -> None:
    found = recorded(monkeypatch, "cuda", precision, task)
    other = {"bf16": "tf32", "tf32": "bf16"}[precision]
    fused = {"ours_graph", "ours_compiled", "ours_compiled_graph"}
    assert fused | {"ours", "ours_fp32", f"ours_compiled_graph_{other}"} <= set(found)
    assert found["ours_compiled_graph"]["graph"] and found["ours_compiled_graph"]["passes"].compiled
    assert found["ours_fp32"]["passes"].tf32 is False and found["ours"]["passes"].tf32 == (
        precision == "tf32"
    )
    tf32 = {name for name in found if precision_of_ours(name, precision) == "tf32"}
    assert "ours_compiled_graph" + "_tf32" * (precision == "bf16") in tf32 and "ours_fp32" not in tf32
    # Our attack in the precision of each peer exists, under its own name or an alias.
    for library in module.LIBRARIES:
        plain = f"ours_{precision_of(library, precision)}"
        assert plain in found or aliases(precision)[plain] in found


def test_a_peer_that_fails_leaves_the_others_their_figures(
    monkeypatch: pytest.MonkeyPatch, task: Task, tmp_path: Path
) -> None:
    class Quick:
        version = "1"

        def ask(self, line: str, timeout_s: float) -> dict[str, float]:
            return {"seconds": 1.0, "loss": 2.0, "worst": 1.0}

        def close(self) -> None:
            pass

    def start_peer(library: str, *given: Any) -> Peer | None:
        if library == "art":
            raise RuntimeError("art ended early with status 2")
        return None if library == "foolbox" else Quick()  # type: ignore[return-value]

    def attack(self: Task, **options: Any) -> Callable[[], Tensor]:
        return lambda: self.images

    monkeypatch.setattr(module, "start_peer", start_peer)
    monkeypatch.setattr(Task, "attack", attack)
    benchmark = Benchmark("attacks", None)
    found = speed(task, tmp_path, "fp32", ("torchattacks", "foolbox", "art"), 2, benchmark)
    assert benchmark.failures == {"compact, art": "RuntimeError: art ended early with status 2"}
    assert found["ratio_torchattacks"] and found["ratio_torchattacks_same"] and found["ratio_art"] is None
    assert found["ratio_torchattacks_same_fastest"] == found["ratio_torchattacks_same"], "one form on a CPU"
    assert found["ratio_foolbox"] is None, "a peer that is not installed is no failure"
    assert found["strength_torchattacks"] == pytest.approx(found["loss"]["clean"] / 2)


def test_no_ratio_for_attacks_that_are_weaker_or_leave_the_ball(
    monkeypatch: pytest.MonkeyPatch, task: Task, tmp_path: Path
) -> None:
    class Peer:
        version = "1"

        def __init__(self, library: str) -> None:
            self.library = library

        def ask(self, line: str, timeout_s: float) -> dict[str, float]:
            strong, far = self.library == "foolbox", self.library == "art"
            return {"seconds": 1.0, "loss": 99.0 if strong else 2.0, "worst": 1.5 if far else 1.0}

        def close(self) -> None:
            pass

    monkeypatch.setattr(module, "start_peer", lambda library, *given: Peer(library))
    monkeypatch.setattr(Task, "attack", lambda self, **options: lambda: self.images)
    benchmark = Benchmark("attacks", None)
    found = speed(task, tmp_path, "fp32", ("torchattacks", "foolbox", "art"), 2, benchmark)
    assert found["ratio_torchattacks"] and found["ratio_torchattacks_same"]
    assert found["ratio_foolbox"] is None and found["ratio_foolbox_same"] is None
    assert found["strength_foolbox"] < 0.98
    assert "no ratio" in benchmark.failures["compact, ratio_foolbox"]
    assert found["ratio_art"] is None and "outside the ball" in benchmark.failures["compact, art"]

    monkeypatch.setattr(Task, "attack", lambda self, **options: lambda: self.images + 1.1 * task.eps.max())
    benchmark = Benchmark("attacks", None)
    found = speed(task, tmp_path, "fp32", ("torchattacks",), 2, benchmark)
    assert found["ratio_torchattacks"] is None and "outside the ball" in benchmark.failures["compact, ours"]
