"""The benchmark of kernels counts bytes, and times a GPU rather than the host."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import bench_kernels
from benchmarks.bench_kernels import Inputs, problems, timed
from benchmarks.kernels.problem import Problem
from hpcphotoz.kernels.backend import kernels_on

CPU = torch.device("cpu")
IMAGE = 4 * 5 * 64 * 64  # bytes of a stamp


def test_passes_over_memory_are_counted_from_the_tensors() -> None:
    """A step reads attacked images, clean ones and a gradient, and writes images; momentum reads one more."""
    found = {name: problem.bytes / (2 * IMAGE) for name, problem in problems(Inputs.drawn(2, CPU)).items()}
    for kind in ("cross_entropy", "cross_entropy_gaussian", "shift", "crps"):
        assert found.pop(f"loss_{kind}") * 2 * IMAGE == 2 * 4 * (2 * 180), "logits in, gradients out"
    assert found == {
        "pgd": 4,
        "pgd_channels_last": 4,
        "pgd_bfloat16_gradient": 3.5,
        "momentum": 5,
        "l2": 4,
        "l2_channels_last": 4,
        "flux": 4,
        "flux_projection": 3,
        "start": 2,
        "select": 1,
    }


def test_a_tensor_that_is_given_twice_is_read_once() -> None:
    x = torch.zeros(2, 5, 64, 64)
    assert Problem("momentum", (), (x, x, torch.ones_like(x)), x).bytes == 3 * x.nbytes


def test_inputs_have_the_size_that_the_counts_assume() -> None:
    i = Inputs.drawn(6, CPU)
    assert i.previous.data_ptr() != i.x0.data_ptr() and not torch.equal(i.previous, i.x0)
    assert int((i.loss > i.worse).sum()) == 3, "select copies half of the objects"


class Event:
    """A CUDA event on a clock that only a replay moves."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Event.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "Event") -> float:
        return end.at - self.at


def test_on_a_gpu_a_graph_of_several_calls_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = replays = captured = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    def capture(work: Callable[[], None], device: torch.device) -> tuple[Callable[[], object], None]:
        nonlocal captured
        before = calls
        work()
        captured = calls - before
        return replay, None

    def replay() -> None:
        nonlocal replays
        replays += 1
        Event.now += 4.0  # ms

    monkeypatch.setattr(bench_kernels, "capture", capture)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(bench_kernels, "on_host_clock", lambda work: lambda: work() or 0.001)
    measure = timed(call, torch.device("cuda"))
    assert captured == 10, "as many calls as take 10 ms"
    before = calls
    assert measure() == pytest.approx(0.004 / 10) and measure() == pytest.approx(0.004 / 10)
    assert replays == 2 and calls == before, "no call from the host is timed"


def test_a_kernel_or_a_rival_that_is_wrong_gets_no_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, right = tmp_path / "kernels.json", kernels_on("cpu")

    def nearly(*given: Any) -> Tensor:  # one pixel of the last stamp is not written
        found = right.pgd(*given)
        found[-1, -1, -1, -1] = torch.nan
        return found

    def other(adv: Tensor, images: Tensor, grad: Tensor, eps: float, alpha: float) -> Tensor:
        return images

    monkeypatch.setattr(bench_kernels, "STAMPS", 2)
    monkeypatch.setattr(bench_kernels, "kernels_on", lambda device: replace(right, pgd=nearly))
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", "--json", str(path)])
    with pytest.raises(SystemExit) as end:
        bench_kernels.main()
    record, shown = json.loads(path.read_text()), capsys.readouterr().out
    figures = record["figures"]
    assert end.value.code == 1 and "no ratio" in record["failures"]["pgd, ours"]
    assert "pgd" not in figures and figures["ratio_torchattacks_step"] is None
    assert figures["l2"]["ratio_reference"] > 0 and figures["l2"]["off"]["ours"] == 0
    assert figures["loss_crps"]["ratio_autograd"] > 0
    assert figures["prelu_halve_fp32_backward"]["ratio_eager"] > 0
    assert not [line for line in shown.splitlines() if line.startswith("pgd ")]

    monkeypatch.setattr(bench_kernels, "kernels_on", lambda device: right)
    monkeypatch.setattr(bench_kernels, "torchattacks", other)
    with pytest.raises(SystemExit):
        bench_kernels.main()
    record = json.loads(path.read_text())
    assert record["figures"]["pgd"]["ratio_reference"] > 0 and "pgd, ours" not in record["failures"]
    assert "no ratio" in record["failures"]["pgd, torchattacks"]
    assert record["figures"]["ratio_torchattacks_step"] is None


def test_a_table_and_a_record_without_the_rival_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kernels.json"

    def fails(*given: Any) -> Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(bench_kernels, "STAMPS", 2)
    monkeypatch.setattr("benchmarks.bench_kernels.reference.l2", fails)
    monkeypatch.setattr(bench_kernels, "torchattacks", fails)
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", "--json", str(path)])
    with pytest.raises(SystemExit) as end:
        bench_kernels.main()
    record = json.loads(path.read_text())
    assert end.value.code == 1
    assert record["failures"]["pgd, torchattacks"] == "RuntimeError: out of memory"
    figures = record["figures"]
    assert figures["ratio_torchattacks_step"] is None and figures["pgd"]["ratio_reference"] > 0
    assert "fails: RuntimeError: out of memory" in capsys.readouterr().out
    assert figures["momentum"]["us"]["ours"]["median"] > 0


def test_a_kernel_that_was_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, timed_of = tmp_path / "kernels.json", list[str]()

    def measure(name: str, problem: Problem, *given: Any) -> dict[str, Any]:
        timed_of.append(name)
        one = {"median": 1.0}
        return {"us": {"ours": one}, "gb_per_s": {"ours": one}, "fraction_of_copy": 0.5}

    monkeypatch.setattr(bench_kernels, "STAMPS", 2)
    monkeypatch.setattr(bench_kernels, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", "--minutes", "5", "--json", str(path)])
    for _ in range(2):
        with pytest.raises(SystemExit):
            bench_kernels.main()
    assert len(timed_of) == len(set(timed_of)), "each once"
    assert json.loads(path.read_text())["figures"]["pgd_fraction_of_copy"] == 0.5
