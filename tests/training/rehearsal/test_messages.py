"""The message plan finds ends that do not agree, and ranks that wait for each other."""

from dataclasses import replace

import pytest

from hpcphotoz.training.overlap.topology import MessageSlice, RankSplit
from hpcphotoz.training.rehearsal.messages import plan_messages, stuck_ranks

SHAPE = (5, 8, 8)


@pytest.mark.parametrize(("ranks", "attackers"), [(2, 1), (4, 3), (96, 41)])
@pytest.mark.parametrize(("transfer", "one"), [("fp32", 4 * 320), ("bf16", 2 * 320), ("int8", 320 + 4 * 5)])
def test_all_images_travel_once(ranks: int, attackers: int, transfer: str, one: int) -> None:
    plan = plan_messages(RankSplit(ranks, attackers), 2048, 0.5, transfer, SHAPE)
    assert not plan.problems and sum(plan.images.values()) == 1024
    assert sum(plan.bytes.values()) == 1024 * one + 64 * len(plan.images)
    if ranks == 2:
        assert plan.most(0) == plan.most(1) == (1, 1024 * one + 64)


def test_the_largest_of_both_ends() -> None:
    plan = plan_messages(RankSplit(4, 1), 12, 1.0, "fp32", SHAPE)
    size = 4 * 4 * 320 + 64
    assert plan.most(0) == (3, 3 * size) and plan.most(1) == (1, size)


def test_ends_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    right = RankSplit.message_slices

    def wrong(self: RankSplit, rank: int, size: int, fraction: float) -> list[MessageSlice]:
        found = right(self, rank, size, fraction)
        return [replace(one, stop=one.stop - 1) for one in found] if rank == 1 else found

    monkeypatch.setattr(RankSplit, "message_slices", wrong)
    problems = plan_messages(RankSplit(4, 2), 16, 1.0, "fp32", SHAPE).problems
    assert problems[0] == "attacker 1 sends 7 images to learner 0, which waits for 8, or for others"


def test_a_pair_that_is_not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RankSplit, "pairs", lambda self, rank: [])
    problems = plan_messages(RankSplit(2, 1), 16, 1.0, "fp32", SHAPE).problems
    assert problems == ["attacker 1 and learner 0 are not connected before their first message"]


def test_ranks_that_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stuck_ranks([[(1, 0)], [(1, 0)], []]) == []
    ring = [[(2, 0), (3, 0)], [(3, 1), (2, 1)], [(2, 1), (2, 0)], [(3, 0), (3, 1)]]
    assert stuck_ranks(ring) == [0, 1, 2, 3]
    right = RankSplit.pairs
    monkeypatch.setattr(RankSplit, "pairs", lambda self, rank: [] if rank == 0 else right(self, rank))
    problems = plan_messages(RankSplit(2, 1), 16, 1.0, "fp32", SHAPE).problems
    assert problems == ["ranks [1] wait for each other while they connect"]
