"""PGD: the analytic optimum of a linear loss, random starts, restarts and early stopping."""

from typing import Any

import torch
from torch import Tensor, nn

from hpcphotoz import attacks
from tests.helpers.attack_problems import batch_norm_problem, conv_problem
from tests.helpers.networks import BINS

LOSS = attacks.cross_entropy(BINS)


def test_pgd_of_a_linear_loss_is_the_analytic_optimum_in_every_ball() -> None:
    _, images, ebv, z, eps = batch_norm_problem()
    weight = torch.randn(3, 8, 8)

    def model(x: Tensor) -> Tensor:
        return (x * weight).sum((1, 2, 3))[:, None]

    # The maximum of a linear function: a corner; along the gradient; half of the pixels up, half down.
    centred = weight - weight.flatten(1).median(1).values[:, None, None]
    best = {
        "linf": (eps[:, None, None] * weight.abs()).sum(),
        "l2": torch.linalg.vector_norm(eps[:, None, None] * weight),
        "flux": (eps[:, None, None] * centred.abs()).sum(),
    }
    for kind, gain in best.items():
        for steps in (1, 4):
            ball = attacks.Ball(eps, kind)
            adv = attacks.pgd(
                model, images, None, z, ball, loss=lambda outputs, _: outputs[:, 0], steps=steps
            )
            got = model(adv)[:, 0] - model(images)[:, 0]
            # The median of 64 pixels is one of them, which stays where it is: the flux ball's own optimum
            # moves it, for less than 1/64 of the whole.
            tolerance = 0.02 if kind == "flux" else 1e-4
            torch.testing.assert_close(got, gain.expand(6), rtol=tolerance, atol=1e-5)


def test_random_starts_lie_in_the_ball_and_the_bounds() -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    start = attacks.RandomStart(torch.arange(6))
    ball = attacks.Ball(eps, hi=torch.full((3,), 1.0))
    adv = attacks.pgd(model, images, ebv, z, ball, loss=attacks.shift(BINS), steps=2, start=start)
    assert (adv <= 1).all()
    below = images.abs() < 1
    assert ((adv - images).abs() <= eps[:, None, None] + 1e-6)[below].all()


def test_a_nan_gradient_does_not_become_a_nan_image() -> None:
    _, images, ebv, z, eps = batch_norm_problem()

    class Broken(nn.Module):
        def forward(self, x: Tensor, e: Tensor) -> Tensor:
            return (x * torch.where(x > 0, torch.nan, 1.0)).flatten(1).sum(1, keepdim=True)

    for kind in ("linf", "l2", "flux"):
        ball = attacks.Ball(eps, kind)
        adv = attacks.pgd(Broken(), images, ebv, z, ball, loss=lambda logits, _: logits[:, 0], steps=2)
        assert adv.isfinite().all()


def test_batches_of_some_objects_give_the_same_attack() -> None:
    model, images, z = conv_problem(11)
    eps = torch.full((3,), 0.2)
    whole, parts = (
        attacks.pgd(
            model,
            images,
            None,
            z,
            eps,
            loss=LOSS,
            start=attacks.RandomStart(),
            passes=attacks.Passes(rows=rows),
        )
        for rows in (11, 4)
    )
    assert (whole == parts).float().mean() > 0.99  # matrix products of other sizes round differently


def test_the_best_image_on_the_way_is_never_worse_than_the_last() -> None:
    model, images, z = conv_problem(16)
    eps = torch.full((3,), 0.5)
    coarse: dict[str, Any] = dict(loss=LOSS, steps=6, step_size=eps)
    last, best = (
        LOSS(model(attacks.pgd(model, images, None, z, eps, best=b, **coarse)), z) for b in (False, True)
    )
    assert (best >= last - 1e-6).all() and (best > last + 1e-4).any()


def test_more_restarts_are_never_worse() -> None:
    model, images, z = conv_problem(16)
    eps, start = torch.full((3,), 0.5), attacks.RandomStart(seed=2)
    one, five = (
        LOSS(
            model(attacks.pgd(model, images, None, z, eps, loss=LOSS, start=start, best=True, restarts=n)), z
        )
        for n in (1, 5)
    )
    assert (five >= one - 1e-6).all() and (five > one + 1e-4).any()


def test_an_object_that_meets_the_stop_condition_is_not_attacked_further() -> None:
    model, images, z = conv_problem(16)
    rows = []
    model.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    stop, eps = attacks.outlier(BINS), torch.full((3,), 0.5)
    adv = attacks.pgd(model, images, None, z, eps, loss=LOSS, steps=12, stop=stop)
    assert rows[0] == 16 and rows == sorted(rows, reverse=True) and rows[-1] < 16
    clean = stop(model(images), z)
    assert clean.any() and torch.equal(adv[clean], images[clean])
    # Objects that became outliers left the attack at once, so they moved less than the rest.
    done = stop(model(adv), z) & ~clean
    moved = (adv - images).abs().mean((1, 2, 3))
    assert done.any() and (~(done | clean)).any()
    assert moved[done].max() <= moved[~(done | clean)].max() + 1e-6
