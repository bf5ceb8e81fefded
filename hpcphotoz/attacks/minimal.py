"""How small a perturbation suffices: the least epsilon of each object, by bisection."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from hpcphotoz.attacks.ascent import climb
from hpcphotoz.attacks.best import Best
from hpcphotoz.attacks.gradient import AS_IS, Model, Objective, Passes
from hpcphotoz.attacks.losses import Condition, Loss
from hpcphotoz.attacks.problem import Ball, Problem, RandomStart, laid_out, problem
from hpcphotoz.attacks.run import Steps, run

_RANGE = 1024.0  # the smallest epsilon looked for is this many times below the greatest


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
    """The least multiple of a ball in which PGD finds what is asked for, per object.

    With `eps` the sky sigma and `reach` = `losses.outlier(bins)`, it is the sky noise that moves <z> by
    0.05 (1 + z). An upper bound: a stronger attack may find less. Multiples are halved on a logarithmic scale
    between the greatest and 1/1024 of it: 8 bisections leave 2.7 %.

    Args:
        model, images, ebv, z, loss, start, passes: as `pgd`.
        eps: the greatest ball; the result is in units of it.
        reach: what is asked for, of (outputs, z): `losses.outlier(bins)`, `losses.reached(bins)`, your own.
        others: losses tried in turn where `loss` does not reach it: |<z> - z| can drive
            a galaxy to an end of the bins where it is no outlier, from which `losses.higher` or `lower` leads
            away.
        steps: gradient evaluations at each radius, of 2.5 radius / steps.
        bisections: radii tried between the bounds.

    Returns:
        (N,) float32, the least multiple found: 0 where the image itself does it, infinite where the greatest
        ball did not; and the images that do it, (N, B, H, W) float32 (the image itself at infinity).

    Raises:
        ValueError: shapes, types or options that do not belong together.
    """
    if steps < 1 or bisections < 1:
        raise ValueError(f"steps {steps} and bisections {bisections}: must be at least 1")
    given = problem(images, ebv, z, eps, None, steps / 2.5, start.object_id if start else None)
    kind = eps.kind if isinstance(eps, Ball) else "linf"
    multiple, found = run(model, given, loss, steps_of(kind, steps, bisections, reach, others), start, passes)
    return multiple, found


def steps_of(kind: str, steps: int, bisections: int, reach: Condition, others: Sequence[Loss] = ()) -> Steps:
    """The search as `run` takes it; arguments as `minimal_eps`."""
    return partial(_search, kind=kind, steps=steps, bisections=bisections, reach=reach, others=others)


def _search(
    goal: Objective,
    p: Problem,
    key: Tensor | None,
    *,
    kind: str,
    steps: int,
    bisections: int,
    reach: Condition,
    others: Sequence[Loss],
) -> tuple[Tensor, Tensor]:
    outputs, _ = goal.value(p.images, p)
    already = reach(outputs, p.labels)
    least = torch.where(already, 0.0, torch.inf)
    goals = [goal, *(goal.raising(other) for other in others)]
    best = _any_reaches(goals, p, key, kind, steps, reach, None)
    reached = ~already & (best.loss == torch.inf)
    least = torch.where(reached, 1.0, least)
    found = torch.where(reached[:, None, None, None], best.images, p.images)
    if reached.device.type != "cpu":  # to leave the others out it would have to wait for their number
        return _halve(goals, p, found, least, reached, kind, steps, bisections, reach)
    rows = reached.nonzero()[:, 0]
    if len(rows):
        part = (found[rows], least[rows], reached[rows])
        least[rows], found[rows] = _halve(goals, p[rows], *part, kind, steps, bisections, reach)
    return least, found


def _any_reaches(
    goals: Sequence[Objective],
    p: Problem,
    key: Tensor | None,
    kind: str,
    steps: int,
    reach: Condition,
    begin: Tensor | None,
) -> Best:
    best = None
    for goal in goals:  # each for the objects that the ones before did not bring to their end
        best = climb(goal, p, key, kind=kind, steps=steps, stop=reach, begin=begin, best=best)
    assert best is not None
    return best


def _halve(
    goals: Sequence[Objective],
    p: Problem,
    found: Tensor,
    least: Tensor,
    reached: Tensor,
    kind: str,
    steps: int,
    bisections: int,
    reach: Condition,
) -> tuple[Tensor, Tensor]:
    low, high = torch.full_like(least, 1 / _RANGE), torch.ones_like(least)
    for _ in range(bisections):
        middle = (low * high).sqrt()
        smaller = p.scaled(middle)
        # From what a larger ball gave, drawn in: fewer steps find the way again.
        begin = p.images + (middle / high)[:, None, None, None] * (found - p.images)
        begin = smaller.advance(kind, laid_out(begin, p.images), None)
        best = _any_reaches(goals, smaller, None, kind, steps, reach, begin)
        hit = reached & (best.loss == torch.inf)
        found = torch.where(hit[:, None, None, None], best.images, found)
        least = torch.where(hit, middle, least)
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    return least, found
