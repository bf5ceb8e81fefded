"""The baseline that a network must beat: k nearest neighbours in aperture colours and magnitude.

All options (aperture, scaling of features, weight of magnitudes, weight of neighbours, width of the PDF's
kernel) are tuned on a held-out part of the training set, never on the test set.
"""

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.order import Blocks
from hpcphotoz.data.read.shard_files import ShardFiles
from hpcphotoz.data.select.subset import ALL_OBJECTS, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.baseline.photometry import RADII, Floats, Photometry, features, measure_photometry
from hpcphotoz.evaluation.scoring.measure import measure_objects
from hpcphotoz.models.bins import RedshiftBins

_TUNE_TEST, _TUNE_TRAIN = 2000, 20000  # objects at most: tuning costs seconds, whatever the data


@dataclass(frozen=True)
class KnnOptions:
    """Hyperparameters of the nearest-neighbour baseline, chosen by `tune`."""

    radius: int  # index of the colours' aperture
    whiten: bool  # decorrelate the colours (Mahalanobis distance), or only scale each to unit variance
    magnitude: float  # weight of the magnitude and the concentration against the colours
    inverse: bool  # weigh neighbours by 1 / distance, or all alike
    kernel: float  # sigma of the Gaussian put on each neighbour's redshift in the PDF


def knn_colours(
    train_data: Path,
    test_data: Path,
    bins: RedshiftBins,
    k: int = 20,
    *,
    subset: Subset = ALL_OBJECTS,
    limit: int | None = None,
    train_subset: Subset = ALL_OBJECTS,
) -> dict[str, Any]:
    """Metrics of k nearest neighbours on a test set, tuned on a part of the training set.

    Args:
        train_data: dataset that the networks were trained on; objects of unknown redshift are left out.
        test_data: dataset to measure on, in the same bands; objects of unknown redshift are left out.
        bins: bins of the PDFs from which CRPS and CDE loss are computed.
        k: number of neighbours.
        subset, limit: which objects of the test set, as in `evaluate`: the networks' objects.
        train_subset: objects of the training set that may be neighbours.

    Returns:
        The metrics with their bootstrap `errors`, as those of networks, `n_train` and `aperture_arcsec`.

    Raises:
        BadInput: different bands or pixel scales, too few objects of known redshift, a redshift outside the
            bins, or test objects that are in the training set.
    """
    ours, theirs = read_manifest(train_data).header, read_manifest(test_data).header
    if (ours.bands, ours.pixel_scale) != (theirs.bands, theirs.pixel_scale):
        raise BadInput(
            f"{train_data} and {test_data}: different bands or pixel scales: colours cannot be compared"
        )
    _check_no_overlap(train_data, train_subset, test_data, subset, limit)
    train = measure_photometry(train_data, bins, train_subset)
    test = measure_photometry(test_data, bins, subset, limit)
    if len(train.z_spec) < 4 * k:
        raise BadInput(
            f"{train_data}: {len(train.z_spec)} objects of known redshift, {k} neighbours need {4 * k}"
        )
    options = tune(train, bins, k)
    z_phot, pdf = estimate(train, test, options, bins, k)
    found = measure_objects(z_phot, test.z_spec, metrics.pdf_scores(pdf, bins.edges(), test.z_spec))
    facts = {"n_train": len(train.z_spec), "aperture_arcsec": RADII[options.radius]}
    return {**found.as_summary(), **facts}


