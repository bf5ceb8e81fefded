"""Which ranks learn and which attack, and the messages between them: ranges of the attacked images.

The attackers divide the global batch among themselves with `rank_slice`, and so do the learners. The attacked
positions that lie both in an attacker's slice and in a learner's form one message. Slices and attacked
positions are sorted, so that a message is a contiguous range of the attacked images on both sides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from hpcphotoz.config import Overlap
from hpcphotoz.data.order import Int64Array, attacked_mask, rank_slice
from hpcphotoz.data.stream.device import copy_to_device
from hpcphotoz.errors import BadInput
from hpcphotoz.training.rank_batch import RankBatch


@dataclass(frozen=True)
class MessageSlice:
    """One message: the range of this rank's attacked images, in order of position, that it holds."""

    rank: int  # the other rank
    start: int
    stop: int


@dataclass(frozen=True)
class RankSplit:
    """Roles of `size` ranks: `attackers` of them attack, spread evenly; rank 0 learns, because it writes."""

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
        """The ranks that attack, in order."""
        return tuple(rank for rank in range(self.size) if self.is_attacker(rank))

    @cached_property
    def learner_ranks(self) -> tuple[int, ...]:
        """The ranks that learn, in order."""
        return tuple(rank for rank in range(self.size) if not self.is_attacker(rank))

    def same_role(self, rank: int) -> tuple[int, ...]:
        """The ranks with the same role as `rank`, in order."""
        return self.attacker_ranks if self.is_attacker(rank) else self.learner_ranks

    def pairs(self, rank: int) -> list[tuple[int, int]]:
        """Every (attacker, learner) with `rank` in it whose slices can overlap, whatever the batch size."""
        attackers, learners = len(self.attacker_ranks), len(self.learner_ranks)
        number = self.same_role(rank).index(rank)
        if self.is_attacker(rank):
            every = [(number, k) for k in range(learners)]
        else:
            every = [(a, number) for a in range(attackers)]
        return [
            (self.attacker_ranks[a], self.learner_ranks[k])
            for a, k in every
            if k * attackers < (a + 1) * learners and a * learners < (k + 1) * attackers
        ]

    def attacked_positions(self, rank: int, size: int, fraction: float) -> Int64Array:
        """Attacked positions in a rank's slice of a global batch of `size` objects, in order."""
        same_role = self.same_role(rank)
        mine = rank_slice(size, same_role.index(rank), len(same_role))
        position = np.arange(mine.start, mine.stop)
        return position[attacked_mask(position, fraction)]

    def message_slices(self, rank: int, size: int, fraction: float) -> list[MessageSlice]:
        """The messages that a rank sends or receives for a global batch; there are no empty ones."""
        mine = self.attacked_positions(rank, size, fraction)
        others = self.learner_ranks if self.is_attacker(rank) else self.attacker_ranks
        found = []
        for number, other in enumerate(others):
            theirs = rank_slice(size, number, len(others))
            start, stop = np.searchsorted(mine, [theirs.start, theirs.stop]).tolist()
            if stop > start:
                found.append(MessageSlice(other, start, stop))
        return found


def refuse_one_rank(size: int) -> None:
    """Raise BadInput unless there is a rank to attack and one to learn."""
    if size < 2:
        raise BadInput(
            f"overlap.mode ranks on {size} rank: want at least two, one to attack and one to learn: start it "
            "with `torchrun --nproc-per-node 2 -m hpcphotoz train ...`, or with --overlap.mode streams"
        )


def attackers_for_costs(size: int, attack: float, train: float) -> int:
    """Number of attackers among `size` ranks that balances the costs of attack and training.

    Args:
        size: number of ranks.
        attack, train: costs of a global batch, in the same unit; 2 K f / 3 : 1 by the cost law.
    """
    refuse_one_rank(size)
    return min(max(round(size * attack / (attack + train)), 1), size - 1)


@dataclass(frozen=True)
class ExchangeTopology:
    """The messages between learners and attackers, as one rank sees them."""

    split: RankSplit
    rank: int
    fraction: float  # of attacked objects
    overlap: Overlap
    last: int  # number of steps of the run
    global_batch_size: Callable[[int], int]  # objects in the global batch of a step
    weights_group: dist.ProcessGroup | None  # of rank 0 and all attackers

    def needed(self, version: int, first: int) -> bool:
        """Whether a process that starts at step `first` attacks with the weights after `version` updates."""
        return first < version <= self.last - 1 - self.overlap.max_staleness

    def message_slices(self, step: int) -> list[MessageSlice]:
        """The messages that this rank sends or receives at a step."""
        return self.split.message_slices(self.rank, self.global_batch_size(step), self.fraction)

    def rows(self, batch: RankBatch, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Attacked images of a rank batch that belong to a message: their rows, and their places in it.

        Skipped objects are missing in the batch, so that some places may stay empty.
        """
        every = self.split.attacked_positions(self.rank, batch.size, self.fraction)
        place = np.searchsorted(every, batch.positions)
        mine = np.flatnonzero((place >= start) & (place < stop))
        rows, places = (torch.from_numpy(numbers) for numbers in (mine, place[mine] - start))
        return copy_to_device(rows, batch.images.device), copy_to_device(places, batch.images.device)

    def connect_peers(self, device: torch.device) -> None:
        """Exchange one byte with every peer, in the same order on all ranks.

        NCCL makes a connection at its first use, and both ends wait for each other. Two ranks that first used
        their connections in different orders would wait forever.
        """
        for attacker, learner in self.split.pairs(self.rank):
            byte = torch.zeros(1, dtype=torch.uint8, device=device)
            dist.send(byte, learner) if attacker == self.rank else dist.recv(byte, attacker)
