"""FGSM and PGD in any ball, with random restarts, best-so-far selection and a stop condition per object."""

from functools import partial
from typing import Self

import torch
from torch import Tensor

from hpcphotoz.attacks.ball import (
    AttackBatch,
    Ball,
    RandomStart,
    attack_batch,
    in_layout_of,
    layout,
    replace_rows,
)
from hpcphotoz.attacks.losses import Condition, Loss, check_labels
from hpcphotoz.attacks.passes.gradient import AS_IS, ImageLoss, Model, NormalisedPasses, Passes
from hpcphotoz.attacks.passes.runner import run_attack

ALL_ROWS = slice(None)


def fgsm(
    model: Model,
    images: Tensor,
    ebv: Tensor | None,
    z: Tensor,
    eps: Ball | Tensor,
    *,
    loss: Loss,
    passes: Passes = AS_IS,
) -> Tensor:
    """Fast gradient sign method: one step to the edge of the ball (Goodfellow et al. 2015, arXiv:1412.6572).

    Arguments, errors and result as `pgd`.
    """
    radius = eps.eps if isinstance(eps, Ball) else eps
    return pgd(model, images, ebv, z, eps, loss=loss, steps=1, step_size=radius, passes=passes)


def pgd(
    model: Model,
    images: Tensor,
    ebv: Tensor | None,
    z: Tensor,
    eps: Ball | Tensor,
    *,
    loss: Loss,
    steps: int = 10,
    step_size: Tensor | None = None,
    start: RandomStart | None = None,
    restarts: int = 1,
    best: bool = False,
    stop: Condition | None = None,
    passes: Passes = AS_IS,
) -> Tensor:
    """Projected gradient ascent (Madry et al. 2018, arXiv:1706.06083).

    Args:
        model: anything called as model(images, ebv) that returns logits, or as model(images) where `ebv` is
            None; a module is restored at the end.
        images: (N, B, H, W) float32, nMgy.
        ebv: (N,) float32, mag; None: the model takes images only.
        z: (N,) float32, the redshift to move away from, or other labels that the loss expects.
        eps: the ball; a tensor (B,) or (N, B) float32, nMgy, is the radius of an L-infinity one.
        loss: the loss to raise, per object: one of `losses`, or your own.
        steps: gradient evaluations of each restart.
        step_size: (B,) or (N, B) float32, nMgy; 2.5 eps / steps by default.
        start: a random point of the ball; the image itself by default.
        restarts: independent random starts; the image of greatest loss is kept for each object.
        best: return the image of greatest loss on the way, not the last one; costs a forward pass.
        stop: condition at which an object is finished; on a CPU it costs nothing from then on.
        passes: precision, compilation, objects at a time.

    Returns:
        The attacked images, (N, B, H, W) float32, within the ball up to one rounding.

    Raises:
        ValueError: shapes, types or options that do not belong together, or redshifts that are NaN or outside
            the bins of the loss.
    """
    check_restarts(steps, restarts, start is not None)
    ids = start.object_id if start else None
    batch = attack_batch(images, ebv, z, eps, step_size, steps / 2.5, ids)
    check_labels(loss, batch.labels)
    loop = partial(pgd_loop, steps=steps, restarts=restarts, best=best, stop=stop)
    return run_attack(model, batch, loss, loop, start, passes)[0]


def check_restarts(steps: int, restarts: int, random_start: bool) -> None:
    """Raise ValueError for no step, no restart, too many restarts, or several restarts from one image."""
    if steps < 1 or not 1 <= restarts <= 4096:
        raise ValueError(f"steps {steps} and restarts {restarts}: at least 1, and at most 4096 restarts")
    if restarts > 1 and not random_start:
        raise ValueError(f"{restarts} restarts from the same image are one: give a random start")


def pgd_loop(
    image_loss: ImageLoss,
    batch: AttackBatch,
    key: Tensor | None,
    *,
    steps: int,
    restarts: int = 1,
    best: bool = False,
    stop: Condition | None = None,
) -> tuple[Tensor]:
    """The loop of PGD for `run_attack`; options as `pgd`."""
    if best or restarts > 1 or stop is not None:
        found = pgd_keeping_best(image_loss, batch, key, steps=steps, restarts=restarts, stop=stop)
        return (found.images,)
    adv = batch.begin(key, 0)
    behind = image_loss.normalised
    if behind is not None and batch.ball == "linf" and layout(batch.images) == torch.channels_last:
        return (_pgd_of_normalised(image_loss, behind, batch, adv, steps),)
    for step in range(steps):  # the first images may be those of the batch
        adv = batch.advance(adv, image_loss.gradient(adv, batch).grad, overwrite=step > 0)
    return (adv,)


