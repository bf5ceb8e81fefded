"""Free adversarial training (Shafahi et al. 2019, arXiv:1904.12843): K updates per batch.

Each backward pass gives two gradients: that of the weights, for an update, and that of the attacked images,
for their next attack step. K = `attack.steps` updates cost as much as K clean steps. The perturbation of an
object begins anew with each batch, at the object's random start: it depends on no other batch or rank.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hpcphotoz.attacks.ball import RandomStart, attack_batch, replace_rows
from hpcphotoz.attacks.from_config import ball_and_step
from hpcphotoz.attacks.passes.runner import start_key
from hpcphotoz.config import Config
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.adversaries import attack_at, start_seed
from hpcphotoz.training.compute import ComputeOptions
from hpcphotoz.training.objectives import Losses, attacked_rows, bad_rows, sum_losses
from hpcphotoz.training.optimisation.guarded_update import GuardedUpdate, loss_scale
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.training.step import StepOutcome


@dataclass
class FreeStep:
    """Takes all K updates of a batch per call. Fields as in `step.Step`; there are no micro-batches.

    An update that is not finite is left out, and the others are taken.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    config: Config
    bins: RedshiftBins
    compute: ComputeOptions
    learners: int = 1
    timers: Timers = field(default_factory=Timers)

    def __post_init__(self) -> None:
        self._guard = GuardedUpdate(self.model, self.optimiser, self.config.optimiser.clip_norm)

    def __call__(self, batch: RankBatch) -> StepOutcome:
        """Update K times; returns the sums of the last update, and bad rows and norms of all."""
        attack, rows = attack_at(batch.step, self.config.attack, self.config.adversarial), batch.attacked
        ball, step_size = ball_and_step(attack, batch.images, batch.sky_sigma[rows])
        start = None
        if attack.random_start:
            start = RandomStart(batch.object_id[rows], start_seed(self.config), batch.epoch)
        images, z, ids = batch.images[rows], batch.z_spec[rows], batch.object_id[rows]
        given = attack_batch(images, None, z, ball, step_size, attack.steps / 2.5, ids)
        adv = given.begin(start_key(start, images.device), 0) if len(rows) else given.images
        losses: list[Losses] = []
        norms: list[Tensor] = []
        for _ in range(attack.steps):
            gradient = self._update(batch, adv, losses, norms)
            if len(rows):
                with self.timers("attack"):
                    adv = given.advance(adv, gradient)
        rows = torch.cat([each.bad_rows for each in losses])
        return StepOutcome(Losses(losses[-1].sums, rows), torch.stack(norms))

    def _update(self, batch: RankBatch, adv: Tensor, losses: list[Losses], norms: list[Tensor]) -> Tensor:
        """Forward, backward and update; adds its losses and norm; returns the gradient of the images."""
        self._guard.begin()
        adv = adv.detach().requires_grad_()
        images, attacked = replace_rows(batch.images, batch.attacked, adv), attacked_rows(batch)
        self.optimiser.zero_grad()
        with self.timers("clean and adversarial"):
            with self.compute.autocast(images.device):
                logits = self.model(images, batch.ebv)
            label_width = self.config.optimiser.label_width
            each = self.bins.loss("cross_entropy", logits, batch.z_spec, label_width)
            loss, sums = each.sum(), sum_losses(each.detach(), attacked)
            scale = loss_scale(loss, sums, self.learners / max(batch.size, 1))
            loss.backward(scale)  # type: ignore[no-untyped-call]
        with self.timers("optimiser"):
            norms.append(self._guard.update())
        every = torch.arange(len(images), device=images.device)
        losses.append(Losses(sums, bad_rows(each, every)))
        assert adv.grad is not None
        return adv.grad.contiguous(memory_format=torch.channels_last)
