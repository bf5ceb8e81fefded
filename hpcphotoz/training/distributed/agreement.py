"""What a step gave on all learners, and what they do next: one small collective a step.

On a GPU the host does not wait for the step that it has launched: it reads what the step before gave, and
launches the next one meanwhile:

    host     launch 5 │ read 4 │ launch 6 │ read 5 │ ...
    device   step 4 ──────┤ step 5 ─────────┤ step 6 ...

A request to stop and a loss that is not finite are then acted on one step later, by all ranks after the same
step. Where a step's outcome is wanted at once, it is waited for: before anything is saved, written or
validated, so that what is saved has been found finite.
"""

import enum
import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hpcphotoz.data.stream.device import copy_to_device
from hpcphotoz.training.distributed import group
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.world import World


class Verdict(enum.IntEnum):
    """What all ranks do after a step."""

    GO_ON = 0
    STOP = 1
    PROBLEM = 2  # some rank cannot read or write
    DIVERGED = 3


class _PendingSums(NamedTuple):
    """Sums over learners on their way to the host."""

    sums: Tensor  # (7,) float64: the five of `add`; ranks that ask to stop; ranks with a problem
    copied: torch.cuda.Event | None
    objects: int  # of the global batch
    step: int  # counted from 1


class Agreement:
    """Adds up every step over the learners.

    Args:
        world: this rank's place among the learners.
        subgroup: their group; None: all ranks.
        add: called after every finite step with its sums, (5,) float64 (loss and number of the clean objects,
            loss and number of the attacked ones, number of skipped objects), and its global batch size.
        lags: whether a step's outcome may be read a step later.
    """

    def __init__(
        self, world: World, subgroup: group.Subgroup, add: Callable[[Tensor, int], None], lags: bool
    ) -> None:
        self._world, self._subgroup, self._add, self._lags = world, subgroup, add, lags
        self._pending: deque[_PendingSums] = deque()
        self.step = 0  # whose outcome was read last

    def after(
        self, sums: Tensor, batch: RankBatch, stop: bool, problem: bool, others: Tensor | None, now: bool
    ) -> Verdict:
        """What all ranks do after a step that has been launched.

        Args:
            sums: (4,) float64, on the device: as `Step` gives it.
            batch: what the step was taken with.
            stop, problem: whether this rank is asked to stop; whether it cannot read or write.
            others: (2,) float64: how many attackers ask to stop, and how many cannot read.
            now: whether the outcome of this very step is wanted.
        """
        flags = torch.tensor([batch.skipped, stop, problem], dtype=torch.float64)
        if others is not None:
            flags[1:] += others
        both = torch.cat([sums, copy_to_device(flags, sums.device)])
        both = group.sum_over_ranks(both, self._world, self._subgroup)
        self._pending.append(_on_host(both, batch))
        verdict = Verdict.GO_ON
        while len(self._pending) > (0 if now or verdict is Verdict.STOP or not self._lags else 1):
            verdict = max(verdict, self._read(self._pending.popleft()))
            if verdict > Verdict.STOP:
                break
        return verdict

    def _read(self, outcome: _PendingSums) -> Verdict:
        if outcome.copied is not None:
            outcome.copied.synchronize()
        sums, self.step = outcome.sums, outcome.step
        if sums[6] > 0:
            return Verdict.PROBLEM
        if not math.isfinite(sums[:4].sum()):
            return Verdict.DIVERGED
        self._add(sums[:5], outcome.objects)
        return Verdict.STOP if sums[5] > 0 else Verdict.GO_ON


def _on_host(sums: Tensor, batch: RankBatch) -> _PendingSums:
    if sums.device.type != "cuda":
        return _PendingSums(sums, None, batch.size, batch.step + 1)
    host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True).copy_(sums, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(sums.device))
    return _PendingSums(host, copied, batch.size, batch.step + 1)


def reads_later(device: torch.device) -> bool:
    """Whether the host runs ahead of the device, and had better not wait for it."""
    return device.type == "cuda"
