"""One optimisation step: forward and backward passes over clean and attacked objects, one update."""

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpcphotoz.training.compute import ComputeOptions
from hpcphotoz.training.objectives import ForwardBatch, TrainingObjective
from hpcphotoz.training.overlap.streams import AdversarySource
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.run.timers import Timers


@dataclass
class Step:
    """Takes one optimisation step per call.

    Gradients are those of the mean over the *global* batch. Slices of different length, empty ones too,
    therefore add up to the gradient that one rank would compute. Ranks average once, in the last pass.
    """

    model: nn.Module  # the network, in DistributedDataParallel if several ranks train
    optimiser: torch.optim.Optimizer
    adversaries: AdversarySource
    objective: TrainingObjective
    compute: ComputeOptions  # precision and size of micro-batches
    learners: int = 1  # number of ranks that train
    timers: Timers = field(default_factory=Timers)

    def __call__(self, batch: RankBatch) -> Tensor:
        """Attack, forward, backward, update; returns the sums of `gradients`."""
        sums = self.gradients(batch)
        with self.timers("optimiser"):
            self.optimiser.step()
        return sums

    def gradients(self, batch: RankBatch) -> Tensor:
        """Attack, forward, backward.

        Returns:
            (4,) float64, of this rank: sum of the losses of clean objects, their number, sum of the losses of
            attacked objects, their number.
        """
        self.optimiser.zero_grad()
        adversaries, objective = self.adversaries, self.objective
        # DistributedDataParallel divides gradients by the number of ranks. Undo this, and divide by the
        # number of objects instead.
        scale = self.learners / objective.objects(batch.size)
        adversaries.begin(batch)
        sums = torch.zeros(4, dtype=torch.float64, device=batch.images.device)
        if adversaries.overlaps:
            with self.timers("clean"):
                clean = objective.clean(batch)
                if len(clean):
                    sums = sums + self._pass(clean, scale, last=False)
            forward_batches = [objective.attacked(batch, adversaries.finish(batch))]
        else:
            forward_batches = objective.together(batch, adversaries.finish(batch))
        together = "clean and adversarial" if len(batch.attacked) else "clean"
        with self.timers("adversarial" if adversaries.overlaps else together):
            for number, forward_batch in enumerate(forward_batches):
                sums = sums + self._pass(forward_batch, scale, last=number == len(forward_batches) - 1)
        adversaries.done()
        return sums

    def _pass(self, forward_batch: ForwardBatch, scale: float, last: bool) -> Tensor:
        """Forward and backward; the last micro-batch of the `last` pass averages gradients over ranks."""
        loss_sums = torch.zeros(4, dtype=torch.float64, device=forward_batch.images.device)
        micro_batches = list(forward_batch.split(self.compute.micro_batch))
        for number, micro_batch in enumerate(micro_batches):
            average = last and number == len(micro_batches) - 1
            alone = isinstance(self.model, DistributedDataParallel) and not average
            with self.model.no_sync() if alone else nullcontext():  # type: ignore[operator]
                with self.compute.autocast(micro_batch.images.device):
                    logits = self.model(*self.objective.inputs(micro_batch))
                loss, sums = self.objective.loss(logits, micro_batch)
                (scale * loss).backward()  # type: ignore[no-untyped-call]
            loss_sums = loss_sums + sums
        return loss_sums
