"""How long ranks wait for each other: long at the start and around pauses, short in other steps."""

from datetime import timedelta
from typing import Any

import pytest

from hpcphotoz.training.monitoring.lost_ranks import RankMonitor, WaitLimits
from hpcphotoz.training.run.timers import Timers
from tests.helpers.training.steps import CPU, configured


def test_the_first_step_waits_long_and_later_ones_do_not() -> None:
    limits = WaitLimits(600, 100)
    assert limits.seconds == 600 and limits.in_first_step
    limits.begin_step()
    assert limits.text == "run.start_timeout_s = 600 s" and limits.in_first_step
    limits.begin_step()
    assert limits.text == "run.timeout_s = 100 s" and not limits.in_first_step


def test_the_start_is_twice_as_long_unless_it_is_set() -> None:
    assert WaitLimits(0, 300).seconds == 600


@pytest.mark.parametrize("section", ["saving", "validation"])
def test_ranks_wait_long_from_a_pause_until_the_end_of_the_step_after_it(section: str) -> None:
    limits, timers = WaitLimits(600, 100), Timers(CPU)
    timers.listeners.append(limits.begin_section)
    for expected in (600, 100):
        limits.begin_step()
        assert limits.seconds == expected
    with timers(section):
        assert limits.seconds == 600
    for expected in (600, 100):
        limits.begin_step()
        with timers("data"):
            assert limits.seconds == expected


def test_process_groups_are_told_each_change_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []

    class Group:
        def set_timeout(self, timeout: timedelta) -> None:
            told.append(timeout.total_seconds())

    monkeypatch.setattr("torch.distributed.ProcessGroup", Group)
    limits: Any = WaitLimits(600, 100)
    limits.add(Group())
    limits.add(None)
    for _ in range(4):
        limits.begin_step()
    limits.begin_section("saving")
    assert told == [600, 100, 600]


def test_an_attacker_waits_long_where_learners_may_pause() -> None:
    """Epochs of 10 steps, checkpoints after 25: messages of steps k to k + 2 meet a pause after step k."""
    config = configured(mode="ranks", attackers=1, max_staleness=2, checkpoint_steps=25)
    limits: Any = WaitLimits(600, 100)
    monitor = RankMonitor(None, limits)  # type: ignore[arg-type]
    long = []
    for step in range(30):
        monitor.begin_attack(step, 10, config)
        if limits.seconds == 600:
            long.append(step)
    assert long == [0, 10, 11, 12, 20, 21, 22, 25, 26, 27]
