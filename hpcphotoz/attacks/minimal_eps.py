"""The smallest epsilon at which an attack succeeds, for each object, found by bisection."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from hpcphotoz.attacks.ball import AttackBatch, Ball, RandomStart, attack_batch, in_layout_of
from hpcphotoz.attacks.best import BestSoFar
from hpcphotoz.attacks.gradient import AS_IS, ImageLoss, Model, Passes
from hpcphotoz.attacks.losses import Condition, Loss
from hpcphotoz.attacks.pgd import pgd_keeping_best
from hpcphotoz.attacks.runner import AttackLoop, run_attack

_RANGE = 1024.0  # largest over smallest epsilon of the search


def minimal_eps(
    model: Model,
    images: Tensor,
    ebv: Tensor | None,
    z: Tensor,
    eps: Ball | Tensor,
    *,
    loss: Loss,
    reach: Condition,
    others: Sequence[Loss] = (),
    steps: int = 20,
    bisections: int = 8,
    start: RandomStart | None = None,
    passes: Passes = AS_IS,
) -> tuple[Tensor, Tensor]:
    """Find the smallest multiple of a ball in which PGD reaches a condition, for each object.

    With `eps` the sky sigma and `reach` = `losses.outlier(bins)`, it is the number of sky sigmas that moves
    <z> by 0.05 (1 + z). It is an upper bound: a stronger attack may find less. Multiples are halved on a
    logarithmic scale between the greatest and 1/1024 of it: 8 bisections leave 2.7 %.

    Args:
        model, images, ebv, z, loss, start, passes: as `pgd`.
        eps: the greatest ball; the result is in units of it.
        reach: condition (outputs, z) -> (N,) bool that the attack is to reach: `losses.outlier(bins)`,
            `losses.reached(bins)`, or your own.
        others: further losses, tried in turn for objects that `loss` does not bring there. |<z> - z| can
            drive a galaxy to an end of the bins where it is no outlier; `losses.higher` or `lower` leads away
            from there.
        steps: gradient evaluations at each radius, of 2.5 radius / steps.
        bisections: radii tried between the bounds.

    Returns:
        (N,) float32, the smallest multiple found: 0 where the clean image meets the condition, infinite where
        no image of the greatest ball does; and the images found, (N, B, H, W) float32, clean at infinity.

    Raises:
        ValueError: shapes, types or options that do not belong together.
    """
    if steps < 1 or bisections < 1:
        raise ValueError(f"steps {steps} and bisections {bisections}: must be at least 1")
    given = attack_batch(images, ebv, z, eps, None, steps / 2.5, start.object_id if start else None)
    kind = eps.kind if isinstance(eps, Ball) else "linf"
    multiple, found = run_attack(
        model, given, loss, minimal_eps_loop(kind, steps, bisections, reach, others), start, passes
    )
    return multiple, found


def minimal_eps_loop(
    kind: str, steps: int, bisections: int, reach: Condition, others: Sequence[Loss] = ()
) -> AttackLoop:
    """Build the search that `run_attack` calls; arguments as `minimal_eps`."""
    return partial(_search, kind=kind, steps=steps, bisections=bisections, reach=reach, others=others)


def _search(
    image_loss: ImageLoss,
    p: AttackBatch,
    key: Tensor | None,
    *,
    kind: str,
    steps: int,
    bisections: int,
    reach: Condition,
    others: Sequence[Loss],
) -> tuple[Tensor, Tensor]:
    outputs, _ = image_loss.value(p.images, p)
    already = reach(outputs, p.labels)
    multiple = torch.where(already, 0.0, torch.inf)
    image_losses = [image_loss, *(image_loss.with_loss(other) for other in others)]
    best = _ascend_each_loss(image_losses, p, key, kind, steps, reach, None)
    reached = ~already & (best.loss == torch.inf)
    multiple = torch.where(reached, 1.0, multiple)
    found = torch.where(reached[:, None, None, None], best.images, p.images)
    if reached.device.type != "cpu":  # to leave out the others, the host would wait for their number
        return _bisect(image_losses, p, found, multiple, reached, kind, steps, bisections, reach)
    rows = reached.nonzero()[:, 0]
    if len(rows):
        part = (found[rows], multiple[rows], reached[rows])
        multiple[rows], found[rows] = _bisect(image_losses, p[rows], *part, kind, steps, bisections, reach)
    return multiple, found


def _ascend_each_loss(
    image_losses: Sequence[ImageLoss],
    p: AttackBatch,
    key: Tensor | None,
    kind: str,
    steps: int,
    reach: Condition,
    begin: Tensor | None,
) -> BestSoFar:
    best = None
    for image_loss in image_losses:  # each for the objects that the earlier ones did not finish
        best = pgd_keeping_best(
            image_loss, p, key, kind=kind, steps=steps, stop=reach, begin=begin, best=best
        )
    assert best is not None
    return best


def _bisect(
    image_losses: Sequence[ImageLoss],
    p: AttackBatch,
    found: Tensor,
    multiple: Tensor,
    reached: Tensor,
    kind: str,
    steps: int,
    bisections: int,
    reach: Condition,
) -> tuple[Tensor, Tensor]:
    low, high = torch.full_like(multiple, 1 / _RANGE), torch.ones_like(multiple)
    for _ in range(bisections):
        middle = (low * high).sqrt()
        smaller = p.scaled(middle)
        # Begin from the image found in the larger ball, scaled into this one: fewer steps are needed.
        begin = p.images + (middle / high)[:, None, None, None] * (found - p.images)
        begin = smaller.advance(kind, in_layout_of(begin, p.images), None)
        best = _ascend_each_loss(image_losses, smaller, None, kind, steps, reach, begin)
        hit = reached & (best.loss == torch.inf)
        found = torch.where(hit[:, None, None, None], best.images, found)
        multiple = torch.where(hit, middle, multiple)
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    return multiple, found
