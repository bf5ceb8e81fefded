"""APGD has the checkpoints of the paper, and raises the loss at least as far as PGD."""

import pytest
import torch
from torch import Tensor, nn

from hpcphotoz import attacks
from hpcphotoz.attacks.apgd import step_size_checkpoints
from tests.helpers.attack_problems import batch_norm_problem, conv_problem, rounding
from tests.helpers.networks import BINS


def test_checkpoints_are_those_of_the_paper() -> None:
    assert step_size_checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]  # p_j = 0.22, 0.41, 0.57, 0.70 ...
    assert step_size_checkpoints(10) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert step_size_checkpoints(1) == [1]


@pytest.mark.parametrize("kind", ["linf", "l2", "flux"])
def test_it_climbs_at_least_as_far_as_pgd(kind: str) -> None:
    model, images, z = conv_problem(16)
    loss = attacks.cross_entropy(BINS)
    eps = torch.full((3,), 3.0 if kind == "l2" else 0.3)
    ball = attacks.Ball(eps, kind)
    fixed = loss(model(attacks.pgd(model, images, None, z, ball, loss=loss, steps=20)), z)
    own = loss(model(attacks.apgd(model, images, None, z, ball, loss=loss, steps=20)), z)
    # A single galaxy may end in another maximum; on average the adaptive step sizes raise the loss further.
    assert own.mean() >= fixed.mean() and (own > fixed - 0.02 * fixed.abs()).all()


def test_it_finds_a_maximum_inside_the_ball() -> None:
    """PGD's steps of fixed size circle around a maximum; APGD halves its step until it gets there."""
    g = torch.Generator().manual_seed(1)
    peak = 0.3 * (2 * torch.rand(4, 3, 8, 8, generator=g) - 1)
    images, eps = torch.zeros(4, 3, 8, 8), torch.ones(3)

    def loss(outputs: Tensor, _: Tensor) -> Tensor:
        return -((outputs - peak) ** 2).sum((1, 2, 3))

    label = torch.zeros(4)
    found = attacks.apgd(
        lambda x: x, images, None, label, eps, loss=loss, steps=100, passes=attacks.Passes(rows=4)
    )
    fixed = attacks.pgd(
        lambda x: x, images, None, label, eps, loss=loss, steps=100, passes=attacks.Passes(rows=4)
    )
    assert (found - peak).abs().max() < 0.02 and (found - peak).abs().mean() < 0.5 * (
        fixed - peak
    ).abs().mean()


def test_it_stays_in_the_ball_and_the_bounds_and_returns_its_best() -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    loss = attacks.cross_entropy(BINS)
    hi = torch.tensor([1.0, 0.5, 2.0])
    ball = attacks.Ball(eps, hi=hi)
    images = images.clamp(max=0.4)
    adv = attacks.apgd(model, images, ebv, z, ball, loss=loss, steps=7, start=attacks.RandomStart(seed=5))
    radius = eps[:, None, None]
    assert ((adv - images).abs() <= radius + rounding(images, radius)).all() and (
        adv <= hi[:, None, None]
    ).all()
    model.eval()
    assert (loss(model(adv, ebv), z) > loss(model(images, ebv), z)).all()


def test_more_restarts_are_never_worse() -> None:
    model, images, z = conv_problem(12)
    loss, eps = attacks.cross_entropy(BINS), torch.full((3,), 0.5)

    def after(restarts: int) -> Tensor:
        start = attacks.RandomStart(seed=1)
        adv = attacks.apgd(model, images, None, z, eps, loss=loss, steps=5, restarts=restarts, start=start)
        return loss(model(adv), z)

    one, four = after(1), after(4)
    assert (four >= one - 1e-6).all() and (four > one + 1e-4).any()


def test_an_object_that_meets_the_stop_condition_stays() -> None:
    model, images, z = conv_problem(12)
    loss, eps, stop = attacks.cross_entropy(BINS), torch.full((3,), 0.5), attacks.outlier(BINS)
    free = attacks.apgd(model, images, None, z, eps, loss=loss, steps=20)
    held = attacks.apgd(model, images, None, z, eps, loss=loss, steps=20, stop=stop)
    assert torch.equal(stop(model(held), z), stop(model(held), z) | stop(model(free), z))
    nearer = (held - images).abs().mean((1, 2, 3)) <= (free - images).abs().mean((1, 2, 3)) + 1e-6
    assert nearer.all()


def published(model: nn.Module, images: Tensor, z: Tensor, eps: Tensor, steps: int) -> Tensor:
    """All images that Algorithm 1 of the paper visits, (steps + 1, N, B, H, W), one object at a time."""
    loss, radius = attacks.cross_entropy(BINS), eps[:, None, None]
    seen = []
    for k in range(len(images)):
        x0, label = images[k : k + 1], z[k : k + 1]

        def at(x: Tensor, label: Tensor = label) -> tuple[float, Tensor]:
            x = x.clone().requires_grad_()
            value = loss(model(x), label).sum()
            return value.item(), torch.autograd.grad(value, x)[0]

        x, step = x0, 2.0
        value, grad = at(x)
        best, best_value, best_grad, previous = x, value, grad, x
        rises, then_value, halved, last = 0, value, False, 0
        path = [x]
        for i in range(1, steps + 1):
            ahead = x0 + (x + step * radius * grad.sign() - x0).clamp(-radius, radius)
            share = 1.0 if i == 1 else 0.75
            new = x0 + (x + share * (ahead - x) + (1 - share) * (x - previous) - x0).clamp(-radius, radius)
            before = value
            x, previous = new, x
            value, grad = at(x)
            path.append(x)
            rises += value > before
            if value > best_value:
                best, best_value, best_grad = x, value, grad
            if i in step_size_checkpoints(steps) and i < steps:
                stuck = rises <= 0.75 * (i - last)
                flat = not halved and best_value <= then_value
                halved = stuck or flat
                if halved:
                    step, x, grad = step / 2, best, best_grad
                rises, then_value, last = 0, best_value, i
        seen.append(torch.cat(path))
    return torch.stack(seen, 1)


def test_it_visits_the_images_of_the_published_algorithm() -> None:
    model, images, z = conv_problem(8)
    eps, steps, visited = torch.tensor([0.5, 1.0, 2.0]), 30, list[Tensor]()
    with model.register_forward_pre_hook(lambda module, given: visited.append(given[0].detach())):
        attacks.apgd(model, images, None, z, eps, loss=attacks.cross_entropy(BINS), steps=steps)
    ours, theirs = torch.stack(visited), published(model, images, z, eps, steps)
    assert ours.shape == theirs.shape
    # Rounding changes a sign only where the gradient is ~0; a different rule would move whole images.
    assert ((ours - theirs).abs() < 1e-4).float().mean() > 0.99
