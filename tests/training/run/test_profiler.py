"""What the profile adds up from the profiler's events."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from hpcphotoz.training.run.profiler import all_reduce_seconds


@dataclass
class Event:
    """A profiler's event, microseconds."""

    name: str
    start: float
    end: float
    device_type: DeviceType = DeviceType.CPU
    time_range: SimpleNamespace = field(init=False)

    def __post_init__(self) -> None:
        """As torch keeps it."""
        self.time_range = SimpleNamespace(start=self.start, end=self.end)


def test_an_all_reduce_of_gloo_counts_once() -> None:
    """Names and order as torch 2.13 gives them: the operator begins it, the ranges of gloo overlap."""
    events = [
        Event("c10d::allreduce_", 0, 100),
        Event("gloo:all_reduce", 90, 1090),
        Event("c10d::allreduce_", 200, 300),
        Event("gloo:all_reduce", 290, 2090),
        Event("torch.distributed.ddp.reducer::copy_bucket_to_grad", 2100, 9000),
        Event("all-reduce", 0, 9000),
        Event("gloo:all_reduce", 3000, 4000),
    ]
    assert all_reduce_seconds(events, torch.device("cpu")) == pytest.approx(3000e-6)


def test_an_all_reduce_of_nccl_counts_once() -> None:
    """Host ranges last as long as the launch; a range on the device spans the kernel in it."""
    gpu = DeviceType.CUDA
    events = [
        Event("c10d::allreduce_", 0, 60),
        Event("nccl:all_reduce", 10, 50),
        Event("nccl:all_reduce", 500, 1500, gpu),
        Event("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 510, 1490, gpu),
        Event("void at::native::reduce_kernel<512, 1>", 1500, 1700, gpu),
    ]
    assert all_reduce_seconds(events, torch.device("cuda")) == pytest.approx(1000e-6)
    assert all_reduce_seconds(events[3:], torch.device("cuda")) == pytest.approx(980e-6)
    assert all_reduce_seconds([], torch.device("cuda")) == 0
