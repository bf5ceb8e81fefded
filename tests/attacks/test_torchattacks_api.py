"""Attack objects give the same images as the functions."""

from typing import Any

import pytest
import torch

from hpcphotoz import attacks
from tests.helpers.attack_problems import batch_norm_problem, conv_problem
from tests.helpers.networks import BINS


def test_attack_objects_give_the_images_of_the_functions() -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    loss = attacks.cross_entropy(BINS)
    given: dict[str, Any] = {"loss": loss, "passes": attacks.Passes(rows=4)}
    start = attacks.RandomStart(seed=9)
    ball = attacks.Ball(eps, "flux")
    pairs = [
        (attacks.FGSM(model, eps, **given), attacks.fgsm(model, images, ebv, z, eps, **given)),
        (
            attacks.PGD(model, eps, alpha=eps / 3, steps=4, ball="flux", seed=9, **given),
            attacks.pgd(model, images, ebv, z, ball, steps=4, step_size=eps / 3, start=start, **given),
        ),
        (
            attacks.APGD(model, eps, steps=4, seed=9, **given),
            attacks.apgd(model, images, ebv, z, eps, steps=4, start=start, **given),
        ),
    ]
    for attack, adv in pairs:
        assert torch.equal(attack(images, z, ebv), adv)
        assert torch.equal(attack(images, z, ebv), adv)  # and again


def test_a_classifier_of_images_alone_needs_no_more_than_an_epsilon() -> None:
    model, images, z = conv_problem()
    labels = BINS.index(z)
    adv = attacks.PGD(model, 0.1, steps=3)(images, labels)
    loss = attacks.cross_entropy()
    assert (loss(model(adv), labels) > loss(model(images), labels)).all()
    assert (adv - images).abs().max() <= 0.1 + 1e-6


def test_several_epsilons_at_once() -> None:
    model, images, z = conv_problem(12)
    attack = attacks.PGD(model, 1.0, steps=5, loss=attacks.shift(BINS), stop=attacks.outlier(BINS))
    attacked, success = attack.over(images, z, [0.01, 0.1, 1.0])
    assert success is not None and success.shape == (3, 12)
    assert success[2].sum() > success[0].sum()
    for factor, adv in zip((0.01, 0.1, 1.0), attacked, strict=True):
        assert (adv - images).abs().max() <= factor + 1e-6


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_graph_on_a_cpu_is_refused() -> None:
    model, images, z = conv_problem()
    with pytest.raises(ValueError, match="a CUDA graph wants them on a GPU"):
        attacks.PGD(model, 0.1, graph=True)(images, BINS.index(z))
