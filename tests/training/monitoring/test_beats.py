"""Ranks tell each other what they do; the one that is silent, behind or slow is named."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from torch import distributed as dist

from hpcphotoz.heartbeat import ENDED, Beat, Heartbeat, read_heartbeat, write_heartbeat
from hpcphotoz.training.monitoring.beats import BeatThread, LastWords
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.world import World
from tests.helpers.training.steps import CPU


class Store:
    """A store in this process; `clone` gives the same one."""

    def __init__(self) -> None:
        self._own = dist.HashStore()  # type: ignore[attr-defined]

    def clone(self) -> "Store":
        return self

    def __getattr__(self, name: str) -> object:
        return getattr(self._own, name)

    def beat(self, rank: int, **facts: object) -> None:
        """A rank on another host sends a beat."""
        told = {
            "step": 17,
            "phase": "passes",
            "since": time.time(),
            "time": time.time(),
            "work_s": 0.1,
            **facts,
        }
        beat = Beat(rank, f"node{rank}", 70 + rank, "rank", **told)  # type: ignore[arg-type]
        self._own.set(f"beat/{rank}", json.dumps(asdict(beat)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "timed out"


def test_the_file_says_what_a_rank_does_and_that_it_has_ended(run: Path) -> None:
    timers = Timers(CPU)

    def phase() -> str:
        found = read_heartbeat(run)
        return found.beats[0].phase if found else ""

    with BeatThread(run, World(), None, timers, timeout_s=0.2) as beats:
        beats.state = lambda: ("rank", 17)
        until(lambda: phase() == "starting")
        for section, expected in [("data", "reading"), ("attack", "attack"), ("validation", "validating")]:
            with timers("clean"), timers(section):
                until(lambda expected=expected: phase() == expected)  # type: ignore[misc]
        until(lambda: phase() == "passes")
        found = read_heartbeat(run)
        assert found
        begun, seen = found.beats[0].since, found.time
        until(lambda: ((later := read_heartbeat(run)) is not None) and later.time > seen + 0.02)
        found = read_heartbeat(run)
        assert found and found.beats[0].since == pytest.approx(begun, abs=0.005), "the phase goes on"
        assert beats.straggler_figures() == {}
    found = read_heartbeat(run)
    assert found and (found.beats[0].phase, found.beats[0].step) == (ENDED, 17)


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    with BeatThread(tmp_path / "gone", World(), None, Timers(CPU), timeout_s=0.2) as beats:
        until(lambda: beats._newest is not None)


def test_the_slowest_rank_is_told_from_the_beats(run: Path) -> None:
    store = Store()
    beats = BeatThread(run, World(0, 4), store, Timers(CPU), timeout_s=100)
    assert beats.straggler_figures() == {"slowest_rank": None, "straggler_ratio": None}
    for rank, work_s in [(1, 0.2), (2, 0.9), (3, 0.3)]:
        store.beat(rank, work_s=work_s)
    with beats:
        until(lambda: beats._newest is not None)
    assert beats.straggler_figures() == {"slowest_rank": 2, "straggler_ratio": pytest.approx(3.0)}


def test_silent_ranks_are_named_with_what_they_did(run: Path) -> None:
    store = Store()
    beats = BeatThread(run, World(0, 3), store, Timers(CPU), timeout_s=100)
    store.beat(1, time=time.time() - 60, phase="reading")
    store.beat(2)
    words = LastWords(beats)
    text = words.hung([])
    assert (
        text.startswith("rank 1 on node1 (process 71) is silent since ") and "reading after step 17" in text
    )
    assert words.about(1).startswith(" (last seen ")
    assert not words.hung([1]), "it is told already"


def test_a_rank_whose_main_thread_hangs_is_behind(run: Path) -> None:
    store = Store()
    beats = BeatThread(run, World(0, 3), store, Timers(CPU), timeout_s=100)
    beats.state = lambda: ("rank", 17)
    store.beat(1, step=16, phase="reading", since=time.time() - 90)
    store.beat(2, phase="waiting for ranks", since=time.time() - 90)
    text = LastWords(beats).hung([])
    assert text.startswith("rank 1 on node1 (process 71) is behind, reading after step 16 since ")


def test_where_the_store_is_lost_the_file_tells(run: Path) -> None:
    store = Store()
    store.beat(1, time=time.time() - 60)
    with BeatThread(run, World(0, 2), store, Timers(CPU), timeout_s=100) as first:
        until(lambda: first._newest is not None)

    class Lost(Store):
        def check(self, _: object) -> bool:
            raise dist.DistError("gone")

    beats = BeatThread(run, World(2, 3), Lost(), Timers(CPU), timeout_s=100)
    text = LastWords(beats).hung([])
    assert text.startswith("rank 1 on node1 (process 71) is silent since ")
    # Rank 0, which writes the file, hangs: it is the one to name.
    old = time.time() - 100
    first_beat = Beat(0, "node0", 70, "rank", 17, "passes", old, old)
    write_heartbeat(run, Heartbeat(old, 5.0, (first_beat,)))
    assert LastWords(beats).hung([]).startswith("rank 0 on node0 (process 70) is silent since ")


def test_nobody_knows_before_the_first_beat() -> None:
    words = LastWords(None)
    assert words.about(1) == "" and words.hung([]) == ""


def test_the_clock_of_a_host_that_is_ahead_does_not_matter(run: Path) -> None:
    store = Store()
    beats = BeatThread(run, World(1, 2), store, Timers(CPU), timeout_s=100, clock_ahead_s=3600.0)
    store.beat(0, time=time.time() - 3600)
    assert not LastWords(beats).hung([])
