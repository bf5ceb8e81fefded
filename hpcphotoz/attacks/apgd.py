"""APGD: PGD that adapts its step sizes and returns to the best point (Croce & Hein 2020)."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from hpcphotoz.attacks.ball import AttackBatch, Ball, RandomStart, attack_batch
from hpcphotoz.attacks.losses import Condition, Loss, check_labels
from hpcphotoz.attacks.passes.gradient import AS_IS, ImageLoss, Model, Passes
from hpcphotoz.attacks.passes.runner import run_attack
from hpcphotoz.attacks.pgd import ALL_ROWS, BestSoFar, check_restarts

EPS_OVER_FIRST_STEP = 0.5  # the first step crosses the whole ball: 2 eps
_NEW_STEP_WEIGHT = 0.75  # share of the new step; the rest is momentum


def apgd(
    model: Model,
    images: Tensor,
    ebv: Tensor | None,
    z: Tensor,
    eps: Ball | Tensor,
    *,
    loss: Loss,
    steps: int = 100,
    start: RandomStart | None = None,
    restarts: int = 1,
    rho: float = 0.75,
    stop: Condition | None = None,
    passes: Passes = AS_IS,
) -> Tensor:
    """Auto-PGD (Croce & Hein 2020, arXiv:2003.01690): no step size to choose; the best image is returned.

    The first step is 2 eps. At checkpoints, at ever shorter intervals, the step is halved for two kinds of
    objects: those whose loss rose in at most a fraction `rho` of the steps since the last checkpoint, and
    those whose best loss and step have not changed since then. They continue from their best image.

    Args:
        model, images, ebv, z, eps, loss, start, restarts, passes: as `pgd`.
        stop: condition at which an object is finished; its passes are still computed.
        steps: updates of each restart; steps gradients and one more forward pass.
        rho: fraction of steps, see above.

    Returns:
        The images of greatest loss, (N, B, H, W) float32, within the ball up to one rounding.

    Raises:
        ValueError: shapes, types or options that do not belong together, or redshifts that are NaN or outside
            the bins of the loss.
    """
    check_restarts(steps, restarts, start is not None)
    ids = start.object_id if start else None
    batch = attack_batch(images, ebv, z, eps, None, EPS_OVER_FIRST_STEP, ids)
    check_labels(loss, batch.labels)
    loop = partial(apgd_loop, steps=steps, restarts=restarts, rho=rho, stop=stop)
    return run_attack(model, batch, loss, loop, start, passes)[0]


def apgd_loop(
    image_loss: ImageLoss,
    batch: AttackBatch,
    key: Tensor | None,
    *,
    steps: int,
    restarts: int = 1,
    rho: float = 0.75,
    stop: Condition | None = None,
) -> tuple[Tensor]:
    """The loop of APGD for `run_attack`; options as `apgd`."""
    best = BestSoFar(batch, stop)
    for restart in range(restarts):
        best.merge(_Restart(image_loss, batch, batch.begin(key, restart), stop, rho).take_steps(steps))
    return (best.images,)


def step_size_checkpoints(steps: int) -> list[int]:
    """Updates after which step sizes may be halved, in growing order: the paper's p_j in units of `steps`."""
    window, found = max(int(0.22 * steps), 1), [0]
    while found[-1] + window <= steps:
        found.append(found[-1] + window)
        window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return found[1:]


class _Restart:
    """State of one restart for all objects; the host reads no value of it."""

    def __init__(
        self, image_loss: ImageLoss, batch: AttackBatch, adv: Tensor, stop: Condition | None, rho: float
    ) -> None:
        self._image_loss, self._batch, self._rho = image_loss, batch, rho
        self._adv = self._previous = adv
        self.best = BestSoFar(batch, stop)
        at = image_loss.gradient(adv, batch)
        self.best.add(ALL_ROWS, adv, at.outputs, at.loss, batch.labels)
        self._grad, self._loss = at.grad, at.loss
        self._grad_best = at.grad.clone(memory_format=torch.preserve_format)
        self._rises = torch.zeros_like(at.loss)  # since the last checkpoint
        self._checkpoint_loss = self.best.loss
        self._checkpoint_halved = torch.zeros_like(at.loss, dtype=torch.bool)

    def take_steps(self, steps: int) -> BestSoFar:
        """Take all updates and return the best images."""
        adapt_after, last = step_size_checkpoints(steps), 0
        for step in range(1, steps + 1):
            self._move(first=step == 1)
            self._evaluate(final=step == steps)
            if step in adapt_after and step < steps:
                self._adapt_step_sizes(step - last)
                last = step
        return self.best

    def _move(self, first: bool) -> None:
        batch, adv, active = self._batch, self._adv, self.best.active
        if first:
            moved = batch.advance(adv, self._grad, active)
        elif batch.ball == "linf":
            limits = batch.eps, batch.step, batch.lo, batch.hi, batch.mask
            moved = batch.kernels.momentum(adv, self._previous, batch.images, self._grad, *limits, active)
        else:
            ahead = batch.advance(adv, self._grad, active)
            mixed = adv + _NEW_STEP_WEIGHT * (ahead - adv) + (1 - _NEW_STEP_WEIGHT) * (adv - self._previous)
            moved = batch.advance(mixed, None, active)
        self._previous, self._adv = adv, moved

    def _evaluate(self, final: bool) -> None:
        if final:  # the last images need no gradient
            outputs, loss = self._image_loss.value(self._adv, self._batch)
            self.best.add(ALL_ROWS, self._adv, outputs, loss, self._batch.labels)
            return
        at, before = self._image_loss.gradient(self._adv, self._batch), self.best.loss
        self.best.add(ALL_ROWS, self._adv, at.outputs, at.loss, self._batch.labels)
        self._batch.kernels.select(self._grad_best, before, at.grad, self.best.loss)
        self._rises += at.loss > self._loss
        self._grad, self._loss = at.grad, at.loss

    def _adapt_step_sizes(self, window: int) -> None:
        stuck = self._rises <= self._rho * window
        flat = ~self._checkpoint_halved & (self.best.loss <= self._checkpoint_loss)
        halve = stuck | flat
        there = halve[:, None, None, None]
        self._adv = torch.where(there, self.best.images, self._adv)
        self._grad = torch.where(there, self._grad_best, self._grad)
        step = torch.where(halve[:, None], 0.5 * self._batch.step, self._batch.step)
        self._batch = replace(self._batch, step=step)
        self._rises = torch.zeros_like(self._rises)
        self._checkpoint_loss, self._checkpoint_halved = self.best.loss, halve
