"""Learners and attackers: which rank is what, and who sends how many attacked images to whom. Arithmetic
alone.

Attackers and learners each cut the same global batch by `rank_slice`, by their own numbers. The attacked
positions that lie in an attacker's slice and in a learner's are a message from one to the other; slices and
attacked positions are in order, so a message is a run of neighbours on both sides.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hpcphotoz.data.order import Int64Array, attacked_mask, rank_slice
from hpcphotoz.errors import BadInput


@dataclass(frozen=True)
class MessageSlice:
    """A run of attacked images between two ranks: `start` to `stop` of one's own, in order of position."""

    rank: int  # the other
    start: int
    stop: int


@dataclass(frozen=True)
class RankSplit:
    """`attackers` of `size` ranks attack, spread evenly; rank 0, which writes, learns."""

    size: int
    attackers: int

    def __post_init__(self) -> None:
        if not 1 <= self.attackers < self.size:
            raise BadInput(
                f"overlap.attackers {self.attackers} of {self.size} rank(s): at least one must attack and "
                "one learn: start more ranks, or choose another overlap.mode"
            )

    def is_attacker(self, rank: int) -> bool:
        """Whether a rank attacks."""
        return (rank + 1) * self.attackers // self.size > rank * self.attackers // self.size

    @cached_property
    def attacker_ranks(self) -> tuple[int, ...]:
        """Ranks that attack, in order."""
        return tuple(rank for rank in range(self.size) if self.is_attacker(rank))

    @cached_property
    def learner_ranks(self) -> tuple[int, ...]:
        """Ranks that learn, in order."""
        return tuple(rank for rank in range(self.size) if not self.is_attacker(rank))

    def same_role(self, rank: int) -> tuple[int, ...]:
        """The ranks that do as this one does, in order."""
        return self.attacker_ranks if self.is_attacker(rank) else self.learner_ranks

    def pairs(self, rank: int) -> list[tuple[int, int]]:
        """Every (attacker, learner) that `rank` is one of and that may have a message, whatever the batch."""
        found, attackers, learners = [], len(self.attacker_ranks), len(self.learner_ranks)
        for a, attacker in enumerate(self.attacker_ranks):
            for k, learner in enumerate(self.learner_ranks):
                together = k * attackers < (a + 1) * learners and a * learners < (k + 1) * attackers
                if together and rank in (attacker, learner):
                    found.append((attacker, learner))
        return found

    def attacked_positions(self, rank: int, size: int, fraction: float) -> Int64Array:
        """Attacked positions of a global batch of `size` that lie in a rank's slice, in order."""
        same_role = self.same_role(rank)
        mine = rank_slice(size, same_role.index(rank), len(same_role))
        position = np.arange(mine.start, mine.stop)
        return position[attacked_mask(position, fraction)]

    def message_slices(self, rank: int, size: int, fraction: float) -> list[MessageSlice]:
        """What a rank sends or receives of a global batch, by the other rank; nothing where there is
        nothing.
        """
        mine = self.attacked_positions(rank, size, fraction)
        others = self.learner_ranks if self.is_attacker(rank) else self.attacker_ranks
        found = []
        for number, other in enumerate(others):
            theirs = rank_slice(size, number, len(others))
            start, stop = np.searchsorted(mine, [theirs.start, theirs.stop]).tolist()
            if stop > start:
                found.append(MessageSlice(other, start, stop))
        return found


def attackers_for_costs(size: int, attack: float, train: float) -> int:
    """How many of `size` ranks should attack: the split nearest attack : train, the costs of a global batch.

    By the cost law attack : train = 2 K f / 3 : 1.
    """
    if size < 2:
        raise BadInput(
            f"overlap.mode ranks on {size} rank: want at least two, one to attack and one to learn"
        )
    return min(max(round(size * attack / (attack + train)), 1), size - 1)
