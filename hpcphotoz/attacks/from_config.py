"""The attack that a configuration describes, in sky sigmas."""

import math
from typing import Any

from torch import Tensor

from hpcphotoz.attacks import losses
from hpcphotoz.attacks.apgd import apgd
from hpcphotoz.attacks.ball import Ball, RandomStart
from hpcphotoz.attacks.losses import Condition, Loss
from hpcphotoz.attacks.passes.gradient import AS_IS, Model, Passes
from hpcphotoz.attacks.pgd import fgsm, pgd
from hpcphotoz.attacks.square import square
from hpcphotoz.config import Attack
from hpcphotoz.models.bins import RedshiftBins


def perturb(
    model: Model,
    images: Tensor,
    ebv: Tensor,
    z: Tensor,
    sky_sigma: Tensor,
    object_id: Tensor,
    *,
    attack: Attack,
    bins: RedshiftBins,
    seed: int = 0,
    epoch: int | Tensor = 0,
    passes: Passes = AS_IS,
) -> Tensor:
    """Run the attack that a configuration describes.

    Args:
        model, images, ebv, passes: as `pgd`.
        z: (N,) float32, the redshift to move away from; the target `shift` is counted from it. Unlike in
            `pgd` it is not checked: inside the bins, and not NaN.
        sky_sigma: (N, B) float32, nMgy: epsilon and step are multiples of it, per object and band.
        object_id: (N,) int64: random starts are keyed by (seed, epoch, object), never by position or rank.
        attack: method, ball, epsilon, steps, start, loss, target.
        bins: redshift bins of the logits.
        seed, epoch: key of the random starts.
    """
    loss, labels, stop = _loss_labels_stop(attack, z, bins)
    ball, step_size = ball_and_step(attack, images, sky_sigma)
    if attack.method == "fgsm":
        return fgsm(model, images, ebv, labels, ball, loss=loss, passes=passes)
    key = RandomStart(object_id, seed, epoch)
    if attack.method == "square":
        squares: dict[str, Any] = {"queries": attack.steps, "start": key, "stop": stop}
        return square(model, images, ebv, labels, ball, loss=loss, passes=passes, **squares)
    start = key if attack.random_start else None
    options: dict[str, Any] = {"loss": loss, "steps": attack.steps, "restarts": attack.restarts}
    options |= {"start": start, "stop": stop, "passes": passes}
    if attack.method == "apgd":
        return apgd(model, images, ebv, labels, ball, **options)
    return pgd(model, images, ebv, labels, ball, step_size=step_size, **options)


def ball_and_step(attack: Attack, images: Tensor, sky_sigma: Tensor) -> tuple[Ball, Tensor | None]:
    """Ball and step size (None: the default) of a configured attack, in nMgy.

    In the L2 ball, eps is the root mean square over all pixels and bands, in sky sigmas: the ball contains
    the L-infinity ball of the same eps.

    Args:
        attack: its ball, eps and step size are used.
        images: (N, B, H, W).
        sky_sigma: (N, B) float32, nMgy.
    """
    unit = sky_sigma * math.sqrt(images.shape[1:].numel()) if attack.ball == "l2" else sky_sigma
    return Ball(attack.eps * unit, attack.ball), attack.step_size * unit if attack.step_size else None


def _loss_labels_stop(attack: Attack, z: Tensor, bins: RedshiftBins) -> tuple[Loss, Tensor, Condition | None]:
    # Callers know the labels: to check them at every step of training, the host would wait for the GPU.
    loss = losses.redshift_losses[attack.loss](bins).unchecked
    if attack.target == "away":
        return loss, z, losses.outlier(bins, attack.stop) if attack.stop else None
    wanted = z.new_full(z.shape, attack.target_value)
    if attack.target == "shift":
        wanted = losses.moved_by(z, attack.target_value, bins)
    stop = losses.reached(bins, attack.stop) if attack.stop else None
    return losses.toward(loss), wanted, stop
