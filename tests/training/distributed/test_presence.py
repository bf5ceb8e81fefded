"""Ranks that have ended or cannot be reached are told from those that are there, running or stopped."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest
from torch import distributed as dist

from hpcphotoz.training.distributed.presence import ENDED, Presence, RankAddress, missing

NOWHERE = "255.255.255.255"  # the address of all hosts, to which the kernel makes no connection


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process with a port of its own."""
    code = "from hpcphotoz.training.distributed.presence import Presence\nprint(Presence().port, flush=True)"
    code = code.replace("print(Presence()", "p = Presence(); print(p").replace("True)", "True); input()")
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


def test_a_stopped_rank_is_there_and_a_killed_one_has_ended(other: tuple[subprocess.Popen[str], int]) -> None:
    process, port = other
    ranks = {k: RankAddress("a", "127.0.0.1", port) for k in range(3)}
    assert missing(ranks) == {}
    os.kill(process.pid, signal.SIGSTOP)
    assert missing(ranks) == {}
    process.kill()
    process.wait(timeout=60)
    assert missing(ranks) == dict.fromkeys(range(3), ENDED)


def test_a_port_answers_more_ranks_than_its_backlog_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of ranks look for a lost one at the same time, and again."""
    monkeypatch.setattr(f"{Presence.__module__}._BACKLOG", 1)
    presence = Presence()
    for _ in range(10):
        assert missing({0: RankAddress("a", "127.0.0.1", presence.port)}) == {}
    presence.close()
    assert missing({0: RankAddress("a", "127.0.0.1", presence.port)}) == {0: ENDED}


def test_a_rank_looks_a_few_times_for_one_that_is_dying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look is a connection to every rank, and a rank that hangs takes none off its backlog."""
    ranks, looks = [Presence() for _ in range(2)], list[int]()
    at = [RankAddress("a", "127.0.0.1", each.port) for each in ranks]
    for number, presence in enumerate(ranks):
        presence.meet(at, number, "127.0.0.1", None)

    def look(others: Mapping[int, RankAddress]) -> dict[int, str]:
        looks.append(len(others))
        return {}

    monkeypatch.setattr(f"{Presence.__module__}.missing", look)
    assert ranks[0].missing_ranks() == "" and 2 <= len(looks) <= 4
    for presence in ranks:
        presence.close()


def test_ranks_are_named_but_for_those_that_left_because_of_another() -> None:
    """Rank 0 asks. Rank 1 is there, 2 was killed, 3 left because of it, 4 is on a host that is cut off."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    ranks = [Presence() for _ in range(5)]
    at = [RankAddress(f"node{k // 2}", "127.0.0.1", presence.port) for k, presence in enumerate(ranks)]
    at[4] = at[4]._replace(address=NOWHERE)
    assert ranks[0].describe_missing() == ranks[0].missing_ranks() == "", "they have not met"
    for number, presence in enumerate(ranks):
        presence.meet(at, number, "127.0.0.1", store)
    gone = "rank 4 on node2 cannot be reached"
    assert ranks[0].describe_missing() == ranks[0].missing_ranks() == f"seen from node0, {gone}"
    ranks[3].leave()
    for number in (2, 3):
        ranks[number].close()
    assert ranks[0].describe_missing() == f"seen from node0, rank 2 on node1 has ended, {gone}"
    for presence in ranks:
        presence.close()


def test_a_killed_rank_whose_port_still_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 is killed: its connections go first. Rank 2 has left because of it when rank 0 looks."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    ranks = [Presence() for _ in range(3)]
    at = [RankAddress("node0", "127.0.0.1", each.port) for each in ranks]
    for number, each in enumerate(ranks):
        each.meet(at, number, "127.0.0.1", store)
        each.close()
    ranks[2].leave()
    looks = iter([{}, {2: ENDED}, {1: ENDED, 2: ENDED}])
    monkeypatch.setattr(f"{Presence.__module__}.missing", lambda others: next(looks))
    assert ranks[0].describe_missing() == "seen from node0, rank 1 on node0 has ended"
    monkeypatch.setattr(f"{Presence.__module__}.missing", lambda others: {2: ENDED})
    monkeypatch.setattr(f"{Presence.__module__}._DYING_S", 0.0)
    assert ranks[0].describe_missing() == "seen from node0, rank 2 on node0 has ended", "nobody else has"


def test_a_rank_that_hangs_is_named_in_the_place_of_those_that_left_because_of_it() -> None:
    store = dist.HashStore()  # type: ignore[attr-defined]
    ranks = [Presence() for _ in range(3)]
    at = [RankAddress("a", "127.0.0.1", each.port) for each in ranks]
    for number, presence in enumerate(ranks):
        presence.meet(at, number, "127.0.0.1", store)
    hangs = "all ranks are there, so one hangs: rank 1 is silent"
    assert ranks[0].describe_missing(hung=lambda _: "rank 1 is silent") == hangs
    ranks[2].leave()
    ranks[2].close()
    assert ranks[0].describe_missing(hung=lambda _: "rank 1 is silent") == "rank 1 is silent"
    assert ranks[0].describe_missing() == "seen from a, rank 2 on a has ended", "no other is to blame"
    for presence in ranks:
        presence.close()


def test_where_nobody_is_missing_one_hangs() -> None:
    ranks = [Presence() for _ in range(2)]
    for number, presence in enumerate(ranks):
        at = [RankAddress("a", "127.0.0.1", each.port) for each in ranks]
        presence.meet(at, number, "127.0.0.1", None)
    assert ranks[1].describe_missing() == "all ranks are there, so one hangs"
    assert ranks[1].missing_ranks() == ""
    for presence in ranks:
        presence.close()


def test_the_host_of_rank_0_is_looked_for_at_the_address_of_the_store() -> None:
    """Where its name stands for a loopback address, rank 0 knows no other; ranks beside it use that."""
    at = [RankAddress("a", "127.0.1.1", 1), RankAddress("a", "127.0.1.1", 2), RankAddress("b", "10.0.0.2", 3)]
    for number, first in ((1, "127.0.1.1"), (2, "10.0.0.1")):
        presence = Presence()
        presence.meet(at, number, "10.0.0.1", None)
        assert [rank.address for rank in presence._ranks] == [first, first, "10.0.0.2"]
        presence.close()
