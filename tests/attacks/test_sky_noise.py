"""Distribution and keys of the Gaussian noise."""

import numpy as np
import pytest
import torch

from hpcphotoz.attacks.sky_noise import sky_noise, standard_normal

scipy_stats = pytest.importorskip("scipy.stats", reason="needs scipy: pip install 'hpcphotoz[sources]'")


@pytest.mark.parametrize("shape", [(40, 5, 16, 16), (61, 3, 7, 9)])  # an even and an odd number of pixels
def test_numbers_are_normal_and_independent(shape: tuple[int, ...]) -> None:
    drawn = [standard_normal(torch.Size(shape), torch.arange(shape[0]) + 7, 5, draw) for draw in (0, 1)]
    z = [one.flatten(1).numpy().astype(np.float64) for one in drawn]
    assert scipy_stats.kstest(z[0].ravel(), "norm").pvalue > 1e-3
    half, n = (z[0].shape[1] + 1) // 2, z[0].size
    pairs = (
        (z[0], z[1]),  # of two draws
        (z[0][:-1], z[0][1:]),  # of two objects
        (z[0][:, :-1], z[0][:, 1:]),  # of neighbouring pixels
        (z[0][:, :-half], z[0][:, half:]),  # of the two that one pair of uniform numbers gives
    )
    for a, b in pairs:
        for power in (1, 2):
            found = np.corrcoef((a**power).ravel(), (b**power).ravel())[0, 1]
            assert abs(found) < 4.5 / np.sqrt(n / 2)


def test_noise_is_of_the_object_and_in_its_sky_sigmas() -> None:
    images, ids = torch.zeros(6, 3, 8, 8), torch.tensor([5, -3, 2**40, 9, 1, 5 + 2**33])
    sky = torch.rand(6, 3) + 0.5
    whole = sky_noise(images, sky, ids, 3, 17)
    rows = torch.tensor([4, 1])
    assert torch.equal(sky_noise(images[rows], sky[rows], ids[rows], 3, 17), whole[rows])
    assert len({float(one) for one in whole[:, 0, 0, 0]}) == 6
    for seed, draw in ((4, 17), (3, 18), (3 + 2**63, 17)):
        assert not torch.isclose(sky_noise(images, sky, ids, seed, draw), whole).any(dim=0).all()
    torch.testing.assert_close(sky_noise(images, 2 * sky, ids, 3, 17), 2 * whole)
