"""After each step all learners agree whether to go on: one small all-reduce.

On a GPU the host does not wait for the step that it has just launched. It reads the outcome of the step
before, and launches the next one:

    host     launch 5 │ read 4 │ launch 6 │ read 5 │ ...
    device   step 4 ──────┤ step 5 ─────────┤ step 6 ...

All ranks then act on a request to stop, or on too many skipped steps, one step later, and after the same
step. Before something is written, saved or validated the host does wait for the outcome of the last step.
"""

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpcphotoz.data.stream.device import copy_to_device
from hpcphotoz.training.distributed import group
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.step import StepOutcome
from hpcphotoz.world import World


class Verdict(enum.IntEnum):
    """What all ranks do after a step; the greater verdict wins."""

    GO_ON = 0
    STOP = 1
    PROBLEM = 2  # a rank cannot read or write
    DIVERGED = 3  # more steps in a row than may be skipped had losses or gradients that are not finite
    ENDED_EARLY = 4  # after a validation: its figure has not become better for long enough


class AgreedStep(NamedTuple):
    """The outcome of a step, the same on all learners but for `bad_ids`."""

    step: int  # counted from 1
    epoch: int  # counted from 0
    objects: int  # of the global batch
    # (5,) float64 over the learners: loss and number of the clean objects, loss and number of the attacked
    # ones, number of the objects that were left out as damaged.
    sums: Tensor
    norm: float  # the greatest of the step's gradient norms; not finite: an update was left out
    bad_ids: Callable[[], list[int]]  # objects of this rank whose loss is not finite; waits for a GPU

    @property
    def skipped(self) -> bool:
        """Whether an update was left out."""
        return not np.isfinite([self.norm, *self.sums[:4].tolist()]).all()


class _PendingSums(NamedTuple):
    """Sums over learners that are being copied to the host."""

    sums: Tensor  # (8,) float64: those of `AgreedStep`; ranks that ask to stop; ranks with a problem; norm
    copied: torch.cuda.Event | None
    step: int  # these as in `AgreedStep`; the batch is not kept: a GPU needs its memory
    epoch: int
    objects: int
    object_ids: np.ndarray[tuple[int], np.dtype[np.int64]]  # of the rank batch
    bad_rows: Tensor  # as in `Losses`

    def bad_ids(self) -> list[int]:
        rows = self.bad_rows.cpu().numpy()
        return [int(number) for number in np.unique(self.object_ids[rows[rows >= 0]])]


@dataclass
class Agreement:
    """Sums the outcome of every step over the learners, and decides what they do next."""

    world: World  # the learners, and this rank's place among them
    subgroup: group.Subgroup  # process group of the learners
    # Called after every step, on all learners; returns whether training goes on.
    take_down: Callable[[AgreedStep], bool]
    lags: bool  # whether the outcome of a step may be read one step later

    def __post_init__(self) -> None:
        self._pending: deque[_PendingSums] = deque()
        self.step = 0  # last step whose outcome was read

    def after(
        self,
        outcome: StepOutcome,
        batch: RankBatch,
        stop: bool,
        problem: bool,
        others: Tensor | None,
        now: bool,
    ) -> Verdict:
        """The verdict of all ranks after a step that has been launched.

        Args:
            outcome: of the step on this rank.
            batch: the rank batch of the step.
            stop, problem: whether this rank is asked to stop; whether it cannot read or write.
            others: (2,) float64: number of attackers that are asked to stop, and that cannot read.
            now: whether to wait for the outcome of this step.
        """
        flags = torch.tensor([batch.skipped, stop, problem], dtype=torch.float64)
        if others is not None:
            flags[1:] += others
        sums = outcome.losses.sums
        both = torch.cat([sums, copy_to_device(flags, sums.device)])
        both = group.sum_over_ranks(both, self.world, self.subgroup)
        both = torch.cat([both, outcome.norms.amax()[None].double()])  # amax of a NaN is NaN
        self._pending.append(_on_host(both, batch, outcome.losses.bad_rows))
        verdict = Verdict.GO_ON
        while len(self._pending) > (0 if now or verdict is Verdict.STOP or not self.lags else 1):
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
        agreed = AgreedStep(
            self.step, outcome.epoch, outcome.objects, sums[:5], float(sums[7]), outcome.bad_ids
        )
        if not self.take_down(agreed):
            return Verdict.DIVERGED
        return Verdict.STOP if sums[5] > 0 else Verdict.GO_ON


def _on_host(sums: Tensor, batch: RankBatch, bad_rows: Tensor) -> _PendingSums:
    known = batch.step + 1, int(batch.epoch), batch.size, batch.catalogue_id, bad_rows
    if sums.device.type != "cuda":
        return _PendingSums(sums, None, *known)
    host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True).copy_(sums, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(sums.device))
    return _PendingSums(host, copied, *known)


def reads_later(device: torch.device) -> bool:
    """Whether outcomes are read one step late, so that the host does not wait for the device."""
    return device.type == "cuda"