def _pgd_of_normalised(
    image_loss: ImageLoss, behind: NormalisedPasses, batch: AttackBatch, adv: Tensor, steps: int
) -> Tensor:
    """The loop of PGD with all that lies between two passes in one kernel, the normalisation included.

    Buffers, which the kernel changes in place: `adv`, the float32 images; `seen`, what the network reads.
    """
    if adv is batch.images:
        adv = adv.clone(memory_format=torch.preserve_format)
    seen, of_normalised = behind.empty(adv), image_loss.with_forward(behind.forward)
    limits = batch.eps, batch.step, batch.lo, batch.hi, behind.scale
    step = batch.kernels.pgd_normalised
    step(adv, seen, batch.images, None, *limits, behind.kind, batch.mask)
    for left in reversed(range(steps)):
        grad = of_normalised.gradient(seen, batch).grad
        step(adv, seen, batch.images, grad, *limits, behind.kind if left else "", batch.mask)
    return adv


class BestSoFar:
    """Images of greatest loss, (N, B, H, W), and their `loss` (N,): infinite where the stop condition holds.

    On a GPU the host never waits for either.

    Args:
        batch: its images are the first ones kept, with a loss of minus infinity.
        stop: condition at which an object is finished: its image of that moment stays the best.
    """

    def __init__(self, batch: AttackBatch, stop: Condition | None) -> None:
        self._kernels, self._stop = batch.kernels, stop
        self.images = batch.images.clone(memory_format=torch.preserve_format)
        self.loss = torch.full((len(batch),), -torch.inf, device=batch.images.device)

    def add(self, rows: slice | Tensor, adv: Tensor, outputs: Tensor, loss: Tensor, labels: Tensor) -> None:
        """Keep the images `adv` of the objects `rows` where their loss is greater."""
        loss = loss.float().clamp(max=torch.finfo(torch.float32).max)  # infinity means: finished
        if self._stop is not None:
            loss = loss.masked_fill(self._stop(outputs, labels), torch.inf)
        if isinstance(rows, slice):
            self.loss = self._kernels.select(self.images, self.loss, adv, loss)
        else:
            better = loss > self.loss[rows]
            self.images[rows[better]], self.loss[rows[better]] = adv[better], loss[better]

    def forget_unfinished(self) -> Self:
        """Forget the losses of the objects that are not finished."""
        self.loss = self.loss.masked_fill(self.loss < torch.inf, -torch.inf)
        return self

    def merge(self, other: "BestSoFar") -> None:
        """Keep the better of both images, object by object."""
        self.loss = self._kernels.select(self.images, self.loss, other.images, other.loss)

    @property
    def active(self) -> Tensor | None:
        """(N,) bool: objects for which `stop` does not hold yet; None: there is no stop condition."""
        return None if self._stop is None else self.loss < torch.inf

    def unfinished_rows(self) -> slice | Tensor:
        """Rows to attack: on a CPU the active objects, on a GPU all (to count them the host would wait)."""
        active = self.active
        if active is None or active.device.type != "cpu" or active.all():
            return ALL_ROWS
        return active.nonzero()[:, 0]


def pgd_keeping_best(
    image_loss: ImageLoss,
    batch: AttackBatch,
    key: Tensor | None,
    *,
    steps: int,
    restarts: int = 1,
    stop: Condition | None = None,
    begin: Tensor | None = None,
    best: BestSoFar | None = None,
) -> BestSoFar:
    """PGD that keeps the best image of each object on the way.

    Args:
        image_loss, batch, key: as `run_attack` passes them.
        steps, restarts, stop: as `pgd`.
        begin: (N, B, H, W), first images, instead of the clean ones or a random point.
        best: the result of an earlier call, perhaps with another loss. Objects for which `stop` holds are
            not attacked; the losses of the others are forgotten, because they may be of another kind.
    """
    best = BestSoFar(batch, stop) if best is None else best.forget_unfinished()
    for restart in range(restarts):
        adv = batch.begin(key, restart) if begin is None else begin
        for step in range(steps + 1):
            rows = best.unfinished_rows()
            if isinstance(rows, Tensor) and len(rows) == 0:
                return best
            part, now = batch, adv
            if isinstance(rows, Tensor):
                part, now = batch[rows], in_layout_of(adv[rows], batch.images)
            if step == steps:
                outputs, loss = image_loss.value(now, part)
                best.add(rows, now, outputs, loss, part.labels)
                continue
            at = image_loss.gradient(now, part)
            best.add(rows, now, at.outputs, at.loss, part.labels)
            if isinstance(rows, slice):
                adv = batch.advance(adv, at.grad, best.active, overwrite=step > 0)
            else:
                adv = replace_rows(adv, rows, part.advance(now, at.grad))
    return best
