"""Takes down the outcome of every step: figures, skipped steps with their objects, spikes of the loss."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hpcphotoz.output import number_of
from hpcphotoz.training.distributed import group
from hpcphotoz.training.distributed.agreement import AgreedStep
from hpcphotoz.training.optimisation.loss_spikes import LossSpikes
from hpcphotoz.training.optimisation.optimiser import never_updated
from hpcphotoz.training.overlap.roles import RankRole
from hpcphotoz.training.reporting.events import event_text, not_finite
from hpcphotoz.training.run.metrics import MetricsAccumulator
from hpcphotoz.world import World

_LISTED = 10  # objects in a message and in an event
_log = logging.getLogger(__name__)


class Diverged(Exception):
    """More steps in a row than may be skipped, or all, had a loss or a gradient that is not finite."""


class StepMonitor:
    """Takes down the outcome of every step on a learner, and says whether training goes on.

    Args:
        max_skipped: steps in a row that may be skipped.
        last_step: number of the last step of this process.
        optimiser: asked, where that step is skipped, whether any step of the run has changed the weights.
        begins_anew: whether this process takes the first step of the run.
        world: all ranks, and this rank's place among them.
        role: of this rank; all learners find the same steps skipped, and then tell each other the objects.
        metrics: where the figures are added.
        write: called with step, epoch and figures of an event, on all learners.
    """

    def __init__(
        self,
        max_skipped: int,
        last_step: int,
        optimiser: torch.optim.Optimizer,
        begins_anew: bool,
        world: World,
        role: RankRole,
        metrics: MetricsAccumulator,
        write: Callable[..., None],
    ) -> None:
        self._max_skipped, self._world, self._role = max_skipped, world, role
        self._last_step, self._optimiser, self._untouched = last_step, optimiser, begins_anew
        self.none_taken = False  # the last step was reached, and all were skipped
        self._metrics, self._write, self._spikes = metrics, write, LossSpikes()
        self._in_a_row = 0
        self.problem = ""  # of the last skipped step, for the message with which the run ends

    @property
    def last_skipped(self) -> str:
        """What to add to the message of a run that ends now; "": its last step was not skipped."""
        return f"; warning: its last step was skipped: {self.problem}" if self._in_a_row else ""

    def take_down(self, step: AgreedStep) -> bool:
        """Add a step to the figures; returns whether training goes on."""
        if step.skipped:
            return self._skipped(step)
        self._in_a_row, self._untouched = 0, False
        self._metrics.add(step.sums, step.norm, step.objects)
        clean, n_clean, attacked, n_attacked, _ = step.sums.tolist()
        loss = (clean + attacked) / max(n_clean + n_attacked, 1)
        if passed := self._spikes.limit_passed(loss):
            middle, limit = passed
            self._report(step, kind="loss_spike", step_loss=loss, median_loss=middle, limit=limit)
        return True

    def _skipped(self, step: AgreedStep) -> bool:
        self._in_a_row += 1
        self._metrics.add_skipped(float(step.sums[4]), step.objects)
        own = step.bad_ids()
        text = json.dumps([self._world.rank, len(own), own[:_LISTED]])
        texts = group.gather_texts(text, self._role.world, self._role.subgroup)
        found = [(rank, n, ids) for rank, n, ids in map(json.loads, filter(None, texts)) if n]
        ids = [number for _, _, some in found for number in some][:_LISTED]
        total, ranks = sum(n for _, n, _ in found), [rank for rank, _, _ in found]
        of_loss = bool(total) or not math.isfinite(step.sums[:4].sum())
        figures = {
            "reason": "loss" if of_loss else "gradient",
            "objects": total,
            "object_ids": ids,
            "ranks": ranks,
        }
        self.problem = f"{not_finite(figures)} at step {step.step}"
        if before := self._in_a_row - 1:
            were = f"{number_of(before, 'step')} before it {'was' if before == 1 else 'were'}"
            self.problem += f", and {were} skipped for the same reason"
        self._report(step, kind="skipped_step", **figures)
        if step.step == self._last_step:
            unmoved = never_updated(self._optimiser)
            self.none_taken = self._untouched if unmoved is None else unmoved
        return self._in_a_row <= self._max_skipped and not self.none_taken

    def _report(self, step: AgreedStep, **event: Any) -> None:
        """Log an event, and write it to the metrics."""
        _log.warning(event_text({"step": step.step, **event}))
        self._write(step.step, step.epoch, part="event", **event)


def diverged(out: Path, step: int, problem: str, none_taken: bool = False) -> Diverged:
    """The error that ends a run.

    Args:
        out: run folder.
        step: number of the last step.
        problem, none_taken: of `StepMonitor`; "" and False on attackers.
    """
    if none_taken:
        return Diverged(
            f"{out}: no step was taken, the weights are those of the start: {problem}: try "
            "compute.precision fp32 or a lower optimiser.learning_rate in another --out, or check the images "
            "with `hpcphotoz inspect --verify`"
        )
    return Diverged(
        f"{out}: {problem or f'the loss or gradient is not finite at step {step}'}: "
        "lower optimiser.learning_rate or set optimiser.clip_norm, or check the images with "
        "`hpcphotoz inspect --verify` (run.max_skipped_steps says how many steps in a row may be skipped); "
        "then start from an earlier checkpoint or anew"
    )
