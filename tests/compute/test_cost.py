"""Floating-point operations of a network and of an attack on it, counted as torch dispatches them."""

import pytest
import torch

from hpcphotoz import attacks
from hpcphotoz.compute.cost import flops
from hpcphotoz.config import Model
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.build import build


@pytest.mark.parametrize("network", ["inception", "cnn", "compact"])
def test_a_step_of_an_attack_costs_two_forward_passes(network: str) -> None:
    """Gradients of the parameters would make it three."""
    model = build(Model(name=network), stamp=32, scale=(0.1,) * 5)
    images, ebv, z, eps = (
        torch.randn(1, 5, 32, 32),
        torch.zeros(1),
        torch.full((1,), 0.1),
        torch.full((5,), 0.01),
    )
    loss = attacks.cross_entropy(RedshiftBins())
    forward = flops(lambda: model(images, ebv))
    attack = flops(lambda: attacks.pgd(model, images, ebv, z, eps, loss=loss, steps=4))
    assert attack == 4 * 2 * forward
