"""Contexts that set precision and algorithms, and the timing of a call."""

import pytest
import torch

from hpcphotoz.compute.precision import cudnn_benchmark, tf32, time_call
from tests.helpers.training.steps import CPU

GPU = torch.device("cuda", 0)


def test_tf32_is_set_for_convolutions_and_matrix_products_and_restored() -> None:
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
