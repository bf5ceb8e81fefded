"""Attacks raise the loss of any model, stay in the ball, and leave the model unchanged."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hpcphotoz import attacks
from hpcphotoz.attacks.losses import redshift_losses
from tests.helpers.attack_problems import batch_norm_problem, conv_problem, rounding
from tests.helpers.networks import BINS

LOSS = attacks.cross_entropy(BINS)


def inside(adv: Tensor, images: Tensor, eps: Tensor, kind: str = "linf") -> bool:
    """Whether the change lies in the ball, up to rounding."""
    radius, change = eps[:, None, None], adv - images
    if kind == "l2":
        return bool((torch.linalg.vector_norm(change / radius, dim=(1, 2, 3)) < 1 + 1e-5).all())
    within = bool((change.abs() <= radius + rounding(images, radius)).all())
    # Each pixel of x0 + delta is rounded by half an ulp of at most 4, and 64 of them are added up.
    balanced = bool((change.sum((2, 3)).abs() < 64 * 2.0**-22).all())
    return within and (kind == "linf" or balanced)


@pytest.mark.parametrize("name", redshift_losses)
@pytest.mark.parametrize("kind", ["linf", "l2", "flux"])
def test_attacks_raise_the_loss_and_stay_in_the_ball(name: str, kind: str) -> None:
    model, images, ebv, z, eps = batch_norm_problem(16)
    loss, ball = redshift_losses[name](BINS), attacks.Ball(eps, kind)
    model.eval()
    before = loss(model(images, ebv), z)
    for attack, adv in (
        ("fgsm", attacks.fgsm(model, images, ebv, z, ball, loss=loss)),
        ("pgd", attacks.pgd(model, images, ebv, z, ball, loss=loss, steps=5, best=True)),
        ("apgd", attacks.apgd(model, images, ebv, z, ball, loss=loss, steps=5)),
    ):
        after = loss(model(adv, ebv), z)
        # |<z> - z| and the margin have kinks, behind which a first step may fall; those that keep their best
        # do not. The margin is flat where the bin of z is the third.
        if attack != "fgsm":
            assert (after >= before - 1e-6).all()
        if (attack, name) != ("fgsm", "margin"):
            assert after.mean() > before.mean() and (after > before).float().mean() > 0.7
        assert name != "cross_entropy" or (after > before).all()
        assert inside(adv, images, eps, kind)


def test_a_model_is_left_as_it_was() -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    model.train()
    model.head.weight.requires_grad_(False)  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = [p.requires_grad for p in model.parameters()]
    attacks.pgd(model, images, ebv, z, eps, loss=LOSS, steps=2)
    attacks.apgd(model, images, ebv, z, eps, loss=LOSS, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(module.training for module in model.modules())


def test_a_failing_model_is_restored() -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    with pytest.raises(RuntimeError):
        attacks.pgd(model, images[:, :2].contiguous(), ebv, z, eps[:2], loss=LOSS)
    assert model.training and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", ["linf", "l2", "flux"])
def test_pixels_outside_the_mask_stay(kind: str) -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:6, 1:7] = True
    ball = attacks.Ball(eps, kind, mask=mask)
    for adv in (
        attacks.pgd(model, images, ebv, z, ball, loss=LOSS, start=attacks.RandomStart()),
        attacks.apgd(model, images, ebv, z, ball, loss=LOSS, steps=5),
    ):
        changed = adv != images
        assert not changed[~mask.expand_as(changed)].any() and changed.any((1, 2, 3)).all()
        assert inside(adv, images, eps, kind)


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("kind", ["linf", "l2", "flux"])
def test_channels_last_and_contiguous_images_give_the_same_attack(kind: str, n: int) -> None:
    model, images, ebv, z, eps = batch_norm_problem(n)
    ball, start, stop = attacks.Ball(eps, kind), attacks.RandomStart(), attacks.outlier(BINS)
    shared: dict[str, Any] = {"loss": LOSS, "steps": 6, "start": start}
    every: list[Callable[[Tensor], Tensor]] = [
        lambda x: attacks.pgd(model, x, ebv, z, ball, **shared),
        lambda x: attacks.pgd(model, x, ebv, z, ball, **shared, restarts=2, stop=stop),
        lambda x: attacks.apgd(model, x, ebv, z, ball, **shared, restarts=2, stop=stop),
        lambda x: attacks.minimal_eps(model, x, ebv, z, ball, reach=stop, **shared)[1],
    ]
    for attack in every:
        plain = attack(images)
        last = attack(images.contiguous(memory_format=torch.channels_last))
        # The L2 norm and the flux add up in another order.
        torch.testing.assert_close(plain, last, rtol=0, atol=0 if kind == "linf" else 1e-5)
        assert last.is_contiguous(memory_format=torch.channels_last)


def test_images_come_back_in_the_layout_they_were_given_in() -> None:
    model, images, z = conv_problem()
    eps, loss = torch.full((3,), 0.1), LOSS
    plain = attacks.pgd(model, images, None, z, eps, loss=loss, steps=3)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seen = []
    model.register_forward_pre_hook(lambda module, given: seen.append(given[0].is_contiguous()))
    last = attacks.pgd(model, images, None, z, eps, loss=loss, steps=3)
    assert last.is_contiguous() and not any(seen)
    # Convolutions of another layout add up in another order: a sign may flip where the gradient is ~0.
    assert (plain == last).float().mean() > 0.99


def test_a_plain_function_can_be_attacked() -> None:
    _, images, ebv, z, eps = batch_norm_problem()

    def model(x: Tensor, e: Tensor) -> Tensor:
        return x.flatten(1)[:, :20] + e[:, None]

    adv = attacks.fgsm(model, images, ebv, z, eps, loss=LOSS)
    assert (LOSS(model(adv, ebv), z) > LOSS(model(images, ebv), z)).all()
