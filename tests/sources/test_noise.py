"""Sky noise measured in a stamp."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from hpcphotoz.sources.noise import _CLIPPED_STD, clipped_std, outer_pixels, stamp_sky_sigma


def test_sky_sigma_is_not_moved_by_a_galaxy_and_its_neighbours() -> None:
    rng = np.random.default_rng(0)
    images = (
        rng.normal(size=(40, 2, 64, 64)).astype(np.float32) * np.array([0.02, 5.0], np.float32)[:, None, None]
    )
    y, x = np.mgrid[:64, :64]
    for row, column, width in ((32, 32, 6), (3, 50, 3), (60, 10, 2)):
        profile = np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * width**2))
        images += (profile * np.array([1.0, 250.0])[:, None, None]).astype(np.float32)
    sigma = stamp_sky_sigma(images)
    # 3 % of the outer pixels belong to neighbours below the clipping limit; 1.7 % is the noise of one stamp.
    np.testing.assert_allclose(sigma.mean(axis=0), [0.02, 5.0], rtol=0.06)
    assert (sigma.std(axis=0) / sigma.mean(axis=0) < 0.03).all()
    assert len(outer_pixels(152)) <= 2048 and len(outer_pixels(4)) == 12


def test_the_correction_is_that_of_a_normal_cut_at_3_sigma() -> None:
    normal = NormalDist()
    variance = 1 - 2 * 3 * normal.pdf(3) / (normal.cdf(3) - normal.cdf(-3))
    assert pytest.approx(math.sqrt(variance), abs=1e-5) == _CLIPPED_STD
    # The quantiles of a normal: a sample without noise.
    pixels = np.array([normal.inv_cdf((k + 0.5) / 100_001) for k in range(100_001)], np.float32)
    np.testing.assert_allclose(clipped_std(np.stack([pixels, 5 * pixels + 1])), [1, 5], rtol=1e-4)
