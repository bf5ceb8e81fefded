"""Timed trials choose the precision."""

import os
import subprocess
import sys

import pytest
from torch import Tensor, nn

from hpcphotoz.compute import precision
from hpcphotoz.compute.precision import (
    bf16_warning,
    precision_of_attacks,
    quickest_on_cpu,
    seconds_of_a_pass,
)
from tests.helpers.training.fake_gpu import FakeGPU
from tests.helpers.training.steps import CPU


class Net(nn.Module):
    """A network of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.layer(images).mean((2, 3))
        return out


def test_bfloat16_without_units_is_measured_to_be_slow() -> None:
    """oneDNN limited to AVX2 takes 8 to 10 times as long."""
    code = "from hpcphotoz.compute.precision import bfloat16_speedup; print(bfloat16_speedup())"
    weak = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=weak, capture_output=True, text=True, check=True, timeout=60
    )
    assert float(found.stdout) < 0.7
    assert quickest_on_cpu(float(found.stdout))[0] == "fp32"


def test_a_trial_of_the_passes_leaves_the_network_as_it_was() -> None:
    module = nn.Conv2d(3, 4, 3)
    net = Net(module)
    found = seconds_of_a_pass(net, CPU, (4, 3, 8, 8), compiled=False, graph=False)
    assert set(found) == {"tf32", "bf16"} and all(0 < seconds < 60 for seconds in found.values())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_only_slow_bfloat16_is_warned_of() -> None:
    assert bf16_warning("bf16", 2.0) is None and bf16_warning("fp32", 0.1) is None


def test_attacks_use_the_quickest_precision_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    net, shape = nn.Linear(1, 1), (512, 5, 64, 64)
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda: 0.125)
    found, said = precision_of_attacks("auto", net, "cpu", shape)
    assert found == "fp32"
    assert said == "gradients of attacks in fp32 (measured: convolutions in bf16 are 8.0 times slower here)"
    assert precision_of_attacks("fp32", net, "cpu", shape) == ("fp32", "")
    assert precision_of_attacks("bf16", net, "cpu", shape)[1].startswith("warning: bf16 on this CPU: ")
    FakeGPU(monkeypatch)
    found, said = precision_of_attacks("auto", net, "cuda", shape)
    assert found == "tf32" and "a pass over 512 images takes 31 ms in tf32, 38.2 ms in bf16" in said
    assert precision_of_attacks("bf16", net, "cuda", shape) == ("bf16", "")
    FakeGPU(monkeypatch, capability=(7, 5))
    assert precision_of_attacks("auto", net, "cuda", shape)[0] == "fp32"
