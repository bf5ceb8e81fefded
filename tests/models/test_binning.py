"""Binned networks see mean fluxes, and an attack on binned images is the attack on whole ones."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcphotoz import attacks
from hpcphotoz.config import Model
from hpcphotoz.config.load import parse
from hpcphotoz.errors import BadInput
from hpcphotoz.models.binning import bin_pixels, binned_side
from hpcphotoz.models.build import bins_of, build

SCALE = (0.3, 0.1, 0.2)
N, SIDE, BINNING = 5, 32, 2
MODEL: dict[str, Any] = {"bins": 20, "binning": BINNING}


def network(name: str = "compact", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(Model(name=name, **MODEL, **options), stamp=SIDE, scale=SCALE).eval()


def images() -> Tensor:
    return 0.3 * torch.randn(N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_the_mean_flux_of_each_square() -> None:
    whole = torch.arange(2 * 16.0).reshape(1, 2, 4, 4)
    binned = bin_pixels(whole, 2)
    assert binned[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]] and binned[0, 1, 1, 1] == 28.5
    assert bin_pixels(binned, 2) is binned, "binned already"


@pytest.mark.parametrize("name", ["compact", "cnn", "inception"])
def test_a_network_takes_whole_and_binned_images(name: str) -> None:
    module, ebv = network(name), torch.rand(N) / 10
    whole = module(images(), ebv)
    torch.testing.assert_close(whole, module(bin_pixels(images(), SIDE // BINNING), ebv))
    shuffled = (
        images().reshape(N, 3, SIDE, -1, BINNING).flip(4).flatten(3)
    )  # pixels of a square change places
    torch.testing.assert_close(whole, module(shuffled, ebv))
    other = build(Model(name=name, bins=20), stamp=SIDE, scale=SCALE)
    assert sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in other.parameters())


@pytest.mark.parametrize("ball", ["linf", "l2", "flux"])
def test_an_attack_on_binned_images_is_the_attack_on_whole_ones(ball: str) -> None:
    module, bins = network(width=8), bins_of(Model(**MODEL))
    ebv, z, sky = torch.zeros(N), torch.linspace(0.05, 0.3, N), torch.full((N, 3), 0.05)
    attack = parse({"attack": {"ball": ball, "eps": 0.5, "random_start": False}}, "test").attack
    given: dict[str, Any] = {"attack": attack, "bins": bins}
    small = bin_pixels(images(), SIDE // BINNING)
    on_whole = attacks.perturb(module, images(), ebv, z, sky, torch.arange(N), **given)
    on_binned = attacks.perturb(module, small, ebv, z, sky, torch.arange(N), **given)
    moved = (bin_pixels(on_whole, SIDE // BINNING) - on_binned).abs() / sky[:, :, None, None]
    # Gradients are rounded differently: the sign of one that is nearly 0 may differ, and with it a step of
    # 0.4 sky sigmas. (In the ball flux the bisection of the shift rounds differently as well.)
    assert (moved < 1e-4).float().mean() > 0.995
    assert (on_binned - small).abs().amax() > 0.4 * 0.05, "something was attacked"


def test_a_stamp_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(BadInput, match="model.binning 3: stamps of 64 x 64 pixels cannot be divided"):
        build(Model(binning=3), stamp=64, scale=SCALE)
    assert binned_side(63, 3) == 21


def test_other_networks_have_no_binning() -> None:
    with pytest.raises(BadInput, match="binning 2 has no effect on my.module:factory"):
        parse({"model": {"name": "my.module:factory", "binning": 2}}, "test")
