"""The baseline that a network must beat: k nearest neighbours in aperture colours and magnitude.

Fluxes within a circle are dereddened and turned into asinh magnitudes, which a negative flux does not break
(Lupton, Gunn & Szalay 1999, doi:10.1086/301004). Everything that can be tuned (aperture, scaling of features,
weight of magnitudes, weight of neighbours, width of the PDF's kernel) is tuned on a part of the training set
that is held out for that; the test set is never looked at.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hpcphotoz.data.format.manifest import Header, read_manifest
from hpcphotoz.data.select.subset import ALL_OBJECTS, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.batches import check_redshifts, read_batches
from hpcphotoz.models.bins import RedshiftBins

Floats = npt.NDArray[np.float64]

# A(band) / E(B-V), SDSS (Schlafly & Finkbeiner 2011, table 6, R_V = 3.1).
REDDENING = {"u": 4.239, "g": 3.303, "r": 2.285, "i": 1.698, "z": 1.263}
RADII = (1.0, 1.5, 2.5, 4.0, 7.0)  # arcsec
_TUNE_TEST, _TUNE_TRAIN = 2000, 20000  # objects at most: tuning costs seconds, whatever the data


@dataclass(frozen=True)
class Photometry:
    """Aperture fluxes of a dataset's objects of known redshift."""

    flux: Floats  # (N, radius, band) nMgy, as observed
    noise: Floats  # (radius, band) nMgy: median sky noise in the aperture
    ebv: Floats  # (N,) mag
    z_spec: Floats  # (N,)
    object_id: npt.NDArray[np.int64]  # (N,)
    bands: tuple[str, ...]


@dataclass(frozen=True)
class KnnOptions:
    """Hyperparameters of the nearest-neighbour baseline, chosen by `tune`."""

    radius: int  # index of the colours' aperture
    whiten: bool  # decorrelate the colours (Mahalanobis distance), or only scale each to unit variance
    magnitude: float  # weight of the magnitude and the concentration against the colours
    inverse: bool  # weigh neighbours by 1 / distance, or all alike
    kernel: float  # sigma of the Gaussian put on each neighbour's redshift in the PDF


def knn_colours(
    train: Path,
    test: Path,
    bins: RedshiftBins,
    k: int = 20,
    *,
    subset: Subset = ALL_OBJECTS,
    limit: int | None = None,
    train_subset: Subset = ALL_OBJECTS,
) -> dict[str, float]:
    """Metrics of k nearest neighbours on a test set, tuned on a part of the training set.

    Args:
        train: dataset the networks were trained on; objects of unknown redshift are left out.
        test: dataset they are tested on, in the same bands; likewise.
        bins: bins of the PDFs from which CRPS and CDE loss are computed.
        k: number of neighbours.
        subset, limit: which objects of the test set, as in `evaluate`: the same that the networks are given.
        train_subset: objects of the training set that may be neighbours.

    Returns:
        `metrics.summary`, with `n_train` and `aperture_arcsec`.

    Raises:
        BadInput: different bands or pixel scales, too few objects of known redshift, a redshift outside the
            bins, or test objects that are in the training set.
    """
    ours, theirs = read_manifest(train).header, read_manifest(test).header
    if (ours.bands, ours.pixel_scale) != (theirs.bands, theirs.pixel_scale):
        raise BadInput(f"{train} and {test}: different bands or pixel scales: colours cannot be compared")
    known = measure_photometry(train, bins, train_subset)
    asked = measure_photometry(test, bins, subset, limit)
    if len(known.z_spec) < 4 * k:
        raise BadInput(f"{train}: {len(known.z_spec)} objects of known redshift, {k} neighbours need {4 * k}")
    if len(asked.z_spec) == 0:
        raise BadInput(f"{test}: no object of known redshift: nothing to measure")
    _check_no_overlap(known, asked, train, test)
    options = tune(known, bins, k)
    z_phot, pdf = estimate(known, asked, options, bins, k)
    e = bins.edges()
    figures = metrics.summary(
        z_phot,
        asked.z_spec,
        metrics.crps(pdf, e, asked.z_spec),
        metrics.cde_loss(pdf, e, asked.z_spec),
    )
    return {**figures, "n_train": len(known.z_spec), "aperture_arcsec": RADII[options.radius]}


