"""A rank's own work in a step ends where it begins to wait for others."""

import pytest
import torch
from torch import nn

from hpcphotoz.training.monitoring.own_work import OwnWork
from hpcphotoz.training.run.timers import Timers
from tests.helpers.training.steps import CPU


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_the_wait_in_the_backward_pass_and_for_attackers_is_left_out(clock: list[float]) -> None:
    timers, layer = Timers(CPU), nn.Linear(2, 1)
    work = OwnWork(timers)
    work.watch(layer, CPU, 2)
    for waited in (5.0, 70.0):
        work.begin_step()
        with timers("wait for other ranks"):
            clock[0] += waited
        clock[0] += 2.0
        layer(torch.ones(1, 2)).sum().backward()
        clock[0] += waited  # DistributedDataParallel waits
        with timers("agreement of ranks"):
            clock[0] += 1.0
    assert work.mean_s == 2.0, "of the first step: the second has not ended"
    work.begin_step()
    assert work.mean_s == 2.0


def test_without_hooks_work_ends_at_the_first_collective(clock: list[float]) -> None:
    """As in a CUDA graph of the step, after which gradients are averaged."""
    timers = Timers(CPU)
    work = OwnWork(timers)
    assert work.mean_s is None
    for own in (3.0, 5.0):
        work.begin_step()
        clock[0] += own
        with timers("all-reduce"):
            clock[0] += 60.0
        with timers("agreement of ranks"):
            clock[0] += 60.0
    work.begin_step()
    assert work.mean_s == 4.0


def test_a_step_with_a_validation_is_left_out(clock: list[float]) -> None:
    timers = Timers(CPU)
    work = OwnWork(timers)
    work.begin_step()
    with timers("agreement of ranks"):
        clock[0] += 1.0
    with timers("validation"), timers("data"):
        clock[0] += 60.0
    work.begin_step()
    assert work.mean_s is None


def test_one_rank_gets_no_hooks() -> None:
    layer = nn.Linear(2, 1)
    OwnWork(Timers(CPU)).watch(layer, CPU, 1)
    assert layer.weight._post_accumulate_grad_hooks is None
