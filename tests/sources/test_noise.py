"""Sky noise measured in a stamp."""

import numpy as np

from hpcphotoz.sources.noise import outer_pixels, stamp_sky_sigma


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
