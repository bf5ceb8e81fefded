"""Attacks as the configuration describes them: in units of sky sigma, with starts keyed by object."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hpcphotoz import attacks
from hpcphotoz.config import Attack
from hpcphotoz.config.load import parse
from hpcphotoz.errors import BadInput
from tests.helpers.attack_problems import batch_norm_problem
from tests.helpers.networks import BINS


@pytest.mark.parametrize(
    "change",
    [{}, {"ball": "flux"}, {"ball": "l2"}, {"method": "apgd"}, {"method": "square"}, {"restarts": 2}],
)
def test_perturb_uses_sky_sigmas_and_keys_starts_by_object(change: dict[str, Any]) -> None:
    model, images, ebv, z, _ = batch_norm_problem()
    sky, ids = torch.rand(6, 3) + 0.1, torch.arange(100, 106)
    run: dict[str, Any] = dict(attack=Attack(eps=0.2, steps=3, **change), bins=BINS, seed=7, epoch=2)
    adv = attacks.perturb(model, images, ebv, z, sky, ids, **run)
    scaled = (adv - images) / sky[:, :, None, None]
    if change.get("ball") == "l2":  # eps is the root mean square over the stamp
        assert (scaled.square().mean((1, 2, 3)).sqrt() <= 0.2 * (1 + 1e-5)).all()
    else:
        assert (scaled.abs().amax((2, 3)) <= 0.2 + 1e-5).all()
    order = torch.tensor([4, 1, 5])
    some = attacks.perturb(model, images[order], ebv[order], z[order], sky[order], ids[order], **run)
    # Matrix products of other batch sizes round differently: a pixel's sign may flip only where its gradient
    # is ~0.
    assert ((some - adv[order]).abs() < 1e-5).float().mean() > 0.999
    other = attacks.perturb(model, images, ebv, z, sky, ids, **{**run, "epoch": 3})
    assert not torch.equal(other, adv)


@pytest.mark.parametrize(
    "change",
    [
        *[{"ball": ball, "restarts": n} for ball in ("linf", "l2", "flux") for n in (1, 2)],
        *[{"method": "apgd", "ball": ball} for ball in ("linf", "l2", "flux")],
        *[{"method": method} for method in ("fgsm", "square")],
        *[{"step_size": 0.1}, {"step_size": 0.1, "ball": "l2", "random_start": False}],
    ],
)
def test_an_attack_of_radius_0_returns_the_very_images(change: dict[str, Any]) -> None:
    model, images, ebv, z, _ = batch_norm_problem()
    sky, ids = torch.rand(6, 3) + 0.1, torch.arange(6)
    adv = attacks.perturb(model, images, ebv, z, sky, ids, attack=Attack(eps=0, steps=3, **change), bins=BINS)
    assert torch.equal(adv, images)


@pytest.mark.parametrize("ball", ["linf", "l2"])
def test_the_step_size_is_in_sky_sigmas(ball: str) -> None:
    model, images, ebv, z, _ = batch_norm_problem()
    sky, ids = torch.rand(6, 3) + 0.1, torch.arange(6)
    attack = Attack(eps=0.5, steps=2, step_size=0.05, random_start=False, ball=ball)
    adv = attacks.perturb(model, images, ebv, z, sky, ids, attack=attack, bins=BINS)
    first = attack.model_copy(update={"steps": 1})
    moved = attacks.perturb(model, images, ebv, z, sky, ids, attack=first, bins=BINS) - images
    scaled, further = moved / sky[:, :, None, None], (adv - images) / sky[:, :, None, None]
    if ball == "l2":  # the root mean square over the stamp
        torch.testing.assert_close(scaled.square().mean((1, 2, 3)).sqrt(), torch.full((6,), 0.05))
    else:
        torch.testing.assert_close(scaled.abs(), torch.full_like(scaled, 0.05), rtol=1e-4, atol=1e-6)
    assert 0.05 < further.abs().max() and further.square().mean((1, 2, 3)).sqrt().max() < 0.1001


def test_a_target_attracts_the_redshift() -> None:
    model, images, ebv, z, _ = batch_norm_problem(24)
    sky, ids = torch.full((24, 3), 0.3), torch.arange(24)
    model.eval()
    clean = BINS.mean(model(images, ebv))

    def after(**change: Any) -> Tensor:
        attack = Attack(eps=1.0, steps=10, loss="shift", **change)
        return BINS.mean(
            model(attacks.perturb(model, images, ebv, z, sky, ids, attack=attack, bins=BINS), ebv)
        )

    near = after(target="redshift", target_value=0.05)
    assert ((near - 0.05).abs() < (clean - 0.05).abs()).all()
    shifted = after(target="shift", target_value=-0.08)
    wanted = attacks.moved_by(z, -0.08, BINS)
    assert ((shifted - wanted).abs().mean()) < 0.5 * (clean - wanted).abs().mean()


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ({"restarts": 2, "random_start": False}, "attack: restarts 2 without random_start are one$"),
        ({"method": "fgsm", "restarts": 2}, "fgsm has no random start"),
        ({"method": "apgd", "step_size": 0.1}, "apgd has its own"),
        ({"method": "square", "ball": "l2"}, "ball l2: square knows linf alone"),
        ({"method": "square", "restarts": 2}, "restarts 2: square is one search"),
        ({"method": "square", "random_start": False}, "square starts with random stripes"),
        ({"method": "square", "steps": 10**7}, "square takes 1000000 queries at most"),
        ({"target": "redshift", "target_value": 0.5}, r"outside the bins \[0, 0.4\)"),
        ({"target_value": 0.1}, "without a target"),
        ({"ball": "cube"}, "linf"),
        ({"stop": -1}, "must be at least 0"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(attack: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse({"attack": attack}, "test")
