"""The square attack finds the corner of the ball that raises a loss most, without a gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hpcphotoz import attacks
from hpcphotoz.attacks.ball import attack_batch
from hpcphotoz.attacks.square import numbers_of_queries, square_side
from tests.helpers.attack_problems import batch_norm_problem, conv_problem, rounding
from tests.helpers.networks import BINS

LOSS = attacks.cross_entropy(BINS)


def test_squares_shrink_as_in_autoattack() -> None:
    sides = [
        square_side(query, 5000, 0.8, 64, 64) for query in (1, 5, 6, 26, 101, 251, 501, 1001, 2001, 3001)
    ]
    # sqrt(0.8 / 2^k) of 64 pixels, rounded: k is 0 up to a thousandth of the queries, 8 above 60 % of them.
    assert sides == [57, 57, 40, 29, 20, 14, 10, 7, 5, 4] and square_side(4999, 5000, 0.8, 64, 64) == 3
    assert square_side(9, 10, 0.8, 4, 4) == 1 and square_side(1, 10_000, 1.0, 3, 9) == 3


def test_it_finds_the_signs_of_a_linear_model() -> None:
    """The loss w . x is largest at x0 + eps sign(w): no square of one pixel improves on it."""
    g = torch.Generator().manual_seed(0)
    w, images = torch.randn(2, 4, 6, generator=g), torch.randn(3, 2, 4, 6, generator=g)
    eps = torch.tensor([0.1, 0.7])

    def loss(outputs: Tensor, _: Tensor) -> Tensor:
        return outputs

    found = attacks.square(
        lambda x: (x * w).sum((1, 2, 3)), images, None, torch.zeros(3), eps, loss=loss, queries=1500
    )
    # Of 24 places and 4 signs each is drawn about 14 times at a side of 1: missed with probability 1e-4.
    assert torch.allclose(found, images + eps[:, None, None] * w.sign(), atol=1e-6)


def test_it_needs_no_gradient() -> None:
    """A network of steps has no gradient, and PGD is refused; the square attack climbs."""
    _, images, _ = conv_problem(8)

    def steps(x: Tensor) -> Tensor:
        return (4 * x.detach()).round().sum((1, 2, 3))

    def loss(outputs: Tensor, _: Tensor) -> Tensor:
        return outputs

    label, eps = torch.zeros(8), torch.full((3,), 0.2)
    with pytest.raises(ValueError, match="does not depend on the images by autograd"):
        attacks.pgd(steps, images, None, label, eps, loss=loss)
    found = attacks.square(steps, images, None, label, eps, loss=loss, queries=100)
    assert (steps(found) > steps(images)).all()


@pytest.mark.parametrize("queries", [1, 2, 40])
def test_it_stays_in_ball_bounds_and_mask_and_is_never_weaker_than_the_clean_image(queries: int) -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    model.eval()
    mask, hi = torch.rand(6, 1, 8, 8) > 0.3, torch.tensor([1.0, 0.5, 2.0])
    images = images.clamp(max=0.4)
    ball = attacks.Ball(eps, hi=hi, mask=mask)
    adv = attacks.square(model, images, ebv, z, ball, loss=LOSS, queries=queries)
    radius = eps[:, None, None]
    assert ((adv - images).abs() <= radius + rounding(images, radius)).all()
    assert (adv <= hi[:, None, None]).all() and torch.equal(
        adv[~mask.expand_as(adv)], images[~mask.expand_as(adv)]
    )
    before, after = LOSS(model(images, ebv), z), LOSS(model(adv, ebv), z)
    # Each chunk of objects rounds its own products: a kept loss may come back lower by an ulp.
    assert (after >= before - 1e-6).all() and (queries < 40 or (after > before).all())


def test_more_queries_raise_the_loss_further() -> None:
    model, images, z = conv_problem(8)
    eps = torch.full((3,), 0.3)

    def after(queries: int) -> Tensor:
        found = attacks.square(model, images, None, z, eps, loss=LOSS, queries=queries)
        return LOSS(model(found), z)

    assert after(400).mean() > after(40).mean() > LOSS(model(images), z).mean()


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_random_numbers_are_those_of_the_object(rows: int) -> None:
    model, images, z = conv_problem(12)
    ids, eps = torch.arange(2**40, 2**40 + 12), torch.full((3,), 0.3)

    def run(chosen: Tensor, **change: Any) -> Tensor:
        start = attacks.RandomStart(ids[chosen], **{"seed": 3, **change})
        how: dict[str, Any] = {"loss": LOSS, "queries": 30, "start": start}
        passes = attacks.Passes(rows=rows)
        return attacks.square(model, images[chosen], None, z[chosen], eps, passes=passes, **how)

    every, order = torch.arange(12), torch.tensor([7, 2, 11])
    whole = run(every)
    # Other batch sizes round products differently: a square may then be kept or not where the loss is equal.
    assert ((run(order) - whole[order]).abs() < 1e-6).float().mean() > 0.99
    assert not torch.equal(run(every, seed=4), whole) and not torch.equal(run(every, epoch=1), whole)


def test_numbers_beyond_the_first_block_differ_from_those_of_the_first() -> None:
    eps = torch.ones(1)
    batch = attack_batch(torch.zeros(2, 1, 4, 4), None, torch.zeros(2), eps, None, 1.0, None)
    found = torch.stack(list(numbers_of_queries(batch, torch.tensor([0, 0]), 10, 3, block=4)))
    assert found.shape == (10, 2, 3) and len(set(found.flatten().tolist())) == 60


def test_an_object_that_meets_the_stop_condition_stays() -> None:
    model, images, z = conv_problem(12)
    eps, stop = torch.full((3,), 0.5), attacks.outlier(BINS)
    free = attacks.square(model, images, None, z, eps, loss=LOSS, queries=60)
    held = attacks.square(model, images, None, z, eps, loss=LOSS, queries=60, stop=stop)
    already = stop(model(images), z)
    assert torch.equal(held[already], images[already])
    assert (stop(model(held), z) | ~stop(model(free), z)).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"queries": 0}, "queries 0: must be 1 to 1000000"),
        ({"p_init": 0.0}, "p_init 0.0: must be above 0"),
        ({"eps": attacks.Ball(torch.ones(3), "l2")}, "ball 'l2': the square attack knows linf alone"),
        ({"z": torch.full((6,), torch.nan)}, "z of 6 of 6 objects"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(given: dict[str, Any], said: str) -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    whole: dict[str, Any] = {"model": model, "images": images, "ebv": ebv, "z": z, "eps": eps, "loss": LOSS}
    with pytest.raises(ValueError, match=said):
        attacks.square(**{**whole, **given})