def tune(photometry: Photometry, bins: RedshiftBins, k: int) -> KnnOptions:
    """The best options on a held-out part of the training set.

    Aperture, scaling and weights minimise sigma_MAD of the mean, then the kernel's width minimises CRPS.
    """
    order = np.random.default_rng(0).permutation(len(photometry.z_spec))
    cut = min(_TUNE_TEST, len(order) // 5)
    test, train = photometry.rows(order[:cut]), photometry.rows(order[cut : cut + _TUNE_TRAIN])
    width = max(bins.width, 1e-6)
    kernels = tuple(width * factor for factor in (0.5, 1, 2, 4, 8, 16))
    scored: list[tuple[float, KnnOptions]] = []
    grid = itertools.product(range(len(RADII)), (False, True), (0.0, 0.2, 0.5, 1.0))
    for radius, whiten, magnitude in grid:
        options = KnnOptions(radius, whiten, magnitude, inverse=False, kernel=kernels[0])
        distance, z = _neighbours(train, test, options, k)
        for inverse in (False, True):
            z_phot = (_weights(distance, inverse) * z).sum(axis=1)
            score = metrics.sigma_mad(metrics.residuals(z_phot, test.z_spec))
            scored.append((score, replace(options, inverse=inverse)))
    best = min(scored, key=lambda one: one[0])[1]
    scores = []
    for kernel in kernels:
        pdf = estimate(train, test, replace(best, kernel=kernel), bins, k)[1]
        scores.append((metrics.crps(pdf, bins.edges(), test.z_spec).mean(), kernel))
    return replace(best, kernel=min(scores)[1])


def estimate(
    train: Photometry, test: Photometry, options: KnnOptions, bins: RedshiftBins, k: int
) -> tuple[Floats, Floats]:
    """Weighted mean of the neighbours' redshifts (N,), and their kernel density as a PDF (N, bins)."""
    distance, z = _neighbours(train, test, options, k)
    weights = _weights(distance, options.inverse)
    pdf = np.empty((len(z), bins.n))
    at = torch.from_numpy(bins.edges())
    for rows in np.array_split(np.arange(len(z)), max(1, len(z) // 1024)):
        cdf = torch.special.ndtr((at - torch.from_numpy(z[rows])[:, :, None]) / options.kernel)
        mass = (torch.from_numpy(weights[rows])[:, :, None] * cdf.diff(dim=2)).sum(dim=1)
        pdf[rows] = (mass / mass.sum(dim=1, keepdim=True)).numpy()
    return (weights * z).sum(axis=1), pdf


def _neighbours(train: Photometry, test: Photometry, options: KnnOptions, k: int) -> tuple[Floats, Floats]:
    """Distances to the k nearest objects of `train`, and their redshifts, both (N, k)."""
    train_features, test_features = _feature_space(train, test, options)
    z, distance, found = torch.from_numpy(train.z_spec), [], []
    rows = max(1, (1 << 24) // len(train_features))  # 64 MiB of distances at a time
    for part in torch.split(test_features, rows):
        near = torch.cdist(part, train_features).topk(k, largest=False)
        distance.append(near.values)
        found.append(z[near.indices])
    return torch.cat(distance).double().numpy(), torch.cat(found).numpy()


def _feature_space(
    train: Photometry, test: Photometry, options: KnnOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of both sets, centred and scaled by the statistics of `train`, (N, features) float32."""
    (colours, rest), (theirs, others) = (
        features(data, options.radius, train.noise) for data in (train, test)
    )
    centre = np.median(colours, axis=0)
    scale = np.diag(1 / np.maximum(colours.std(axis=0), 1e-9))
    if options.whiten:
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(colours.T)))
        scale = vectors / np.sqrt(np.maximum(values, 1e-12))
    middle, spread = np.median(rest, axis=0), np.maximum(rest.std(axis=0), 1e-9)
    both = (
        np.hstack([(c - centre) @ scale, options.magnitude * (m - middle) / spread])
        for c, m in ((colours, rest), (theirs, others))
    )
    first, second = (torch.from_numpy(array.astype(np.float32)) for array in both)
    return first, second


def _weights(distance: Floats, inverse: bool) -> Floats:
    raw = 1 / np.maximum(distance, 1e-6) if inverse else np.ones_like(distance)
    return np.asarray(raw / raw.sum(axis=1, keepdims=True))


def _check_no_overlap(
    train_data: Path, train_subset: Subset, test_data: Path, subset: Subset, limit: int | None
) -> None:
    # An object is identified by id, z_spec and E(B-V). Ids alone are too weak: two simulated sets may both
    # count from 0. Fluxes are too strict: an attacked copy has other fluxes, and its objects would be their
    # own neighbours.
    trained_on = set(object_keys(train_data, train_subset, None))
    if common := sum(key in trained_on for key in object_keys(test_data, subset, limit)):
        raise BadInput(
            f"{test_data}: {common} of its objects are in {train_data} too, where the neighbours come from: "
            "test on objects that were not trained on, such as --part test of the run's split"
        )


def object_keys(data: Path, subset: Subset, limit: int | None) -> list[tuple[Any, ...]]:
    """Id, z_spec and E(B-V) of the objects of known redshift among the first `limit` of a subset."""
    names, manifest = ("object_id", "z_spec", "ebv"), read_manifest(data)
    found: list[tuple[Any, ...]] = []
    files = ShardFiles(data, manifest)
    for number, shard in enumerate(manifest.shards):
        columns = files.columns(Blocks.single(number, 0, shard.rows), {*names, *subset.columns})
        keep = subset(columns)
        found += list(zip(*(columns[name][keep].tolist() for name in names), strict=True))
    return [key for key in found[:limit] if math.isfinite(key[1])]