def measure_photometry(
    data: Path, bins: RedshiftBins, subset: Subset = ALL_OBJECTS, limit: int | None = None
) -> Photometry:
    """Measure aperture fluxes of the objects of known redshift among the first `limit` of a subset, streamed.

    Raises:
        BadInput: a redshift outside the bins, no object meant or known, or what reading a dataset raises.
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


def features(data: Photometry, radius: int, noise: Floats) -> tuple[Floats, Floats]:
    """Colours of neighbouring bands (N, B - 1), and what depends on brightness and size (N, 2 or 3).

    The latter: the magnitude in r (the middle band where there is none), how it grows from the smallest to
    the largest aperture, and E(B-V) if some band has no known reddening coefficient.

    Args:
        data: photometry.
        radius: index of the aperture of colours and magnitude.
        noise: (radius, band) softening of the asinh, nMgy; the training set's, for both sets.
    """
    dust = np.array([REDDENING.get(band, 0.0) for band in data.bands])
    flux = data.flux * 10 ** (0.4 * data.ebv[:, None, None] * dust)
    magnitude = -2.5 / np.log(10) * (np.arcsinh(flux / (2 * noise)) + np.log(noise))
    r = data.bands.index("r") if "r" in data.bands else len(data.bands) // 2
    rest = [magnitude[:, radius, r], magnitude[:, 0, r] - magnitude[:, -1, r]]
    if not set(data.bands) <= set(REDDENING):
        rest.append(data.ebv)
    return -np.diff(magnitude[:, radius], axis=1), np.stack(rest, axis=1)


def tune(known: Photometry, bins: RedshiftBins, k: int) -> KnnOptions:
    """The best options on a held-out part of the training set, never on the test set.

    Aperture, scaling and weights by sigma_MAD of the mean, then the width of the PDF's kernel by CRPS.
    """
    order = np.random.default_rng(0).permutation(len(known.z_spec))
    cut = min(_TUNE_TEST, len(order) // 5)
    asked, rest = _select_rows(known, order[:cut]), _select_rows(known, order[cut : cut + _TUNE_TRAIN])
    width = max(bins.width, 1e-6)
    kernels = tuple(width * factor for factor in (0.5, 1, 2, 4, 8, 16))
    best: tuple[float, KnnOptions] | None = None
    grid = itertools.product(range(len(RADII)), (False, True), (0.0, 0.2, 0.5, 1.0))
    for radius, whiten, magnitude in grid:
        distance, z = _neighbours(rest, asked, radius, whiten, magnitude, k)
        for inverse in (False, True):
            z_phot = (_weights(distance, inverse) * z).sum(axis=1)
            score = metrics.sigma_mad(metrics.residuals(z_phot, asked.z_spec))
            if best is None or score < best[0]:
                best = score, KnnOptions(radius, whiten, magnitude, inverse, kernels[0])
    assert best is not None
    scores = []
    for kernel in kernels:
        options = KnnOptions(**{**vars(best[1]), "kernel": kernel})
        pdf = estimate(rest, asked, options, bins, k)[1]
        scores.append((metrics.crps(pdf, bins.edges(), asked.z_spec).mean(), kernel))
    return KnnOptions(**{**vars(best[1]), "kernel": min(scores)[1]})


def estimate(
    known: Photometry, asked: Photometry, options: KnnOptions, bins: RedshiftBins, k: int
) -> tuple[Floats, Floats]:
    """Weighted mean of the neighbours' redshifts (N,), and their kernel density as a PDF (N, bins)."""
    distance, z = _neighbours(known, asked, options.radius, options.whiten, options.magnitude, k)
    weights = _weights(distance, options.inverse)
    pdf = np.empty((len(z), bins.n))
    at = torch.from_numpy(bins.edges())
    for rows in np.array_split(np.arange(len(z)), max(1, len(z) // 1024)):
        cdf = torch.special.ndtr((at - torch.from_numpy(z[rows])[:, :, None]) / options.kernel)
        mass = (torch.from_numpy(weights[rows])[:, :, None] * cdf.diff(dim=2)).sum(dim=1)
        pdf[rows] = (mass / mass.sum(dim=1, keepdim=True)).numpy()
    return (weights * z).sum(axis=1), pdf


def _neighbours(
    known: Photometry, asked: Photometry, radius: int, whiten: bool, magnitude: float, k: int
) -> tuple[Floats, Floats]:
    """Distances to the k nearest known objects and their redshifts, both (N, k)."""
    train, test = _feature_space(known, asked, radius, whiten, magnitude)
    z, distance = torch.from_numpy(known.z_spec), []
    found = []
    rows = max(1, (1 << 24) // len(train))  # 64 MiB of distances at a time
    for part in torch.split(test, rows):
        near = torch.cdist(part, train).topk(k, largest=False)
        distance.append(near.values)
        found.append(z[near.indices])
    return torch.cat(distance).double().numpy(), torch.cat(found).numpy()


def _feature_space(
    known: Photometry, asked: Photometry, radius: int, whiten: bool, magnitude: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of both sets, centred and scaled by the known one's statistics, (N, features) float32."""
    (colours, rest), (theirs, others) = (features(data, radius, known.noise) for data in (known, asked))
    centre = np.median(colours, axis=0)
    scale = np.diag(1 / np.maximum(colours.std(axis=0), 1e-9))
    if whiten:
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(colours.T)))
        scale = vectors / np.sqrt(np.maximum(values, 1e-12))
    middle, spread = np.median(rest, axis=0), np.maximum(rest.std(axis=0), 1e-9)
    both = (
        np.hstack([(c - centre) @ scale, magnitude * (m - middle) / spread])
        for c, m in ((colours, rest), (theirs, others))
    )
    train, test = (torch.from_numpy(array.astype(np.float32)) for array in both)
    return train, test


def _weights(distance: Floats, inverse: bool) -> Floats:
    raw = 1 / np.maximum(distance, 1e-6) if inverse else np.ones_like(distance)
    return np.asarray(raw / raw.sum(axis=1, keepdims=True))


def _select_rows(data: Photometry, rows: npt.NDArray[np.intp]) -> Photometry:
    return Photometry(
        data.flux[rows], data.noise, data.ebv[rows], data.z_spec[rows], data.object_id[rows], data.bands
    )


def _check_no_overlap(known: Photometry, asked: Photometry, train: Path, test: Path) -> None:
    # Ids alone are not enough: two simulated sets may both count from 0. Fluxes are too much: an attacked
    # copy has others, and its objects would find themselves.
    seen, mine = (
        zip(data.object_id.tolist(), data.z_spec.tolist(), data.ebv.tolist(), strict=True)
        for data in (known, asked)
    )
    known_already = set(seen)
    shared = sum(key in known_already for key in mine)
    if shared:
        raise BadInput(
            f"{test}: {shared} of its objects are in {train} too, where the neighbours come from: "
            "test on objects that were not trained on, such as --part test of the run's split"
        )
