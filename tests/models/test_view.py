"""Networks that see a part of each stamp or mean fluxes: an attack on these is the attack on whole stamps."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcphotoz import attacks
from hpcphotoz.config import Model
from hpcphotoz.config.load import parse
from hpcphotoz.errors import BadInput
from hpcphotoz.models.build import bins_of, build
from hpcphotoz.models.view import View

SCALE = (0.3, 0.1, 0.2)
N, SIDE = 5, 32
VIEWS = [{"binning": 2}, {"crop": 16}, {"crop": 24, "binning": 2}]
views = pytest.mark.parametrize("options", VIEWS, ids=["binned", "cut", "cut and binned"])


def configured(**options: Any) -> Model:
    return Model(**{"bins": 20, **options})


def network(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(configured(**options), stamp=SIDE, scale=SCALE).eval()


def images() -> Tensor:
    return 0.3 * torch.randn(N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def view(**options: int) -> View:
    return View.of(configured(**options), SIDE)


def test_the_mean_flux_of_each_square() -> None:
    whole = torch.arange(2 * 16.0).reshape(1, 2, 4, 4)
    mean = View(4, 2)
    binned = mean(whole)
    assert binned[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]] and binned[0, 1, 1, 1] == 28.5
    assert mean(binned) is binned, "binned already"


def test_the_part_in_the_middle() -> None:
    whole = torch.arange(36).reshape(1, 1, 6, 6)
    middle = View(2, 1)
    assert middle(whole)[0, 0].tolist() == [[14, 15], [20, 21]]
    assert middle(middle(whole)).equal(middle(whole)), "cut already"
    assert View(6, 1)(whole) is whole and View(6, 2).cut(whole) is whole
    odd = torch.arange(25.0).reshape(1, 1, 5, 5)
    assert View(3, 3)(odd).item() == 12 and View(1, 1)(odd).item() == 12


@views
@pytest.mark.parametrize("name", ["compact", "cnn", "inception"])
def test_a_network_takes_whole_images_and_what_it_sees_of_them(name: str, options: dict[str, int]) -> None:
    module, ebv, seen = network(name=name, **options), torch.rand(N) / 10, view(**options)
    whole = module(images(), ebv)
    torch.testing.assert_close(whole, module(seen(images()), ebv))
    outside = images() + torch.randn_like(images())
    edge = (SIDE - seen.part) // 2
    outside[..., edge : SIDE - edge, edge : SIDE - edge] = seen.cut(images())
    torch.testing.assert_close(whole, module(outside, ebv))
    # Pixels of a square change places.
    shuffled = images().reshape(N, 3, SIDE, -1, seen.binning).flip(4).flatten(3)
    torch.testing.assert_close(whole, module(shuffled, ebv))
    other = build(Model(name=name, bins=20), stamp=SIDE, scale=SCALE)
    assert sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in other.parameters())


@views
@pytest.mark.parametrize("ball", ["linf", "l2", "flux"])
def test_an_attack_on_what_a_network_sees_is_the_attack_on_whole_images(
    ball: str, options: dict[str, int]
) -> None:
    if ball != "linf" and "crop" in options:
        pytest.skip("an attack on whole stamps moves the share of the ball that lies outside inwards")
    module, bins, seen = network(width=8, **options), bins_of(configured()), view(**options)
    ebv, z, sky = torch.zeros(N), torch.linspace(0.05, 0.3, N), torch.full((N, 3), 0.05)
    attack = parse({"attack": {"ball": ball, "eps": 0.5, "random_start": False}}, "test").attack
    given: dict[str, Any] = {"attack": attack, "bins": bins}
    small = seen(images()).contiguous()
    on_whole = attacks.perturb(module, images(), ebv, z, sky, torch.arange(N), **given)
    on_seen = attacks.perturb(module, small, ebv, z, sky, torch.arange(N), **given)
    moved = (seen(on_whole) - on_seen).abs() / sky[:, :, None, None]
    # Gradients are rounded differently: the sign of one that is nearly 0 may differ, and with it a step of
    # 0.4 sky sigmas. (In the ball flux the bisection of the shift rounds differently as well.)
    assert (moved < 1e-4).float().mean() > 0.995
    assert (on_seen - small).abs().amax() > 0.4 * 0.05, "something was attacked"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"binning": 3}, "model.binning 3: stamps of 32 x 32 pixels cannot be divided"),
        ({"crop": 20, "binning": 3}, "model.binning 3: the central 20 x 20 pixels cannot be divided"),
        ({"crop": 34}, "model.crop 34: stamps of 32 x 32 pixels have no such central part"),
        ({"crop": 21}, "want an even number of at most 32, or 0"),
    ],
)
def test_a_stamp_without_such_a_view_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        network(**options)


def test_stamps_of_an_odd_side_want_an_odd_part() -> None:
    with pytest.raises(BadInput, match="crop 20: stamps of 63 x 63 .* want an odd number of at most 63"):
        View.of(configured(crop=20), 63)


def test_sides() -> None:
    assert view().side == SIDE and view(crop=24, binning=3).side == 8
    assert View.of(configured(crop=21), 63).side == 21


@pytest.mark.parametrize("options", [{"binning": 2}, {"crop": 32}])
def test_other_networks_have_no_view(options: dict[str, int]) -> None:
    (name,) = options
    with pytest.raises(BadInput, match=f"{name} {options[name]} has no effect on my.module:factory"):
        parse({"model": {"name": "my.module:factory", **options}}, "test")


def test_all_options_without_an_effect_are_named() -> None:
    says = "width 8, crop 32 have no effect on my.module:factory: leave them out; arguments of"
    with pytest.raises(BadInput, match=says):
        parse({"model": {"name": "my.module:factory", "width": 8, "crop": 32}}, "test")
