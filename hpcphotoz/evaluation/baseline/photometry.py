"""Photometry of the baseline: dereddened aperture fluxes, asinh magnitudes and colours.

Asinh magnitudes are defined for negative fluxes too (Lupton, Gunn & Szalay 1999, doi:10.1086/301004).
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.manifest import Header, read_manifest
from hpcphotoz.data.select.subset import ALL_OBJECTS, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.batches import check_redshifts, read_batches
from hpcphotoz.evaluation.magnitudes import magnitude_band
from hpcphotoz.models.bins import RedshiftBins

Floats = npt.NDArray[np.float64]

# A(band) / E(B-V), SDSS (Schlafly & Finkbeiner 2011, table 6, R_V = 3.1).
REDDENING = {"u": 4.239, "g": 3.303, "r": 2.285, "i": 1.698, "z": 1.263}
RADII = (1.0, 1.5, 2.5, 4.0, 7.0)  # arcsec
_SHOWN = 2  # index of the greatest aperture of magnitudes and colours that are shown, 2.5 arcsec


@dataclass(frozen=True)
class Photometry:
    """Aperture fluxes of a dataset's objects of known redshift."""

    flux: Floats  # (N, radius, band) nMgy, as observed
    noise: Floats  # (radius, band) nMgy: median sky noise in the aperture
    ebv: Floats  # (N,) mag
    z_spec: Floats  # (N,)
    object_id: npt.NDArray[np.int64]  # (N,)
    bands: tuple[str, ...]

    def rows(self, rows: npt.NDArray[np.intp]) -> "Photometry":
        """The photometry of some of the objects."""
        columns = ("flux", "ebv", "z_spec", "object_id")
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})


def measure_photometry(
    data: Path, bins: RedshiftBins, subset: Subset = ALL_OBJECTS, limit: int | None = None
) -> Photometry:
    """Measure aperture fluxes of the objects of known redshift among the first `limit` of a subset.

    The images are streamed: memory holds the fluxes alone.

    Raises:
        BadInput: a redshift outside the bins, an empty subset, no known redshift, or an unreadable shard.
    """
    manifest = read_manifest(data)
    check_redshifts(bins, data, manifest, "the redshift bins", subset)
    weights = apertures(manifest.header)
    flux, sky, ebv, z, object_id = [], [], [], [], []
    for stamps in read_batches(data, manifest, 256, "aperture photometry", limit, subset):
        known = np.isfinite(stamps.z_spec)
        flux.append(np.einsum("nbyx,ryx->nrb", stamps.images[known], weights, optimize=True))
        sky.append(stamps.sky_sigma[known])
        ebv.append(stamps.ebv[known])
        z.append(stamps.z_spec[known])
        object_id.append(stamps.object_id[known])
    if not sum(map(len, z)):
        raise BadInput(f"{data}: no object of known redshift: a baseline cannot be made or measured on it")
    area = np.sqrt((weights.astype(np.float64) ** 2).sum(axis=(1, 2)))
    return Photometry(
        flux=np.concatenate(flux).astype(np.float64),
        noise=area[:, None] * np.median(np.concatenate(sky), axis=0),
        ebv=np.concatenate(ebv).astype(np.float64),
        z_spec=np.concatenate(z).astype(np.float64),
        object_id=np.concatenate(object_id),
        bands=manifest.header.bands,
    )


def apertures(header: Header) -> npt.NDArray[np.float32]:
    """Fraction of each pixel inside each circle of `RADII` centred on the stamp, (radius, y, x)."""
    fine = 8
    at = (np.arange(header.stamp * fine) + 0.5) / fine - header.stamp / 2
    r = np.hypot(at[:, None], at[None, :]) * header.pixel_scale
    cells = (r[None] < np.array(RADII)[:, None, None]).reshape(
        len(RADII), header.stamp, fine, header.stamp, fine
    )
    return np.asarray(cells.mean(axis=(2, 4)), np.float32)


def shown_aperture(header: Header) -> int:
    """Index of the aperture that is shown: 2.5 arcsec, or the greatest one that fits into a small stamp."""
    half = header.stamp * header.pixel_scale / 2
    return max([k for k in range(_SHOWN + 1) if RADII[k] <= half], default=0)


def features(data: Photometry, radius: int, noise: Floats) -> tuple[Floats, Floats]:
    """Colours of neighbouring bands (N, B - 1), and features of brightness and size (N, 2 or 3).

    Brightness and size are the magnitude in r (in the middle band if there is no r), the difference of that
    magnitude between the smallest and the largest aperture, and E(B-V) if some band has no known reddening
    coefficient.

    Args:
        data: photometry.
        radius: index of the aperture of colours and magnitude.
        noise: (radius, band) softening of the asinh, nMgy: the training set's, for both sets.
    """
    dust = np.array([REDDENING.get(band, 0.0) for band in data.bands])
    flux = data.flux * 10 ** (0.4 * data.ebv[:, None, None] * dust)
    magnitude = -2.5 / np.log(10) * (np.arcsinh(flux / (2 * noise)) + np.log(noise))
    r = magnitude_band(data.bands)
    rest = [magnitude[:, radius, r], magnitude[:, 0, r] - magnitude[:, -1, r]]
    if not set(data.bands) <= set(REDDENING):
        rest.append(data.ebv)
    return -np.diff(magnitude[:, radius], axis=1), np.stack(rest, axis=1)
