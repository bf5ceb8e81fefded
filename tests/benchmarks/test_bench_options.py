"""The benchmark of options: peak memory is that of one rival; a failing rival leaves the others alone."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_options
from benchmarks.bench_options import peak_gb
from benchmarks.training.steps import assembled, unguarded
from hpcphotoz.config import Config

CUDA = torch.device("cuda")
CPU = torch.device("cpu")


class Memory:
    """Stands in for torch's counters of a GPU's memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.peak = 0.0
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: self.now)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: self.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)

    def reset(self) -> None:
        self.peak = self.now

    def use(self, kept: float, during: float) -> None:
        """A training step: allocates `during` bytes at its peak and keeps `kept` bytes."""
        self.peak = max(self.peak, self.now + during)
        self.now += kept


@pytest.mark.parametrize("how", [*bench_options.ON_GPU.values(), *bench_options.EVERYWHERE.values()])
def test_every_rival_is_a_valid_training_configuration(how: dict[str, object]) -> None:
    usual: dict[str, object] = {"precision": "tf32", "compiled": "off", "graphs": "off"}
    found = bench_options.configured("inception", {**usual, **how}, 0.5, 10)
    options = {**found.overlap.model_dump(), **found.compute.model_dump(), **found.optimiser.model_dump()}
    assert all(options[name] == value for name, value in how.items())
    assert found.compute.compiled == how.get("compiled", "off"), "one option changes, or those that are named"


def test_peak_memory_is_that_of_one_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch)
    # The default: its weights stay, its activations were more than the rival's.
    memory.use(kept=3e9, during=20e9)
    assert peak_gb(lambda: memory.use(kept=2e9, during=5e9), CUDA)[0] == pytest.approx(5)
    memory.use(kept=0, during=20e9)  # the default's steps, in turn with the rival's
    assert peak_gb(lambda: memory.use(kept=1e9, during=1e9), CUDA)[0] == pytest.approx(1)
    assert peak_gb(lambda: "given", torch.device("cpu")) == (None, "given")


def test_memory_is_read_before_the_default_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch)

    def prepared(config: Config, size: int, device: torch.device) -> tuple[Callable[[], object], float]:
        memory.use(kept=1e9, during=1e9)
        return lambda: memory.use(kept=0, during=4e9), 1.0

    monkeypatch.setattr(bench_options, "prepared", prepared)
    config = bench_options.configured("compact", {"precision": "fp32"}, 0.5, 3)
    default = lambda: memory.use(kept=0, during=50e9)  # noqa: E731
    found = bench_options.against(default, config, 4, CUDA, {"fp32": 1.0, "bf16": 1.0}, 2)
    assert found["memory_gb"] == pytest.approx(5)


@pytest.mark.slow
def test_an_option_that_fails_leaves_the_others_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "options.json"

    def prepared(config: Config, size: int, device: torch.device) -> tuple[Callable[[], object], float]:
        if config.compute.precision == "bf16":
            raise RuntimeError("no such units")
        return lambda: None, 1.0

    monkeypatch.setattr(bench_options, "prepared", prepared)
    monkeypatch.setattr(bench_options, "matrix_rate", lambda device, dtype: 1.0)
    monkeypatch.setattr(bench_options, "chosen_precision", lambda device, network: "fp32")
    monkeypatch.setattr(sys, "argv", ["bench_options.py", "--networks", "compact", "--json", str(path)])
    with pytest.raises(SystemExit) as end:
        bench_options.main()
    record = json.loads(path.read_text())
    assert end.value.code == 1 and list(record["failures"]) == ["compact, all bfloat16"]
    found = record["figures"]["compact"]
    assert found["all bfloat16"] == {"fails": "RuntimeError: no such units"}
    assert found["all float32"]["ratio"]["n"] == 5 and found["channels_last off"]["memory_gb"] is None
    assert "compact, all bfloat16 fails: RuntimeError: no such units" in capsys.readouterr().out


def test_the_rival_without_a_guard_takes_every_update() -> None:
    config = bench_options.configured("compact", {"precision": "fp32"}, 0.0, 1)
    with unguarded():
        rival = assembled(config, 4, CPU)
    for (step, components, batch), finite in ((rival, False), (assembled(config, 4, CPU), True)):
        batch.images[0, 0, 0, 0] = torch.nan
        step()
        assert all(p.isfinite().all() for p in components.module.parameters()) == finite


def test_streams_are_compared_with_the_same_graphs_without_them() -> None:
    def measured(times: float) -> dict[str, dict[str, float]]:
        return {"ratio": {"median": times}}

    found: dict[str, Any] = {"batch": 256, "precision": "bf16", "graphs attack, streams": measured(2.2)}
    found |= {"graphs attack": measured(2.0), "streams": measured(0.9), "compiled": measured(1.5)}
    found |= {"graphs step": measured(2.5), "graphs step, streams": {"fails": "RuntimeError: capture"}}
    assert bench_options.streams_over_off(found) == {"graphs attack": pytest.approx(1.1)}
    # Each form with streams has its partner without.
    forms = [name for name in bench_options.ON_GPU if name.endswith(", streams")]
    assert len(forms) == 4 and all(name.removesuffix(", streams") in bench_options.ON_GPU for name in forms)


@pytest.mark.slow
def test_an_option_that_was_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, prepared_for = tmp_path / "options.json", list[Config]()

    def prepared(config: Config, size: int, device: torch.device) -> tuple[Callable[[], object], float]:
        prepared_for.append(config)
        return lambda: None, 1.0

    monkeypatch.setattr(bench_options, "prepared", prepared)
    monkeypatch.setattr(bench_options, "matrix_rate", lambda device, dtype: 1.0)
    monkeypatch.setattr(bench_options, "chosen_precision", lambda device, network: "fp32")
    words = ["bench_options.py", "--networks", "compact", "--minutes", "5", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", words)
    for _ in range(2):
        with pytest.raises(SystemExit):
            bench_options.main()
    rivals = len(bench_options.EVERYWHERE | bench_options.ON_CPU)
    assert len(prepared_for) == 1 + rivals + 1, "the second time the default alone"
    assert json.loads(path.read_text())["figures"]["compact"]["clean"]["ratio"]["n"] == 5
