"""Natural perturbations against their formulas."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcphotoz.evaluation.natural.perturbations import (
    MOFFAT,
    NATURAL,
    SkyStamps,
    add_wing,
    broaden_psf,
    offset_background,
    redraw_noise,
    shift_zero_points,
)

SIDE, SCALE = 48, 0.4


def stamps(n: int = 3, bands: int = 2, images: Tensor | None = None, seed: int = 0) -> SkyStamps:
    sigma = 0.02 * torch.arange(1, bands + 1).float().repeat(n, 1)
    images = torch.zeros(n, bands, SIDE, SIDE) if images is None else images
    return SkyStamps(images, sigma, torch.arange(n) + 7, torch.full((n, bands), 1.5), SCALE, seed)


def gaussian(fwhm: float) -> Tensor:
    """A source of unit flux at the centre of one stamp of two bands; fwhm in arcsec."""
    axis = (torch.arange(SIDE) - (SIDE - 1) / 2) * SCALE
    profile = torch.exp(-4 * math.log(2) * (axis / fwhm) ** 2)
    image = profile[:, None] * profile
    return (image / image.sum()).expand(1, 2, SIDE, SIDE).clone()


def test_redrawn_noise_differs_as_two_exposures_do() -> None:
    given = stamps(n=20, bands=2)
    change = given.in_sky_sigmas(redraw_noise(given)).double()
    # 92,160 pixels: the standard deviation has an error of 0.23 %.
    assert change.std().item() == pytest.approx(math.sqrt(2), rel=0.01)
    assert abs(change.mean().item()) < 0.02
    assert not torch.equal(change[0], change[1]) and not torch.equal(change[:, 0], change[:, 1])


def test_a_broader_psf_has_the_asked_width_and_the_same_flux() -> None:
    # A Gaussian of the PSF's own FWHM becomes one of 1.05 times it: the exact result, pixel by pixel.
    given = stamps(1, images=gaussian(1.5))
    broad = broaden_psf(given, 0.05)
    np.testing.assert_allclose(broad, gaussian(1.05 * 1.5), atol=2e-6 * float(gaussian(1.5).max()) + 1e-7)
    assert broad.sum((2, 3)).numpy() == pytest.approx(1, abs=1e-4)
    flat = stamps(1, images=torch.full((1, 2, SIDE, SIDE), 3.0))
    np.testing.assert_allclose(broaden_psf(flat, 0.2), 3.0, atol=1e-5)


def test_the_background_moves_by_a_constant_of_either_sign() -> None:
    given = stamps(n=200)
    change = given.in_sky_sigmas(offset_background(given, 0.1))
    assert (change.amax((2, 3)) - change.amin((2, 3))).max() < 1e-6
    np.testing.assert_allclose(change.abs(), 0.1, rtol=1e-5)
    raised = (change[:, :, 0, 0] > 0).float().mean(0)
    assert ((raised > 0.35) & (raised < 0.65)).all()  # 0.5 with an error of 0.035


def test_zero_points_scatter_by_the_asked_magnitudes() -> None:
    given = stamps(n=4000, images=torch.ones(4000, 2, 1, 1))
    magnitudes = -2.5 * torch.log10(shift_zero_points(given, 0.02)[:, :, 0, 0])
    # 8,000 numbers: the scatter has an error of 0.8 %.
    assert magnitudes.std().item() == pytest.approx(0.02, rel=0.03)
    assert abs(magnitudes.mean().item()) < 0.001
    assert abs(np.corrcoef(magnitudes.T.numpy())[0, 1]) < 0.06


def test_a_wing_is_that_of_a_star_outside_the_stamp() -> None:
    given = stamps(n=64)
    wing = add_wing(given, 16.0, 5.0).double()
    # By the profile: at the point of the circle that is nearest to the star, 5 arcsec from it.
    alpha = 1.5 / (2 * math.sqrt(2 ** (1 / MOFFAT) - 1))
    central = 10 ** (0.4 * 6.5) * (MOFFAT - 1) / (math.pi * alpha**2) * SCALE**2
    nearest = central * (1 + (5.0 / alpha) ** 2) ** -MOFFAT
    brightest = wing[:, 0].amax((1, 2))
    # The corners lie beyond the circle, up to 4 arcsec nearer to the star.
    assert (brightest >= 0.7 * nearest).all() and brightest.max() <= central
    assert (wing > 0).all()
    centre = wing[:, :, SIDE // 2, SIDE // 2]
    far = SIDE * SCALE / 2 + 5.0
    expected = central * (1 + (far / alpha) ** 2) ** -MOFFAT
    np.testing.assert_allclose(centre, expected, rtol=0.15)  # half a pixel from the centre
    angles = torch.atan2(*(wing[:, 0].sum(k).argmax(1) - SIDE / 2 for k in (2, 1)))
    assert (angles > 0).any() and (angles < 0).any()


@pytest.mark.parametrize("one", NATURAL, ids=lambda one: one.name)
def test_a_galaxy_is_perturbed_alike_in_any_batch(one: object) -> None:
    images = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (3, 2, SIDE, SIDE)).astype(np.float32))
    given = stamps(images=images)
    alone = SkyStamps(images[1:2], given.sky_sigma[1:2], given.object_id[1:2], given.psf_fwhm[1:2], SCALE)
    both, single = one.perturb(given), one.perturb(alone)  # type: ignore[attr-defined]
    # The transforms of a batch and of one image round differently.
    np.testing.assert_allclose(both[1:2], single, atol=1e-6)
    other = one.perturb(stamps(images=images, seed=1))  # type: ignore[attr-defined]
    assert torch.equal(other, both) == (one.name == "psf_fwhm_5_percent")  # type: ignore[attr-defined]
