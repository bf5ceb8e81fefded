"""The attack of a training step: its strength during the warm-ups, its precision, its random starts."""

from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from hpcphotoz.attacks import Passes, perturb
from hpcphotoz.attacks.passes.cuda_graph import AttackGraphs, graph_key
from hpcphotoz.config import Adversarial, Attack, Config
from hpcphotoz.data.order import derive_key
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.compute import ComputeOptions
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.run.timers import Timers

_START = 11  # purpose of these random numbers, different from that of all others


@dataclass
class StepAttack:
    """Attacks rows of rank batches; an object gets the same adversarial image on whichever rank it is."""

    module: nn.Module  # the bare network
    config: Config
    bins: RedshiftBins
    compute: ComputeOptions
    timers: Timers = field(default_factory=Timers)

    def __post_init__(self) -> None:
        self._graphs = AttackGraphs() if self.compute.graphs == "attack" else None

    def __call__(self, batch: RankBatch) -> Tensor:
        """Attacked images of the rows `batch.attacked`, (m, B, H, W) float32 nMgy; m may be 0."""
        rows = batch.attacked
        images = batch.images[rows]
        if not len(rows):
            return images
        # Outside the autocast of the caller: the attack has a precision of its own.
        with self.timers("attack"), torch.autocast(images.device.type, enabled=False):
            attack = attack_at(batch.step, self.config.attack, self.config.adversarial)
            labels = batch.ebv[rows], batch.z_spec[rows], batch.sky_sigma[rows], batch.object_id[rows]
            return perturb(
                self.module,
                images,
                *labels,
                attack=attack,
                bins=self.bins,
                seed=start_seed(self.config),
                epoch=batch.epoch,
                passes=self._passes_of(attack, batch),
            )

    def _passes_of(self, attack: Attack, batch: RankBatch) -> Passes:
        if batch.images.is_cuda and (batch.skipped or batch.size < self.config.run.global_batch):
            # Smaller batches are rare: compiling for their shape takes longer than attacking them eagerly.
            return replace(self.compute.passes, compiled=False)
        if self._graphs is None:
            return self.compute.passes
        return replace(self.compute.passes, replay=partial(self._graphs, graph_key(attack)))


def start_seed(config: Config) -> int:
    """The seed of the random starts of attacks, derived from `run.seed`."""
    return derive_key(config.run.seed, _START) >> 1


def attack_at(step: int, attack: Attack, adversarial: Adversarial) -> Attack:
    """The attack of a step counted from 0; eps, step size and K grow linearly over their warm-ups."""
    grown = min(1.0, (step + 1) / (adversarial.eps_warmup_steps + 1))
    steps = attack.steps
    if step < adversarial.k_warmup_steps:
        steps = 1 + (attack.steps - 1) * step // adversarial.k_warmup_steps
    if grown == 1 and steps == attack.steps:
        return attack
    changed = {"eps": grown * attack.eps, "step_size": grown * attack.step_size, "steps": steps}
    return attack.model_copy(update=changed)
