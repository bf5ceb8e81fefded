"""Stored pixels: within the stated error of what was written, or refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcphotoz.data import codec
from tests.datasets import SKY, make_stamps


def test_float32_is_kept_to_the_bit() -> None:
    stamps = make_stamps(4)
    stored, unit = codec.encode(stamps.images, stamps.sky_sigma, "float32")
    assert unit is None and codec.decode(stored, None) is stamps.images


def test_float16_has_a_relative_error_of_two_to_the_minus_eleven() -> None:
    stamps = make_stamps(20)
    stored, unit = codec.encode(stamps.images, stamps.sky_sigma, "float16")
    error = np.abs(codec.decode(stored, unit) - stamps.images)
    assert unit is None and stored.dtype == np.float16
    assert np.all(error <= np.abs(stamps.images) * 2.0**-11 + 2.0**-25)  # below 6e-5 nMgy the step is fixed


def test_float16_refuses_what_it_cannot_hold() -> None:
    images = np.zeros((3, 5, 4, 4), np.float32)
    images[2, 1, 0, 0] = 1e5
    with pytest.raises(ValueError, match="row 2 has a pixel beyond float16"):
        codec.encode(images, np.ones((3, 5), np.float32), "float16")


@given(peak=st.floats(0.01, 1e7), seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_int16_keeps_to_the_stated_error_however_bright(peak: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sky = np.broadcast_to(SKY, (3, 5)).astype(np.float32)
    images = (sky[:, :, None, None] * rng.normal(size=(3, 5, 8, 8))).astype(np.float32)
    images[1, :, 4, 4] = peak
    images[2, :, 4, 4] = -peak
    stored, unit = codec.encode(images, sky, "int16")
    assert stored.dtype == np.int16 and unit is not None
    error = np.abs(codec.decode(stored, unit).astype(np.float64) - images)
    largest = np.abs(images).max(axis=(2, 3), keepdims=True)
    # Half a unit, and the rounding of float32 in the two products.
    assert np.all(error <= np.maximum(sky[:, :, None, None] / 64, largest * 2.0**-15) + largest * 2.0**-23)
    exponent = np.log2(unit / (sky * codec.FRACTION))
    assert np.array_equal(exponent, np.rint(exponent)) and np.all(exponent >= 0)
    assert np.all(exponent[largest[:, :, 0, 0] <= 1023 * sky] == 0), "the sky sigma alone where it is enough"


def test_int16_adds_less_than_a_thousandth_to_the_noise() -> None:
    rng = np.random.default_rng(0)
    sky = np.broadcast_to(SKY, (50, 5)).astype(np.float32)
    images = (sky[:, :, None, None] * rng.normal(size=(50, 5, 32, 32))).astype(np.float32)
    found = codec.decode(*codec.encode(images, sky, "int16"))
    assert (found - images).std(axis=(0, 2, 3)) == pytest.approx(SKY / 32 / np.sqrt(12), rel=0.02)
    assert found.var() / images.var() == pytest.approx(1, abs=1e-3)
