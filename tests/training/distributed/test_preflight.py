"""Checks once ranks have joined: the sum, clocks, installations and which rank is where."""

import socket
from pathlib import Path

import pytest
import torch

from hpcphotoz.training.distributed import preflight
from hpcphotoz.training.distributed.preflight import check_ranks, clocks_apart, difference, topology
from hpcphotoz.training.monitoring.lost_ranks import RankLost
from hpcphotoz.world import World
from tests.helpers.ranks import free_port
from tests.helpers.training.joins import ended, join
from tests.helpers.training.steps import CPU

HOST = socket.gethostname()


def test_a_clock_that_is_ahead_is_warned_of_by_rank_0() -> None:
    port = free_port()
    first, second = ended(join(0, 2, port, 60, CLOCK_AHEAD_S="-5"), join(1, 2, port, 60))
    assert (first[0], second[0]) == (0, 0)
    assert second[2] == [] and len(first[2]) == 1
    assert first[2][0].startswith(f"hpcphotoz: warning: clocks differ from that of {HOST}: {HOST} is ")
    assert f"2 ranks on 1 host ({HOST}: 0-1): gloo on CPUs" in first[1]


def test_a_wrong_sum_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def sums_wrongly(values: torch.Tensor) -> None:
        values[-1] = 4.0

    monkeypatch.setattr("torch.distributed.all_reduce", sums_wrongly)
    with pytest.raises(RankLost, match="the sum of 1 to 2 over all ranks is 4, seen by rank 1 on b"):
        check_ranks(World(1, 2), CPU, ["a", "b"])


def test_offsets_of_clocks_come_from_the_quickest_of_three_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank's clock is 7 s ahead, and it wakes late, by 0.5 and 3 s, after two of the sums."""
    clocks = iter([7.5, 10.0, 7.0, 7.0])
    mine = [0.0]

    def sums(values: torch.Tensor) -> None:
        values[0], values[2] = values[0] if not mine[0] else mine[0] + next(clocks), 3.0

    monkeypatch.setattr("torch.distributed.all_reduce", sums)

    def now() -> float:
        mine[0] += 100.0
        return mine[0]

    monkeypatch.setattr("time.time", now)
    assert check_ranks(World(1, 2), CPU, ["a", "b"]) == -7.0


def test_hosts_are_named_once_and_small_differences_are_not() -> None:
    assert clocks_apart([0.0, 0.9, -0.9], ["a", "b", "c"]) == ""
    text = clocks_apart([0.0, 0.0, 2.0, 2.2, -30.0], ["a", "a", "b", "b", "c"])
    assert text == "clocks differ from that of a: b is 2.1 s ahead, c is 30.0 s behind: times in logs do too"
    many = clocks_apart([0.0, *[5.0] * 1000], [f"node{k}" for k in range(1001)])
    assert many.count(" ahead") == 8 and "and 992 more" in many


def test_the_topology_of_many_ranks_is_one_short_line() -> None:
    assert topology(["a", "a", "b"]) == "3 ranks on 2 hosts (a: 0-1, b: 2)"
    assert topology(["a", "b", "a"]) == "3 ranks on 2 hosts (a: 0, 2, b: 1)"
    text = topology([f"node{k // 8}" for k in range(1024)])
    assert text.startswith("1024 ranks on 128 hosts (node0: 0-7, ") and len(text) < 200


def test_a_difference_names_both_ranks_hosts_and_values() -> None:
    told = [("a", "1"), ("a", "1"), ("b", "2"), ("c", "3")]
    assert difference("x", told, "do y") == (
        "x is not the same on all ranks: rank 2 on b has 2, rank 0 on a has 1: do y"
    )
    assert difference("x", told[:2], "do y") is None


def test_the_installation_is_known_by_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    before = preflight.installation()
    assert before == preflight.installation() and before["torch"] == torch.__version__
    preflight.installation.cache_clear()
    read = Path.read_bytes
    changed = "pgd.py"  # of the kernels, behind a link
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b" " * (path.name == changed))
    assert preflight.installation()["hpcphotoz"] != before["hpcphotoz"]
    preflight.installation.cache_clear()
