"""Free adversarial training (Shafahi et al. 2019, arXiv:1904.12843): K updates per batch.

Each backward pass gives two gradients: that of the weights, for an update, and that of the attacked images,
for their next attack step. K = `attack.steps` updates cost as much as K clean steps. The perturbation of an
object begins anew with each batch, at the object's random start: it depends on no other batch or rank.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcphotoz.attacks.ball import RandomStart, attack_batch, replace_rows
from hpcphotoz.attacks.from_config import ball_and_step
from hpcphotoz.attacks.runner import start_key
from hpcphotoz.config import Config
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.adversaries import attack_at, start_seed
from hpcphotoz.training.compute import ComputeOptions
from hpcphotoz.training.objectives import attacked_rows, sum_losses, target
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.run.timers import Timers


class FreeStep:
    """Takes all K updates of a batch per call. Arguments as `step.Step`; there are no micro-batches."""

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        config: Config,
        bins: RedshiftBins,
        compute: ComputeOptions,
        learners: int = 1,
        timers: Timers | None = None,
    ) -> None:
        self._model, self._optimiser, self._config, self._bins = model, optimiser, config, bins
        self._compute, self._learners, self._timers = compute, learners, timers or Timers()

    def __call__(self, batch: RankBatch) -> Tensor:
        """Update K times; returns the sums of the last update, as `step.Step` does."""
        attack, rows = attack_at(batch.step, self._config.attack, self._config.adversarial), batch.attacked
        ball, step_size = ball_and_step(attack, batch.images, batch.sky_sigma[rows])
        start = None
        if attack.random_start:
            start = RandomStart(batch.object_id[rows], start_seed(self._config), batch.epoch)
        given = attack_batch(
            batch.images[rows],
            None,
            batch.z_spec[rows],
            ball,
            step_size,
            attack.steps / 2.5,
            batch.object_id[rows],
        )
        adv = given.begin(start_key(start, batch.images.device), 0) if len(rows) else given.images
        loss_sums = torch.zeros(4, dtype=torch.float64, device=batch.images.device)
        for _ in range(attack.steps):
            loss_sums, gradient = self._update(batch, adv)
            if len(rows):
                with self._timers("attack"):
                    adv = given.advance(adv, gradient)
        return loss_sums

    def _update(self, batch: RankBatch, adv: Tensor) -> tuple[Tensor, Tensor]:
        """Forward, backward and update; returns the sums, and the gradient of the attacked images."""
        adv = adv.detach().requires_grad_()
        images, attacked = replace_rows(batch.images, batch.attacked, adv), attacked_rows(batch)
        self._optimiser.zero_grad()
        with self._timers("clean and adversarial"):
            with self._compute.autocast(images.device):
                logits = self._model(images, batch.ebv)
            wanted = target(batch.z_spec, self._bins, self._config.optimiser.label_width)
            each = functional.cross_entropy(logits.float(), wanted, reduction="none")
            (each.sum() * (self._learners / max(batch.size, 1))).backward()  # type: ignore[no-untyped-call]
        with self._timers("optimiser"):
            self._optimiser.step()
        assert adv.grad is not None
        return sum_losses(each.detach(), attacked), adv.grad.contiguous(memory_format=torch.channels_last)
