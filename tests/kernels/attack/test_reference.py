"""The reference on examples worked out by hand, the random numbers, and the symmetries of the square.

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


def test_start_is_uniform_in_the_ball_and_then_in_the_bounds() -> None:
    x0, object_id, key = torch.zeros(2, 1, 3, 4), torch.tensor([3, 2**40]), torch.tensor([1, 2])
    u = reference.uniform(x0.shape, object_id, key)
    given = x0, object_id, constants(0.5)
    assert torch.equal(reference.start(*given, *FREE, key), 0.5 * u)
    found = reference.start(*given, constants(-0.25), constants(0.125), key)
    assert torch.equal(found, (0.5 * u).clamp(-0.25, 0.125))


def test_philox_matches_the_published_vectors() -> None:
    # The known answers of Random123 1.14 for philox4x32-10: all zeros, all ones, digits of pi.
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    for counter, key, answer in (
        ((0,) * 4, (0,) * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (*pi, [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ):
        c0, c1, c2, c3 = torch.tensor(counter)
        k0, k1 = torch.tensor(key)
        assert [int(word) for word in reference.philox((c0, c1, c2, c3), (k0, k1))] == answer


def test_uniform_uses_the_words_of_philox_in_the_order_of_the_pixels() -> None:
    object_id, key = torch.tensor([2**40 + 3]), torch.tensor([2**33 + 1, 4])
    u = reference.uniform(torch.Size((1, 2, 3, 1)), object_id, key).flatten()
    for i in range(6):
        counter = torch.tensor(i // 4), torch.tensor(3), torch.tensor(2**8), torch.tensor(4)
        word = reference.philox(counter, (torch.tensor(1), torch.tensor(2)))[i % 4]
        assert u[i].item() == (int(word) >> 8) / 2**23 - 1


def test_uniform_belongs_to_the_object_not_to_its_place() -> None:
    ids = torch.tensor([5, 2**40 + 3, -7])
    shape, key = torch.Size((3, 5, 4, 3)), torch.tensor([2**33 + 1, 4])
    u = reference.uniform(shape, ids, key)
    for k in (2, 0, 1):
        assert torch.equal(reference.uniform(torch.Size((1, 5, 4, 3)), ids[k : k + 1], key)[0], u[k])
    for other in ([1, 4], [2**33 + 1, 5]):
        assert not torch.equal(reference.uniform(shape, ids, torch.tensor(other)), u)
    assert torch.unique(u).numel() > 0.99 * u.numel()


def test_uniform_is_uniform() -> None:
    u = reference.uniform(torch.Size((64, 1000)), torch.arange(64), torch.tensor([0, 0]))
    assert u.min() >= -1 and u.max() < 1
    # Standard errors of mean and variance at 64,000 numbers: 0.0023 and 0.0012; five of each allowed.
    assert abs(u.mean()) < 0.012 and abs(u.var() - 1 / 3) < 0.006
    assert abs((u[:, 1:] * u[:, :-1]).mean()) < 0.007


def test_dihedral_gives_the_eight_symmetries() -> None:
    image = torch.arange(12.0).reshape(1, 3, 2, 2)
    eight = reference.dihedral(image.expand(8, -1, -1, -1), torch.arange(8))
    assert len({tuple(t.flatten().tolist()) for t in eight}) == 8
    assert torch.equal(eight[0], image[0])
    assert torch.equal(eight[4], image[0].transpose(-1, -2))
    assert torch.equal(eight[3], image[0].rot90(2, (-2, -1)))
    assert all(torch.equal(t.sum((-1, -2)), image[0].sum((-1, -2))) for t in eight)
