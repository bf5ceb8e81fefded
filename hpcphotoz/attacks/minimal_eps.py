"""The smallest epsilon at which an attack succeeds, for each object, found by bisection."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from hpcphotoz.attacks.ball import AttackBatch, Ball, RandomStart, attack_batch, in_layout_of
from hpcphotoz.attacks.losses import Condition, Loss, check_labels
from hpcphotoz.attacks.passes.gradient import AS_IS, ImageLoss, Model, Passes
from hpcphotoz.attacks.passes.runner import run_attack
from hpcphotoz.attacks.pgd import BestSoFar, pgd_keeping_best

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
        ValueError: shapes, types or options that do not belong together, or redshifts that are NaN or outside
            the bins of a loss.
    """
    if steps < 1 or bisections < 1:
        raise ValueError(f"steps {steps} and bisections {bisections}: must be at least 1")
    batch = attack_batch(images, ebv, z, eps, None, steps / 2.5, start.object_id if start else None)
    for one in (loss, *others):
        check_labels(one, batch.labels)
    loop = partial(minimal_eps_loop, steps=steps, bisections=bisections, reach=reach, others=others)
    multiple, found = run_attack(model, batch, loss, loop, start, passes)
    return multiple, found


def minimal_eps_loop(
    image_loss: ImageLoss,
    batch: AttackBatch,
    key: Tensor | None,
    *,
    steps: int,
    bisections: int,
    reach: Condition,
    others: Sequence[Loss] = (),
) -> tuple[Tensor, Tensor]:
    """The search for `run_attack`; options as `minimal_eps`."""
    image_losses = [image_loss, *(image_loss.with_loss(other) for other in others)]

    def ascend(batch: AttackBatch, key: Tensor | None = None, begin: Tensor | None = None) -> BestSoFar:
        best = None
        for one in image_losses:  # each for the objects that the earlier ones did not finish
            best = pgd_keeping_best(one, batch, key, steps=steps, stop=reach, begin=begin, best=best)
        assert best is not None
        return best

    outputs, _ = image_loss.value(batch.images, batch)
    already = reach(outputs, batch.labels)
    multiple = torch.where(already, 0.0, torch.inf)
    best = ascend(batch, key)
    reached = ~already & (best.loss == torch.inf)
    multiple = torch.where(reached, 1.0, multiple)
    found = torch.where(reached[:, None, None, None], best.images, batch.images)
    if reached.device.type != "cpu":  # to leave out the others, the host would wait for their number
        return _bisect(ascend, batch, found, multiple, reached, bisections)
    rows = reached.nonzero()[:, 0]
    if len(rows):
        part = batch[rows], found[rows], multiple[rows], reached[rows]
        multiple[rows], found[rows] = _bisect(ascend, *part, bisections)
    return multiple, found


def _bisect(
    ascend: Callable[..., BestSoFar],
    batch: AttackBatch,
    found: Tensor,
    multiple: Tensor,
    reached: Tensor,
    bisections: int,
) -> tuple[Tensor, Tensor]:
    low, high = torch.full_like(multiple, 1 / _RANGE), torch.ones_like(multiple)
    for _ in range(bisections):
        middle = (low * high).sqrt()
        smaller = batch.scaled(middle)
        # Begin from the image found in the larger ball, scaled into this one: fewer steps are needed.
        begin = batch.images + (middle / high)[:, None, None, None] * (found - batch.images)
        begin = smaller.advance(in_layout_of(begin, batch.images), None, overwrite=True)
        best = ascend(smaller, begin=begin)
        hit = reached & (best.loss == torch.inf)
        found = torch.where(hit[:, None, None, None], best.images, found)
        multiple = torch.where(hit, middle, multiple)
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    return multiple, found
