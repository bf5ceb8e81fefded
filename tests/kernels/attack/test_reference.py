"""The steps and the selection in plain torch on examples worked out by hand.

Properties of any images are tested in the kernels' files, for reference and kernels alike.
"""

import pytest
import torch
from torch import Tensor

from hpcphotoz.kernels.attack import reference


def pixels(*values: float, bands: int = 1) -> Tensor:
    """One object (1, B, 1, W) with these pixels in each band."""
    return torch.tensor(values).reshape(1, bands, 1, -1)


def constants(*values: float) -> Tensor:
    """One value a band."""
    return torch.tensor(values)


FREE = constants(-torch.inf), constants(torch.inf)
FREE_2 = constants(-torch.inf, -torch.inf), constants(torch.inf, torch.inf)


def test_pgd_climbs_by_exactly_one_step_inside_the_ball() -> None:
    grad = pixels(3.0, -2.0, 0.0, torch.nan, 1e-30, -torch.inf, torch.inf, -0.0)
    x0 = torch.zeros_like(grad)
    moved = reference.pgd(x0, x0, grad, constants(1), constants(0.25), *FREE)
    assert moved.flatten().tolist() == [0.25, -0.25, 0, 0, 0.25, -0.25, 0.25, 0]


def test_pgd_ends_at_the_ball_and_then_at_the_bounds() -> None:
    x0, adv = pixels(0.0, 0.0, 1.0, 2.0), pixels(3.0, -3.0, 1.2, 2.0)
    moved = reference.pgd(adv, x0, None, constants(0.5), constants(0.25), constants(-0.25), constants(1.25))
    assert moved.flatten().tolist() == [0.5, -0.25, pytest.approx(1.2), 1.25]  # the bounds win over the ball


def test_momentum_adds_a_quarter_of_the_last_move() -> None:
    x0, previous, adv, grad = pixels(0.0), pixels(0.5), pixels(1.0), pixels(7.0)
    for eps, wanted in ((10.0, 1.0 + 0.75 * 0.25 + 0.25 * 0.5), (1.125, 1.125), (1.0, 1.0)):
        moved = reference.momentum(adv, previous, x0, grad, constants(eps), constants(0.25), *FREE)
        assert moved.item() == wanted


def test_l2_steps_along_the_gradient_weighted_by_the_squared_step() -> None:
    x0, grad = pixels(0.0, 0.0, bands=2), pixels(3.0, 4.0, bands=2)
    far = constants(100, 100)
    moved = reference.l2(x0, x0, grad, far, constants(1, 1), *FREE_2)
    assert moved.flatten().tolist() == pytest.approx([0.6, 0.8])
    moved = reference.l2(x0, x0, grad, far, constants(1, 2), *FREE_2)  # |step grad| = |(3, 8)|
    assert moved.flatten().tolist() == pytest.approx([3 / 73**0.5, 16 / 73**0.5])
    mask = torch.tensor([True, False]).reshape(1, 2, 1, 1)
    moved = reference.l2(x0, x0, grad, far, constants(1, 1), *FREE_2, mask)
    assert moved.flatten().tolist() == [1, 0]


def test_l2_is_drawn_back_along_the_radius() -> None:
    x0, none = torch.ones(1, 2, 1, 1), constants(0, 0)
    for delta, eps, wanted in (
        ((3.0, 4.0), (1.0, 1.0), (0.6, 0.8)),
        ((3.0, 8.0), (1.0, 2.0), (0.6, 1.6)),
        ((0.5, 0.5), (1.0, 1.0), (0.5, 0.5)),
        ((5.0, 2.0), (0.0, 1.0), (0.0, 1.0)),  # eps = 0 in one band
        ((5.0, 0.5), (0.0, 1.0), (0.0, 0.5)),
    ):
        moved = reference.l2(x0 + pixels(*delta, bands=2), x0, None, constants(*eps), none, *FREE_2)
        assert (moved - x0).flatten().tolist() == pytest.approx(wanted)


def test_flux_steps_by_the_sign_about_the_median() -> None:
    x0, grad = pixels(0.0, 0.0, 0.0), pixels(1.0, 10.0, 2.0)
    given = constants(5), constants(0.5), *FREE
    assert reference.flux(x0, x0, grad, *given).flatten().tolist() == pytest.approx([-0.5, 0.5, 0], abs=1e-10)
    mask = torch.tensor([True, False, True]).reshape(1, 1, 1, 3)
    # The lower median of 1 and 2 is 1: signs of 0 and 1, minus their mean.
    moved = reference.flux(x0, x0, grad, *given, mask).flatten().tolist()
    assert moved == pytest.approx([-0.25, 0, 0.25], abs=1e-10)


def test_flux_is_shifted_until_it_sums_to_zero() -> None:
    x0, none = torch.full((1, 1, 1, 4), 2.0), constants(0)
    adv = x0 + pixels(1.0, 0.0, 0.0, 0.0)
    moved = reference.flux(adv, x0, None, constants(0.5), none, *FREE) - x0
    assert moved.flatten().tolist() == pytest.approx([0.5, -1 / 6, -1 / 6, -1 / 6])
    # No pixel below 1.875: three give 1/8 each, and one takes what they give.
    moved = reference.flux(adv, x0, None, constants(0.5), none, constants(1.875), constants(torch.inf)) - x0
    assert moved.flatten().tolist() == pytest.approx([0.375, -0.125, -0.125, -0.125])


def test_select_keeps_the_best_and_never_takes_a_nan() -> None:
    best, adv = torch.zeros(4, 1, 1, 2), torch.ones(4, 1, 1, 2)
    least = torch.tensor([1.0, 1.0, 1.0, -torch.inf])
    loss = torch.tensor([2.0, 1.0, torch.nan, -5.0])
    assert reference.select(best, least, adv, loss).tolist() == [2, 1, 1, -5]
    assert best[:, 0, 0].tolist() == [[1, 1], [0, 0], [0, 0], [1, 1]]
