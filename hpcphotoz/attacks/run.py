"""An attack from what a user gives to attacked images: laid out, frozen, some objects at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from hpcphotoz.attacks.gradient import Model, Objective, Passes, objective
from hpcphotoz.attacks.losses import Loss
from hpcphotoz.attacks.problem import Problem, RandomStart

# The steps of an attack: (objective, problem, key of the random start or None) -> tensors, a row an object.
Steps = Callable[[Objective, Problem, Tensor | None], tuple[Tensor, ...]]
_ROWS_ON_CPU = 16


def run(
    model: Model, problem: Problem, loss: Loss, steps: Steps, start: RandomStart | None, passes: Passes
) -> tuple[Tensor, ...]:
    """Attack all objects; the model is left as it was found."""
    key = key_of(start, problem.images.device)
    with objective(model, loss, problem.images.device, passes) as goal:
        return in_parts(goal, problem, key, steps, passes)


def in_parts(
    goal: Objective, problem: Problem, key: Tensor | None, steps: Steps, passes: Passes
) -> tuple[Tensor, ...]:
    """All steps for some objects, then for the next, as many at a time as `passes` says."""
    rows = passes.rows or (_ROWS_ON_CPU if problem.images.device.type == "cpu" else len(problem))
    if len(problem) <= rows:
        return steps(goal, problem, key)
    parts = (problem[first : first + rows] for first in range(0, len(problem), rows))
    return tuple(torch.cat(column) for column in zip(*(steps(goal, p, key) for p in parts), strict=True))


def key_of(start: RandomStart | None, device: torch.device) -> Tensor | None:
    """(2,) int64 (seed, epoch) on the device; None: no random start."""
    if start is None:
        return None
    if not 0 <= start.epoch < 2**20:
        raise ValueError(f"epoch {start.epoch}: random starts are keyed by 0 to {2**20 - 1}")
    return torch.tensor([start.seed, start.epoch], dtype=torch.int64, device=device)
