"""Named timers count each second once."""

import pytest

from hpcphotoz.training.run.timers import Timers
from tests.helpers.training.steps import CPU


def test_sections_count_each_second_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 4.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    timers = Timers(CPU)
    with timers("unseen"):
        pass
    timers.active = True
    with timers("outer"), timers("inner"):
        pass
    assert timers.seconds() == {"outer": 7.0, "inner": 3.0}
