"""Which messages a rank exchanges with which ranks at a step, and which rows of a batch are in them."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from hpcphotoz.config import Overlap
from hpcphotoz.data.stream.device import copy_to_device
from hpcphotoz.training.overlap.partition import MessageSlice, RankSplit
from hpcphotoz.training.rank_batch import RankBatch

GlobalBatchSize = Callable[[int], int]  # objects in the global batch of a step


class ExchangeTopology:
    """The messages between learners and attackers, as one rank sees them.

    Args:
        split: which ranks attack.
        rank: this rank.
        fraction: fraction of attacked objects.
        overlap: staleness, and the number formats of images and weights.
        last: number of steps of the run.
        global_batch_size: number of objects in the global batch of a step.
        weights_group: process group of rank 0 and all attackers.
    """

    def __init__(
        self,
        split: RankSplit,
        rank: int,
        fraction: float,
        overlap: Overlap,
        last: int,
        global_batch_size: GlobalBatchSize,
        weights_group: dist.ProcessGroup | None,
    ) -> None:
        self.split, self.rank, self.fraction, self.overlap = split, rank, fraction, overlap
        self.last, self.global_batch_size, self.weights_group = last, global_batch_size, weights_group

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
        place = np.searchsorted(
            self.split.attacked_positions(self.rank, batch.size, self.fraction), batch.positions
        )
        mine = np.flatnonzero((place >= start) & (place < stop))
        device = batch.images.device
        return copy_to_device(torch.from_numpy(mine), device), copy_to_device(
            torch.from_numpy(place[mine] - start), device
        )

    def connect_peers(self, device: torch.device) -> None:
        """Exchange one byte with every peer, in the same order on all ranks.

        NCCL makes a connection at its first use, and both ends wait for each other. Two ranks that first used
        their connections in different orders would wait forever.
        """
        for attacker, learner in self.split.pairs(self.rank):
            byte = torch.zeros(1, dtype=torch.uint8, device=device)
            dist.send(byte, learner) if attacker == self.rank else dist.recv(byte, attacker)
