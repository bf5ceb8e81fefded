"""The PSF of an SDSS field agrees with the definition of its polynomial, the file's width and real stars."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("astropy")
pytest.importorskip("galsim")

from astropy.io import fits

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.constants import BANDS, PIXEL_SCALE
from hpcphotoz.sources.noise import frame_sky_sigma
from hpcphotoz.sources.simulation.rendering import centre_of_light
from hpcphotoz.sources.simulation.survey_tables import R_BAND
from hpcphotoz.sources.surveys.sdss.psf import BandPSF, read_psf
from tests.helpers.sources.psfield_files import (
    GAIN,
    SIDE,
    components,
    effective_width,
    gaussian,
    write_psfield,
)
from tests.helpers.sources.sdss_files import STRIPE82, read_frame, real_frames

REAL = [
    STRIPE82 / "run-004192" / "psField-004192-4-0300.fit",
    STRIPE82 / "run-006377" / "psField-006377-4-0399.fit",
]
Array = npt.NDArray[Any]


def test_polynomial_is_of_row_then_column_in_thousands(tmp_path: Path) -> None:
    psf = read_psf(write_psfield(tmp_path / "psField.fit"))
    np.testing.assert_allclose(psf.gain, GAIN)
    for band, sigma in zip(psf.bands, (1.6, 1.5, 1.4, 1.3, 1.4), strict=True):
        images, _ = components(sigma)
        expected = images[0] + 0.3 * 1.2**2 * images[1] + 0.2 * 1.2 * 0.4 * images[2]
        np.testing.assert_allclose(band.at(400.0, 1200.0), expected / expected.sum(), atol=1e-6)
        assert band.at(1700.0, 90.0).sum() == pytest.approx(1.0)
        # The third component shifts the light along x.
        assert centre_of_light(band.at(400.0, 1200.0))[0] - SIDE // 2 > 0.05
        assert centre_of_light(band.at(400.0, 1200.0))[1] == pytest.approx(SIDE // 2, abs=1e-3)


def test_effective_width_of_a_gaussian_is_its_half_maximum() -> None:
    assert effective_width(gaussian(2.0)) == pytest.approx(2.3548 * 2.0, rel=1e-4)
    assert effective_width(7 * gaussian(2.0, 0.3, -0.4)) == pytest.approx(2.3548 * 2.0, rel=1e-3)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nowhere.fit: missing: the field's psField"):
        read_psf(tmp_path / "nowhere.fit")
    good = write_psfield(tmp_path / "good.fit")
    bad = {
        "truncated": good.read_bytes()[:30000],
        "no FITS": b"not FITS at all",
        "powers": write_psfield(tmp_path / "a.fit", ncol_b=5).read_bytes(),  # reaches the NaN
        "too many powers": write_psfield(tmp_path / "b.fit", nrow_b=6).read_bytes(),
        "side": write_psfield(tmp_path / "c.fit", RNROW=50).read_bytes(),
        "no light": write_psfield(tmp_path / "d.fit", ncol_b=0).read_bytes(),
    }
    image = tmp_path / "image.fit"
    fits.PrimaryHDU(np.zeros((5, 5))).writeto(image)
    bad["an image"] = image.read_bytes()
    with fits.open(good) as hdus:
        hdus[6].data["gain"][0, 3] = 0
        hdus.writeto(tmp_path / "gain.fit")
    bad["gain"] = (tmp_path / "gain.fit").read_bytes()
    for name, content in bad.items():
        path = tmp_path / "bad.fit"
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"bad\.fit") as caught:
            read_psf(path)
        assert "\n" not in str(caught.value), name


@real_frames
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_widths_agree_with_psf_width(path: Path) -> None:
    psf = read_psf(path)
    widths = np.array([effective_width(band.at(1023.5, 744.0)) for band in psf.bands]) * PIXEL_SCALE
    # Seen: 0.6 to 4.5 % wider, as `psf_width` is that of a composite radial profile of the field's stars.
    np.testing.assert_allclose(widths, psf.width, rtol=0.06)
    for band in psf.bands:
        image = band.at(1023.5, 744.0)
        assert image.sum() == pytest.approx(1.0) and image.shape == (SIDE, SIDE)
        assert image.argmax() == image.size // 2
        assert np.hypot(*np.subtract(centre_of_light(image), SIDE // 2)) < 0.15


@real_frames
def test_real_widths_and_gains_are_those_of_the_calibration(tmp_path: Path) -> None:
    for path in REAL:
        psf = read_psf(path)
        name = path.name.replace("psField", "tsField").replace("-4-", "-4-40-")
        with fits.open(path.parent / name) as hdus:
            row = hdus[1].data[0]
            np.testing.assert_allclose(psf.width, row["psf_width"])
            np.testing.assert_allclose(psf.gain, row["gain"])


@real_frames
def test_real_stars_look_like_it_and_less_like_its_transpose() -> None:
    residuals, ratios = [], []
    for path in REAL:
        for band in (1, R_BAND):
            model = read_psf(path).bands[band]
            swapped = BandPSF(model.images, model.coefficients.transpose(0, 2, 1))
            name = path.name.replace("psField", "fpC").replace("-4-", f"-{BANDS[band]}4-")
            for star, x, y in stars(path.parent / f"{name}.gz"):
                fits_of = [fit(star, psf.at(x, y)) for psf in (model, swapped)]
                residuals.append([one[0] for one in fits_of])
                ratios.append(fits_of[0][1])
    assert len(ratios) > 30
    right, wrong = np.median(residuals, axis=0)
    # 3.3 % and 4.6 % of the light of 53 stars; a constant PSF leaves 4.8 %.
    assert right < 0.04 and right < 0.85 * wrong
    assert np.median(ratios) == pytest.approx(1.0, abs=0.02)


def stars(path: Path) -> list[tuple[Array, float, float]]:
    """Bright, isolated, unsaturated stars of a frame: (41, 41) pixels each, with x and y."""
    frame = read_frame(path)
    image, found = frame.image, []
    offset_y, offset_x = np.mgrid[-20:21, -20:21]
    ring = np.hypot(offset_y, offset_x) > 9
    for y, x in np.argwhere(image > 400 * frame_sky_sigma(frame.image, 1024.0, 744.0)):
        if not (30 < x < image.shape[1] - 30 and 30 < y < image.shape[0] - 30) or image[y, x] > 150:
            continue
        star = image[y - 20 : y + 21, x - 20 : x + 21].astype(np.float64)
        if star.max() == star[20, 20] and star[ring].max() < 0.03 * star.max():
            found.append((star - np.median(star[ring]), float(x), float(y)))
    return found


def fit(star: Array, model: Array) -> tuple[float, float]:
    """Relative residual of the best multiple of the model within 8 pixels; the star's width over the
    model's."""
    edge = (SIDE - len(star)) // 2
    (sx, sy), (mx, my) = centre_of_light(star), centre_of_light(model)
    kx, ky = 2 * np.pi * np.fft.fftfreq(SIDE)[None, :], 2 * np.pi * np.fft.fftfreq(SIDE)[:, None]
    phase = np.exp(-1j * (kx * (sx + edge - mx) + ky * (sy + edge - my)))
    model = np.fft.ifft2(np.fft.fft2(model) * phase).real[edge:-edge, edge:-edge]
    y, x = np.mgrid[: len(star), : len(star)] - len(star) // 2
    near = np.hypot(y, x) < 8
    scale = (star * model)[near].sum() / (model**2)[near].sum()
    residual = np.sqrt(((star - scale * model)[near] ** 2).sum() / (star[near] ** 2).sum())
    widths = [effective_width(np.where(near, image, 0.0)) for image in (star, model)]
    return float(residual), widths[0] / widths[1]
