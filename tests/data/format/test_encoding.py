"""Stored pixels: within the stated error of what was written, or refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcphotoz.data.format import encoding
from hpcphotoz.data.format.encoding import Array
from hpcphotoz.kernels import reference
from hpcphotoz.sources.simulation.exposure import CAMERA
from tests.helpers.datasets import SKY, make_stamps


def test_float32_is_kept_to_the_bit() -> None:
    stamps = make_stamps(4)
    stored, unit = encoding.encode(stamps.images, stamps.sky_sigma, "float32")
    assert unit is None and encoding.decode(stored, None) is stamps.images


def test_float16_has_a_relative_error_of_two_to_the_minus_eleven() -> None:
    stamps = make_stamps(20)
    stored, unit = encoding.encode(stamps.images, stamps.sky_sigma, "float16")
    error = np.abs(encoding.decode(stored, unit) - stamps.images)
    assert unit is None and stored.dtype == np.float16
    assert np.all(error <= np.abs(stamps.images) * 2.0**-11 + 2.0**-25)  # below 6e-5 nMgy the step is fixed


def test_float16_refuses_what_it_cannot_hold() -> None:
    images = np.zeros((3, 5, 4, 4), np.float32)
    images[2, 1, 0, 0] = 1e5
    with pytest.raises(ValueError, match="row 2 has a pixel beyond float16"):
        encoding.encode(images, np.ones((3, 5), np.float32), "float16")


@given(peak=st.floats(0.01, 1e7), seed=st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_int16_keeps_to_the_stated_error_however_bright(peak: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sky = np.broadcast_to(SKY, (3, 5)).astype(np.float32)
    images = (sky[:, :, None, None] * rng.normal(size=(3, 5, 8, 8))).astype(np.float32)
    images[1, :, 4, 4] = peak
    images[2, :, 4, 4] = -peak
    stored, unit = encoding.encode(images, sky, "int16")
    assert stored.dtype == np.int16 and unit is not None
    error = np.abs(encoding.decode(stored, unit).astype(np.float64) - images)
    size = np.abs(images).astype(np.float64)
    step = np.abs(unit)[:, :, None, None].astype(np.float64)
    # Half a step, and the rounding of float32 in the products.
    curved = step * np.sqrt(np.maximum(size / step - 16320, 64)) / 8
    bound = np.where(unit[:, :, None, None] < 0, curved + step / 500, step) / 2  # the steps' own growth
    assert np.all(error <= bound + size * STORED_ERROR)
    exponent = np.log2(np.abs(unit) / (sky * encoding.UNIT_PER_SKY_SIGMA))
    assert np.array_equal(exponent, np.rint(exponent)) and np.all(exponent >= 0)
    peaks = size.max(axis=(2, 3)) / sky
    assert np.all(exponent[peaks <= 33_700] == 0), "the sky sigma alone where it is enough"
    assert np.all((unit > 0)[peaks <= 1023]) and np.all((unit < 0)[peaks >= 1025])


def in_sky_sigmas(peak: float, seed: int = 0) -> Array:
    """Two objects of one band with noise of one sky sigma, 24 pixels a side; one has a star of this peak."""
    y, x = np.mgrid[:24, :24] - 11.5
    noise = np.random.default_rng(seed).normal(size=(2, 1, 24, 24))
    star = peak * np.exp(-((x - 6) ** 2 + (y - 6) ** 2) / 4)
    return np.stack([noise[0], noise[1] + star])


STORED_ERROR = 2.0**-22  # relative to the flux: a quotient, a product and a number beyond 2^24 in float32


@pytest.mark.parametrize("magnitude", [16, 15, 14, 13])
@pytest.mark.parametrize("sign", [1, -1])
def test_int16_keeps_a_64th_of_a_sky_sigma_beside_a_bright_neighbour(magnitude: int, sign: int) -> None:
    """A star of r = 14 has some 8,000 sky sigmas in its brightest SDSS pixel: of r = 13, 20,000."""
    in_sigmas = sign * in_sky_sigmas(8200 * 10 ** (0.4 * (14 - magnitude)))
    sky = np.full((2, 1), 0.027, np.float32)
    images = (in_sigmas * 0.027).astype(np.float32)
    found = encoding.decode(*encoding.encode(images, sky, "int16"))
    error = np.abs(found.astype(np.float64) - images) / sky[0, 0]
    flux = np.abs(images) / sky[0, 0]
    faint = flux <= 512
    assert faint[1].sum() > 500 and (~faint[1]).sum() > (3 if magnitude > 15 else 8)
    assert error[faint].max() <= 1 / 64 + 512 * STORED_ERROR
    bright = flux[~faint]
    bound = np.sqrt(np.maximum(bright / 2 - 255, 1)) / 64
    assert np.all(error[~faint] <= bound + bright * STORED_ERROR)


def test_the_error_of_int16_in_bright_pixels_is_small_beside_photon_noise() -> None:
    """The band with the widest sky sigma in electrons, i, gives a sixteenth."""
    camera = CAMERA
    flux = np.geomspace(600, 33_000, 2000).reshape(1, 1, 40, 50)
    for sigma, electrons in zip(camera.sky_sigma, camera.electrons, strict=True):
        images, sky = (flux * sigma).astype(np.float32), np.full((1, 1), sigma, np.float32)
        error = np.abs(encoding.decode(*encoding.encode(images, sky, "int16")).astype(np.float64) - images)
        photon_noise = np.sqrt(images * electrons) / electrons
        assert np.all(error < photon_noise / 15)


def test_int16_of_objects_without_a_bright_pixel_has_the_unit_of_version_1() -> None:
    images, sky = (in_sky_sigmas(1000) * 0.027).astype(np.float32), np.full((2, 1), 0.027, np.float32)
    stored, unit = encoding.encode(images, sky, "int16")
    assert unit is not None
    np.testing.assert_array_equal(unit, sky * np.float32(encoding.UNIT_PER_SKY_SIGMA))
    np.testing.assert_array_equal(stored, np.rint(images / unit[:, :, None, None]))


def test_an_old_unit_that_was_doubled_is_still_read() -> None:
    stored = np.array([[[[20_000, -32_768]]]], np.int16)
    assert encoding.decode(stored, np.array([[0.25]], np.float32)).tolist() == [[[[5000, -8192]]]]


def test_numpy_and_the_reference_decode_to_the_same_values() -> None:
    stored = np.arange(-32768, 32768).astype(np.int16).reshape(1, 1, 256, 256).repeat(2, axis=1)
    unit = np.array([[0.0123, -0.0123]], np.float32)
    found = reference.load(torch.from_numpy(stored), torch.from_numpy(unit), None).numpy()
    np.testing.assert_array_equal(encoding.decode(stored, unit), found)
    assert (encoding.LINEAR, encoding.CURVE) == (reference.LINEAR, reference.CURVE)
    assert np.all(np.diff(found[0, 1].ravel()) > 0), "larger numbers are larger fluxes"


def test_int16_adds_less_than_a_thousandth_to_the_noise() -> None:
    rng = np.random.default_rng(0)
    sky = np.broadcast_to(SKY, (50, 5)).astype(np.float32)
    images = (sky[:, :, None, None] * rng.normal(size=(50, 5, 32, 32))).astype(np.float32)
    found = encoding.decode(*encoding.encode(images, sky, "int16"))
    assert (found - images).std(axis=(0, 2, 3)) == pytest.approx(SKY / 32 / np.sqrt(12), rel=0.02)
    assert found.var() / images.var() == pytest.approx(1, abs=1e-3)
