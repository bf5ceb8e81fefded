"""Power of perturbations whose power is known."""

import numpy as np
import pytest

from hpcphotoz.evaluation.perturbation.power import PowerMaps


def test_independent_noise_has_the_same_power_everywhere() -> None:
    delta = (0.3 * np.random.default_rng(0).normal(size=(400, 2, 16, 16))).astype(np.float32)
    maps = PowerMaps(16, 0.4)
    for of in (maps.by_band, maps.by_radius, maps.by_frequency):
        # The ring with the fewest values has 4 pixels x 2 bands x 400: 2.5 % of a chi-square's mean.
        np.testing.assert_allclose(of(delta).mean(axis=0), 0.09, rtol=0.12)


@pytest.mark.parametrize("side", [16, 15])
def test_a_wave_has_its_power_at_its_frequency(side: int) -> None:
    maps, scale, cycles = PowerMaps(side, 0.5), 0.5, 4
    x = np.arange(side)
    wave = np.sqrt(2) * np.sin(2 * np.pi * cycles * x / side)
    delta = np.broadcast_to(wave, (1, 3, side, side)).astype(np.float32)
    power = maps.by_frequency(delta)[0]
    frequency = cycles / (side * scale)
    ring = np.searchsorted(maps.frequency_edges, frequency + 1e-9) - 1
    assert power[ring] > 0 and np.delete(power, ring) == pytest.approx(0, abs=1e-9)
    assert maps.by_band(delta)[0] == pytest.approx([1, 1, 1], rel=1e-6)


def test_all_modes_together_have_the_power_of_the_pixels() -> None:
    delta = np.random.default_rng(1).normal(size=(3, 2, 12, 12)).astype(np.float32)
    modes = np.square(np.abs(np.fft.fft2(delta, norm="ortho"))).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(PowerMaps(12, 1.0).by_band(delta).mean(axis=1), modes, rtol=1e-5)


def test_a_changed_pixel_is_in_the_ring_of_its_distance_and_in_its_band() -> None:
    maps = PowerMaps(32, 0.4)
    delta = np.zeros((1, 2, 32, 32), np.float32)
    delta[0, 1, 16, 16 + 10] = 2.0  # 10.5 pixels to the right of the centre, 0.5 above
    power = maps.by_radius(delta)[0]
    ring = np.searchsorted(maps.radius_edges, 0.4 * np.hypot(10.5, 0.5)) - 1
    at = np.hypot(*(np.mgrid[:32, :32] - 15.5)) * 0.4
    pixels = np.sum((at >= maps.radius_edges[ring]) & (at < maps.radius_edges[ring + 1]))
    assert power[ring] == pytest.approx(4.0 / pixels / 2) and np.delete(power, ring) == pytest.approx(0)
    assert maps.by_band(delta)[0] == pytest.approx([0, 4.0 / 32**2])
    assert np.all(np.diff(maps.radius_edges) > 0) and maps.radius_edges[-1] == pytest.approx(16 * 0.4)
