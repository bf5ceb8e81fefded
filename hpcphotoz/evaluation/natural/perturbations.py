"""Natural perturbations: what another exposure or another reduction of the same galaxy changes in its stamp.

Random numbers are keyed by seed and object: a galaxy is perturbed in the same way in any batch, on any rank.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hpcphotoz.attacks.sky_noise import sky_noise, standard_normal
from hpcphotoz.data.order import derive_key
from hpcphotoz.evaluation.magnitudes import ZERO_POINT

FWHM = 2 * math.sqrt(2 * math.log(2))  # of a Gaussian of unit sigma
TYPICAL_FWHM = 1.3  # arcsec, for datasets without the column psf_fwhm: the median seeing of SDSS in r
MOFFAT = 2.5  # exponent of the wing's profile, I ~ (1 + (r / alpha)^2)^-MOFFAT (Moffat 1969)
_NOISE, _BACKGROUND, _ZERO_POINT, _WING = 11, 12, 13, 14  # purposes of random numbers
_PAD = 16  # pixels that the image is mirrored by before a convolution


@dataclass(frozen=True)
class SkyStamps:
    """Stamps with what natural perturbations depend on."""

    images: Tensor  # (N, B, H, W) float32, nMgy
    sky_sigma: Tensor  # (N, B) float32, nMgy
    object_id: Tensor  # (N,) int64
    psf_fwhm: Tensor  # (N, B) float32, arcsec
    pixel_scale: float  # arcsec
    seed: int = 0

    def normal(self, purpose: int) -> Tensor:
        """A standard normal number for each object and band, (N, B)."""
        return standard_normal(self.sky_sigma.shape, self.object_id, derive_key(self.seed, purpose), 0)

    def in_sky_sigmas(self, images: Tensor) -> Tensor:
        """The change of other images of these objects in sky sigmas of each band, (N, B, H, W)."""
        return (images - self.images) / self.sky_sigma[:, :, None, None]


def redraw_noise(stamps: SkyStamps) -> Tensor:
    """Add Gaussian noise of sqrt(2) sky sigmas: by so much two exposures of one galaxy differ.

    The noise that is in the stamp stays: it becomes noisier, by sqrt(3), than a second exposure would be.
    """
    key = derive_key(stamps.seed, _NOISE)
    noise = sky_noise(stamps.images, stamps.sky_sigma, stamps.object_id, key, 0)
    return stamps.images + math.sqrt(2) * noise


def broaden_psf(stamps: SkyStamps, fraction: float) -> Tensor:
    """Convolve with the Gaussian that makes a Gaussian PSF wider by a fraction of its FWHM.

    The transform of the kernel, exp(-2 pi^2 sigma^2 k^2), is exact where pixels sample the PSF. The noise is
    convolved too, and becomes smaller and correlated.
    """
    sigma = stamps.psf_fwhm / FWHM / stamps.pixel_scale * math.sqrt((1 + fraction) ** 2 - 1)
    pad = min(_PAD, stamps.images.shape[2] - 1, stamps.images.shape[3] - 1)
    padded = functional.pad(stamps.images, (pad, pad, pad, pad), mode="reflect")
    height, width = padded.shape[2:]
    device = stamps.images.device
    k2 = (
        torch.fft.fftfreq(height, device=device)[:, None] ** 2 + torch.fft.rfftfreq(width, device=device) ** 2
    )
    kernel = torch.exp(-2 * math.pi**2 * sigma[:, :, None, None] ** 2 * k2)
    smooth: Tensor = torch.fft.irfft2(torch.fft.rfft2(padded) * kernel, s=(height, width))
    return smooth[:, :, pad : height - pad, pad : width - pad].contiguous()


def offset_background(stamps: SkyStamps, sigmas: float) -> Tensor:
    """Add or subtract a constant of so many sky sigmas, of a random sign in each band."""
    signs = torch.where(stamps.normal(_BACKGROUND) < 0, -1.0, 1.0)
    return stamps.images + (sigmas * signs * stamps.sky_sigma)[:, :, None, None]


def shift_zero_points(stamps: SkyStamps, scatter: float) -> Tensor:
    """Multiply each band by 10^(-0.4 dm), with dm from a Gaussian of so many magnitudes."""
    factor = torch.pow(10.0, -0.4 * scatter * stamps.normal(_ZERO_POINT))
    return stamps.images * factor[:, :, None, None]


def add_wing(stamps: SkyStamps, magnitude: float, beyond: float) -> Tensor:
    """Add the wing of a star that lies outside the stamp, in a random direction.

    The star has a Moffat profile of the PSF's FWHM and the same AB magnitude in all bands.

    Args:
        stamps: N objects.
        magnitude: of the star, AB.
        beyond: arcsec between the star and the circle around the stamp's centre that touches its edges.
    """
    n, _, height, width = stamps.images.shape
    device = stamps.images.device
    angle = 2 * math.pi * torch.special.ndtr(stamps.normal(_WING)[:, 0])
    distance = 0.5 * max(height, width) * stamps.pixel_scale + beyond
    y = (torch.arange(height, device=device) - 0.5 * (height - 1)) * stamps.pixel_scale
    x = (torch.arange(width, device=device) - 0.5 * (width - 1)) * stamps.pixel_scale
    dy = y[None, :, None] - (distance * torch.sin(angle)).view(n, 1, 1)
    dx = x[None, None, :] - (distance * torch.cos(angle)).view(n, 1, 1)
    alpha = (stamps.psf_fwhm / (2 * math.sqrt(2 ** (1 / MOFFAT) - 1)))[:, :, None, None]
    flux = 10 ** (0.4 * (ZERO_POINT - magnitude)) * stamps.pixel_scale**2  # nMgy arcsec^2 a pixel
    profile = (MOFFAT - 1) / (math.pi * alpha**2) * (1 + (dx**2 + dy**2)[:, None] / alpha**2) ** -MOFFAT
    return stamps.images + flux * profile


class NaturalPerturbation(NamedTuple):
    """A perturbation and its name in the report and in `metrics.json`."""

    name: str
    label: str
    perturb: Callable[[SkyStamps], Tensor]


NATURAL = (
    NaturalPerturbation("sky_noise", "sky noise of another exposure", redraw_noise),
    NaturalPerturbation("psf_fwhm_5_percent", "PSF 5 % broader", partial(broaden_psf, fraction=0.05)),
    NaturalPerturbation(
        "background_0.1_sigma", "background ± 0.1 sky sigma", partial(offset_background, sigmas=0.1)
    ),
    NaturalPerturbation(
        "zero_point_0.01_mag", "zero points ± 0.01 mag", partial(shift_zero_points, scatter=0.01)
    ),
    NaturalPerturbation(
        "zero_point_0.02_mag", "zero points ± 0.02 mag", partial(shift_zero_points, scatter=0.02)
    ),
    NaturalPerturbation(
        "wing_16_mag",
        "wing of a star of 16 mag, 5 arcsec outside",
        partial(add_wing, magnitude=16.0, beyond=5.0),
    ),
)
