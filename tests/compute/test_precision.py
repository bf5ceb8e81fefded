"""Precisions: contexts that set them, and trials that measure them."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from hpcphotoz.compute.precision import cudnn_benchmark, tf32, time_call
from hpcphotoz.compute.precision_trial import (
    quickest_on_cpu,
    seconds_of_a_pass,
)
from tests.helpers.training.steps import CPU

GPU = torch.device("cuda", 0)


def test_bfloat16_without_units_is_measured_to_be_slow() -> None:
    """As on AVX2 alone: oneDNN kept from its units takes 8 to 10 times as long."""
    code = "from hpcphotoz.compute.precision_trial import bfloat16_speedup; print(bfloat16_speedup())"
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


class Net(nn.Module):
    """A network of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.layer(images).mean((2, 3))
        return out


def test_tf32_is_what_is_asked_for_in_convolutions_and_matrix_products_and_is_put_back() -> None:
    def flags() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = flags()
    for on in (True, False):
        with tf32(on):
            assert flags() == (on, on)
    assert flags() == before


def test_a_gpu_tries_algorithms_where_shapes_are_fixed() -> None:
    before = torch.backends.cudnn.benchmark
    for device in (GPU, CPU):
        with cudnn_benchmark(device):
            assert torch.backends.cudnn.benchmark == (device is GPU)
    assert torch.backends.cudnn.benchmark == before


def test_a_call_is_timed_by_its_quickest_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 12.0, 20.0, 21.0, 30.0, 33.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert time_call(lambda: None, CPU) == 1.0
