"""Which attacker serves which learner: every attacked position is sent once, for any split."""

import numpy as np
import pytest

from hpcphotoz.data.order import attacked_mask
from hpcphotoz.errors import BadInput
from hpcphotoz.training.overlap.topology import RankSplit, attackers_for_costs


@pytest.mark.parametrize("size", [0, 1, 7, 64, 1000])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(("ranks", "attackers"), [(2, 1), (4, 1), (4, 3), (7, 3), (96, 41)])
def test_every_attacked_position_travels_once(ranks: int, attackers: int, fraction: float, size: int) -> None:
    split = RankSplit(ranks, attackers)
    assert len(split.attacker_ranks) == attackers and not split.is_attacker(0)
    assert sorted(split.attacker_ranks + split.learner_ranks) == list(range(ranks))
    sent, received = (
        {
            (part.rank, rank) if split.is_attacker(rank) else (rank, part.rank): split.attacked_positions(
                rank, size, fraction
            )[part.start : part.stop].tolist()
            for rank in kind
            for part in split.message_slices(rank, size, fraction)
        }
        for kind in (split.attacker_ranks, split.learner_ranks)
    )
    assert sent == received, "both ends expect the same images, in the same order"
    pairs = {pair for rank in range(ranks) for pair in split.pairs(rank)}
    assert {(attacker, learner) for learner, attacker in sent} <= pairs, "connected before the first step"
    wanted = np.flatnonzero(attacked_mask(np.arange(size), fraction)).tolist()
    assert sorted(position for message in sent.values() for position in message) == wanted
    counts = [len(split.attacked_positions(rank, size, fraction)) for rank in split.attacker_ranks]
    assert max(counts) - min(counts) <= 2, "attackers have equal work"


@pytest.mark.parametrize(
    ("ranks", "attack", "train", "want"),
    # 2 K f / 3 : 1 for K = 3 and f = 0.5 is 1 : 1; for K = 10, 10 : 3.
    [(2, 1, 1, 1), (8, 1, 1, 4), (13, 10, 3, 10), (8, 1e-9, 1, 1), (8, 1e9, 1, 7)],
)
def test_the_split_nearest_the_costs(ranks: int, attack: float, train: float, want: int) -> None:
    assert attackers_for_costs(ranks, attack, train) == want


def test_splits_without_an_attacker_or_a_learner() -> None:
    for size, attackers in ((2, 0), (2, 2), (1, 1)):
        with pytest.raises(BadInput, match="at least one must attack and one learn"):
            RankSplit(size, attackers)
    with pytest.raises(BadInput, match="on 1 rank"):
        attackers_for_costs(1, 1, 1)


@pytest.mark.parametrize(("ranks", "attackers"), [(2, 1), (4, 3), (7, 3), (96, 41)])
def test_pairs_are_those_whose_slices_can_overlap(ranks: int, attackers: int) -> None:
    split, learners = RankSplit(ranks, attackers), ranks - attackers
    every = [
        (attacker, learner)
        for a, attacker in enumerate(split.attacker_ranks)
        for k, learner in enumerate(split.learner_ranks)
        if k * attackers < (a + 1) * learners and a * learners < (k + 1) * attackers
    ]
    for rank in range(ranks):
        assert split.pairs(rank) == [pair for pair in every if rank in pair]
