"""Times that the login node and a node write for each other prove a clock that is wrong, and only that."""

import time
from pathlib import Path

import pytest

from hpcphotoz.launch.doctor import job
from hpcphotoz.launch.doctor.facts import NodeFacts
from hpcphotoz.launch.doctor.finding import Level
from hpcphotoz.launch.doctor.job import _facts, _Watch
from hpcphotoz.launch.doctor.node import LOGIN_CLOCK, _Clock, beat_path, facts_path
from hpcphotoz.launch.doctor.node_rules import judge_nodes


def judged(folder: Path, login_is_ahead_s: float, node_is_ahead_s: float, late_s: float = 0.0) -> Level:
    """What is said of clocks that are wrong by these, if files are read `late_s` seconds after writing."""
    (folder / LOGIN_CLOCK).write_text(str(time.time() + login_is_ahead_s - late_s - node_is_ahead_s))
    clock = _Clock(folder, 0)
    clock.poll()
    written = NodeFacts(where="n1", stage="shared folder", login_ahead_s=(-1e9, clock.at_most_ahead_s))
    facts_path(folder, 0).write_text(written.model_dump_json())
    beat_path(folder, 0).write_text(str(time.time() + node_is_ahead_s - late_s - login_is_ahead_s))
    watch = _Watch("1", folder, 1)
    watch._exchange_times()
    node = _facts(folder, 0, watch)
    assert node is not None
    low, high = node.login_ahead_s
    assert low <= node_is_ahead_s - login_is_ahead_s <= high + 0.1
    return max(each.level for each in judge_nodes([node], None) if each.name == "clock")


@pytest.mark.parametrize(
    ("login", "node", "late", "want"),
    [
        (0.0, 0.0, 0.0, Level.OK),
        (0.0, 0.0, 30.0, Level.OK),  # a slow file system is no wrong clock
        (0.0, 5.0, 0.0, Level.WARNING),
        (5.0, 0.0, 0.0, Level.WARNING),
        (0.0, 5.0, 30.0, Level.OK),  # not proved
        (0.0, 400.0, 30.0, Level.PROBLEM),
        (400.0, 0.0, 30.0, Level.PROBLEM),
    ],
)
def test_a_wrong_clock_is_proved(login: float, node: float, late: float, want: Level, tmp_path: Path) -> None:
    assert judged(tmp_path, login, node, late) is want


def test_damaged_facts_count_as_none(tmp_path: Path) -> None:
    facts_path(tmp_path, 0).write_text('{"where": 3')
    assert job._facts(tmp_path, 0, _Watch("1", tmp_path, 1)) is None
