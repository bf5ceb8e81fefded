"""How the simulated camera sees a stamp: seeing, sky and centring, and the noise of sky and photons."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpcphotoz.sources.constants import BANDS
from hpcphotoz.sources.simulation.survey_tables import Floats


@dataclass(frozen=True)
class Camera:
    """Point spread function, sky and gain, per band u, g, r, i, z."""

    fwhm: tuple[float, ...] = (1.53, 1.44, 1.36, 1.30, 1.32)  # arcsec, in the median seeing
    seeing_scatter: float = 0.08  # of ln FWHM, common to the bands
    band_scatter: float = 0.02  # of ln FWHM, of each band
    # Two Gaussians, as in the survey's tsField files: the wide one's size and height against the narrow one.
    wide_size: float = 2.15
    wide_height: float = 0.06
    sky_sigma: tuple[float, ...] = (0.048, 0.018, 0.027, 0.041, 0.199)  # nMgy per pixel
    sky_scatter: float = 0.10  # of ln sky sigma, of each band
    # Electrons per nMgy: gain (1.6 3.995 4.76 4.885 4.775) times FLUX20 / 10 of the Stripe 82 run 4192.
    electrons: tuple[float, ...] = (153.4, 1080.1, 943.3, 777.3, 126.0)
    jitter: float = 0.25  # pixels: largest offset of the centre along an axis


CAMERA = Camera()


@dataclass(frozen=True)
class Exposure:
    """Observing conditions of one stamp."""

    fwhm: Floats  # (band,) arcsec
    sky_sigma: Floats  # (band,) nanomaggies per pixel
    offset: tuple[float, float]  # x, y of the galaxy from the stamp's centre, pixels


def draw_exposure(rng: np.random.Generator) -> Exposure:
    """Draws seeing, sky and centring for one stamp."""
    seeing = CAMERA.seeing_scatter * rng.standard_normal()
    per_band = CAMERA.band_scatter * rng.standard_normal(len(BANDS))
    sky = CAMERA.sky_scatter * rng.standard_normal(len(BANDS))
    dx, dy = rng.uniform(-CAMERA.jitter, CAMERA.jitter, 2)
    fwhm = np.array(CAMERA.fwhm) * np.exp(seeing + per_band)
    return Exposure(fwhm, np.array(CAMERA.sky_sigma) * np.exp(sky), (dx, dy))


def add_noise(image: Floats, exposure: Exposure, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Adds sky and photon noise to a noise-free stamp (5, 64, 64) with the sky level subtracted.

    The noise is normal, of variance `noise_variance`: sky and read-out alone have a variance of 50
    electrons^2 a pixel or more.
    """
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(image + np.sqrt(noise_variance(image, exposure)) * noise, np.float32)


def noise_variance(image: Floats, exposure: Exposure) -> Floats:
    """Variance of each pixel of a stamp without noise, nMgy^2: sky_sigma^2 + flux / electrons_per_nMgy."""
    photons = np.maximum(image, 0) / np.array(CAMERA.electrons)[:, None, None]
    return np.asarray(exposure.sky_sigma[:, None, None] ** 2 + photons)
