"""A profile names the sections of a step, and counts each all-reduce once."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from hpcphotoz.training.run.profiler import all_reduce_seconds
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.training.runs import arguments, config


@dataclass
class Event:
    """A profiler's event, microseconds."""

    name: str
    start: float
    end: float
    device_type: DeviceType = DeviceType.CPU
    time_range: SimpleNamespace = field(init=False)

    def __post_init__(self) -> None:
        """Set the time range, as torch's events do."""
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


def test_a_run_too_short_for_a_profile_says_so(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(max_steps=5), dataset, tmp_path / "run", profile=True)
    assert "no profile: the run ended after 5 steps, want 8" in capsys.readouterr().out


def test_a_profile_says_where_the_time_went(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train(config(), dataset, out, profile=True)
    found = json.loads((out / "profile" / "summary.json").read_text())
    # The profile reaches over the end of an epoch.
    of_steps, after_them = (
        {"data", "attack", "clean and adversarial", "optimiser", "rest"},
        {"saving", "validation"},
    )
    assert set(found["shares"]) == of_steps | after_them
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert all(share >= 0 for share in found["shares"].values())
    # Operations are counted, steps take a millisecond or more, and a network of 8 channels is not efficient.
    assert 0 < found["fraction_of_device"] < 1
    text = (out / "profile" / "summary.txt").read_text()
    assert text in capsys.readouterr().out and "GFLOP/s" in text and len(text.splitlines()) < 20
    trace = json.loads((out / "profile" / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"attack", "data", "optimiser"} <= names


def test_a_profile_of_standard_training_speaks_of_no_attack(dataset: Path, tmp_path: Path) -> None:
    train(config(fraction=0.0), dataset, tmp_path / "run", profile=True)
    found = json.loads((tmp_path / "run" / "profile" / "summary.json").read_text())
    assert "clean" in found["shares"] and "clean and adversarial" not in found["shares"]


@pytest.mark.slow
def test_a_profile_on_two_ranks_sees_the_all_reduce(dataset: Path, tmp_path: Path) -> None:
    """Counting on rank 0 does not disturb other ranks."""
    words = [*arguments(dataset, tmp_path / "run", tmp_path, mode="streams"), "--profile"]
    for status, _, error in ranks.run(2, words):
        assert status == 0, error
    found = json.loads((tmp_path / "run" / "profile" / "summary.json").read_text())
    assert {"clean", "adversarial", "attack"} <= set(found["shares"]) and 0 < found["all_reduce"] < 1
    assert len(ranks.curve(tmp_path / "run")) == 20
