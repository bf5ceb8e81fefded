"""Errors and changes of aperture colours, against noise that is drawn and changes that are put in."""

from dataclasses import replace

import numpy as np
import pytest

from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.evaluation.baseline.photometry import RADII
from hpcphotoz.evaluation.perturbation.colours import colour_change, colour_names
from tests.helpers.datasets import HEADER, make_stamps


def copies(n: int) -> Stamps:
    """One bright galaxy and one that is fainter than the sky noise of its apertures, n times each."""
    stamps = make_stamps(2)
    rows = np.repeat([0, 1], n)
    found = replace(
        stamps, **{name: getattr(stamps, name)[rows] for name in ("images", "ebv", "z_spec", "object_id")}
    )
    images = found.images.copy()
    images[n:] *= 0.01
    return replace(found, images=images, sky_sigma=stamps.sky_sigma[rows])


def test_the_error_is_the_scatter_that_sky_noise_gives() -> None:
    n = 1500
    stamps = copies(n)
    noise = np.random.default_rng(3).normal(size=stamps.images.shape) * stamps.sky_sigma[:, :, None, None]
    found = colour_change(stamps, (stamps.images + noise).astype(np.float32), HEADER)
    for rows in (slice(0, n), slice(n, None)):
        # First order: of the faint galaxy the asinh bends within one error, where it overestimates by 11 %.
        np.testing.assert_allclose(found.change[rows].std(axis=0), found.error[rows][0], rtol=0.15)
    assert found.error[0].max() < 0.3 < found.error[n].max()


def test_a_brighter_band_changes_its_two_colours_and_no_other() -> None:
    stamps = make_stamps(4)
    attacked = stamps.images.copy()
    attacked[:, 2] *= 1.1
    change = colour_change(stamps, attacked, HEADER).change
    assert colour_names(HEADER.bands) == ["u-g", "g-r", "r-i", "i-z", "r"] and change.shape == (4, 5, 5)
    step = 2.5 * np.log10(1.1)
    assert change[:, :3] == pytest.approx(np.broadcast_to([0, step, -step, 0, -step], (4, 3, 5)), rel=0.05)
    assert colour_names(("g", "z", "y")) == ["g-z", "z-y", "z"] and len(RADII) == 5
    assert colour_names(("HSC-G", "HSC-R")) == ["HSC-G - HSC-R", "HSC-R"]


def test_a_change_that_adds_up_to_zero_in_the_aperture_is_not_seen() -> None:
    stamps = make_stamps(4)
    sign = np.where((np.indices((16, 16)).sum(axis=0) % 2) == 0, 1, -1)
    attacked = (stamps.images + 0.5 * stamps.sky_sigma[:, :, None, None] * sign).astype(np.float32)
    found = colour_change(stamps, attacked, HEADER)
    assert np.abs(found.change / found.error).max() < 0.2
    one_sign = (stamps.images + 0.5 * stamps.sky_sigma[:, :, None, None]).astype(np.float32)
    assert np.abs(colour_change(stamps, one_sign, HEADER).change[..., 0] / found.error[..., 0]).max() > 1
