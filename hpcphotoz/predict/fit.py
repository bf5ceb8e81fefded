"""Fits a calibration and the weights of an ensemble to PDFs of objects of known redshift."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.metrics import pit as pit_of
from hpcphotoz.evaluation.metrics import pit_ks
from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration, polynomials, with_temperature
from hpcphotoz.models.bins import RedshiftBins

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

METHODS = ("auto", "temperature", "pit")
MIN_OBJECTS = 50
_FOLDS = 5  # of the cross-validation
MAX_DEGREE = 8  # of the map of the PIT
_LEAST_PROBABILITY = 1e-12  # of a bin in a score: one object whose bin is impossible does not decide alone
_TIE = 1e-9  # of the mean log score: the simplest of the candidates that are so near to the best one wins
_PRIOR_SIGMA = 3.0  # of the polynomials' coefficients: finite also where every PIT is 0 or 1
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(64)


@dataclass(frozen=True)
class Fit:
    """A fitted calibration and what it changes."""

    calibration: Calibration
    score: float  # mean log density at z_spec, calibrated, of objects that the fit of their fold had not seen
    score_before: float  # the same without calibration
    pit_ks: float  # Kolmogorov-Smirnov statistic of the PIT, calibrated, of the objects of the fit
    pit_ks_before: float  # the same without calibration


def fit_calibration(
    pdf: npt.NDArray[np.floating[Any]], bins: RedshiftBins, z_spec: Floats, method: str = "auto"
) -> Fit:
    """Fit a temperature, a map of the PIT, or what of both predicts best.

    "auto" compares neither, either and both (the map after the temperature), "pit" maps of degree 1 to 8, by
    the mean log score in a cross-validation of five folds; what wins is fitted to all objects.

    Args:
        pdf: (N, n) probability per bin, float32 or float64, of objects that no network was trained on.
        bins: the redshift bins.
        z_spec: (N,) redshifts inside the bins.
        method: a name in `METHODS`.

    Raises:
        BadInput: fewer than `MIN_OBJECTS` objects, or an unknown method.
    """
    if method not in METHODS:
        raise BadInput(f"method '{method}': want one of {', '.join(METHODS)}")
    if len(z_spec) < MIN_OBJECTS:
        raise BadInput(
            f"{len(z_spec)} objects of known redshift in the validation part: a calibration needs "
            f"{MIN_OBJECTS} or more: train a new run with a larger --data.validation"
        )
    objects = _Objects.of(np.asarray(pdf, np.float64), bins, z_spec)
    fold = np.arange(len(z_spec)) % _FOLDS
    sums = dict.fromkeys(_candidates(method), 0.0)
    for left_out in range(_FOLDS):
        train, test = objects[fold != left_out], objects[fold == left_out]
        temperature = fit_temperature(train.pdf, train.bin) if method != "pit" else 1.0
        for (scaled, degree), (seen, unseen) in _scaled(sums, train, test, temperature):
            coefficients = fit_pit(seen.pit, degree)
            calibration = Calibration(temperature=temperature if scaled else 1.0, pit=coefficients)
            sums[scaled, degree] += unseen.score(calibration).sum()
    enough = max(sums.values()) - _TIE * len(z_spec)
    scaled, degree = next(one for one in sums if sums[one] >= enough)
    temperature = fit_temperature(objects.pdf, objects.bin) if scaled else 1.0
    pit = fit_pit((objects.with_temperature(temperature) if scaled else objects).pit, degree)
    unit = -np.log(bins.width)  # of a density instead of a probability
    found = Calibration(temperature=temperature, pit=pit)
    before = objects.score(Calibration()).mean()
    distances = [
        float(pit_ks(pit_of(values, bins.edges(), z_spec))) for values in (found(objects.pdf), objects.pdf)
    ]
    return Fit(found, sums[scaled, degree] / len(z_spec) + unit, float(before) + unit, *distances)


def fit_temperature(pdf: Floats, k: Integers) -> float:
    """The temperature, from 1/20 to 20, that maximises the log score of the bins k (N,) in PDFs (N, n).

    The score is concave in 1/T: Newton's method finds it.
    """
    low = np.log(np.maximum(pdf, 1e-38))
    own, bounds, beta = low[np.arange(len(k)), k], [0.05, 20.0], 1.0
    for _ in range(50):
        p = with_temperature(pdf, 1 / beta)
        mean = (p * low).sum(axis=1)
        slope = float((own - mean).mean())
        curvature = float((p * (low - mean[:, None]) ** 2).sum(axis=1).mean())
        bounds[0 if slope > 0 else 1] = beta
        step = beta + slope / curvature if curvature > 0 else np.inf
        new = step if bounds[0] < step < bounds[1] else float(np.sqrt(bounds[0] * bounds[1]))
        if abs(new - beta) < 1e-6 * beta:
            break
        beta = new
    return float(1 / beta)


def fit_pit(pit: Floats, degree: int) -> tuple[float, ...]:
    """Coefficients of the log density of the PIT (N,), of greatest likelihood, by Newton's method.

    The likelihood is concave; a weak Gaussian prior bounds the coefficients.
    """
    if degree == 0:
        return ()
    moments = polynomials(pit, degree).mean(axis=0)
    at_nodes = polynomials((_NODES + 1) / 2, degree)
    prior = 1 / (_PRIOR_SIGMA**2 * len(pit))
    a = np.zeros(degree)

    def value(a: Floats) -> tuple[float, Floats]:
        exponent = at_nodes @ a
        density = _NODE_WEIGHTS * np.exp(exponent - exponent.max())
        log_norm = np.log(density.sum() / 2) + exponent.max()
        return float(moments @ a - log_norm - prior * a @ a / 2), density / density.sum()

    best, r = value(a)
    for _ in range(100):
        mean = r @ at_nodes
        slope = moments - mean - prior * a
        centred = at_nodes - mean
        step = np.linalg.solve(centred.T @ (r[:, None] * centred) + prior * np.eye(degree), slope)
        size = 1.0
        while (found := value(a + size * step))[0] < best and size > 1e-8:
            size /= 2
        a, gain = a + size * step, found[0] - best
        best, r = found
        if gain < 1e-12:
            break
    return tuple(a.tolist())


def stacking_weights(likelihood: Floats) -> tuple[float, ...]:
    """Weights of networks that maximise the log score of their mean (stacking, Yao et al. 2018).

    The score is concave in the weights, which are not negative and add up to 1: the EM algorithm for the
    weights of a mixture finds its maximum (doi:10.1214/17-BA1091).

    Args:
        likelihood: (N, K) probability that each of K networks gives to the bin of z_spec.
    """
    p = np.maximum(np.asarray(likelihood, np.float64), _LEAST_PROBABILITY)
    weights = np.full(p.shape[1], 1 / p.shape[1])
    for _ in range(10_000):
        share = p * weights
        new = (share / share.sum(axis=1, keepdims=True)).mean(axis=0)
        change, weights = np.abs(new - weights).max(), new
        if change < 1e-7:
            break
    weights[weights < 1e-4] = 0  # not worth a forward pass
    return tuple((weights / weights.sum()).tolist())


def bin_of(bins: RedshiftBins, z_spec: Floats) -> Integers:
    """Number of the bin that holds each redshift, (N,)."""
    place = np.floor((np.asarray(z_spec, np.float64) - bins.z_min) / bins.width)
    return np.clip(place.astype(np.int64), 0, bins.n - 1)


@dataclass(frozen=True)
class _Objects:
    """PDFs with the bin and the PIT of the true redshifts."""

    pdf: Floats  # (N, n)
    bin: Integers  # (N,)
    place: Floats  # (N,): of z_spec in its bin, from 0 to 1
    below: Floats  # (N,): the CDF at the lower edge of the bin
    inside: Floats  # (N,): probability of the bin

    @classmethod
    def of(cls, pdf: Floats, bins: RedshiftBins, z_spec: Floats) -> "_Objects":
        k = bin_of(bins, z_spec)
        place = np.clip((z_spec - bins.edges()[k]) / bins.width, 0, 1)
        return cls._with(pdf, k, place)

    @classmethod
    def _with(cls, pdf: Floats, k: Integers, place: Floats) -> "_Objects":
        rows = np.arange(len(k))
        cdf = np.cumsum(pdf, axis=1)
        cdf /= cdf[:, -1:]
        inside = pdf[rows, k]
        return cls(pdf, k, place, np.maximum(cdf[rows, k] - inside, 0), inside)

    @property
    def pit(self) -> Floats:
        return np.clip(self.below + self.place * self.inside, 0, 1)

    def with_temperature(self, temperature: float) -> "_Objects":
        return self._with(with_temperature(self.pdf, temperature), self.bin, self.place)

    def score(self, calibration: Calibration) -> Floats:
        """Log probability of the bin of z_spec after the calibration's map of the PIT, (N,)."""
        ends = np.stack([self.below, np.minimum(self.below + self.inside, 1)])
        inside = np.diff(calibration.mapped(ends), axis=0)[0] if calibration.pit else self.inside
        return np.log(np.maximum(inside, _LEAST_PROBABILITY))

    def __getitem__(self, rows: npt.NDArray[np.bool_]) -> "_Objects":
        return _Objects(**{name: values[rows] for name, values in vars(self).items()})


def _candidates(method: str) -> list[tuple[bool, int]]:
    """Whether with a temperature, and the degree of the map; the simplest first, which wins ties."""
    degrees = range(1, MAX_DEGREE + 1)
    if method == "temperature":
        return [(True, 0)]
    if method == "pit":
        return [(False, degree) for degree in degrees]
    return [(False, 0), (True, 0), *((scaled, d) for d in degrees for scaled in (False, True))]


def _scaled(
    candidates: dict[tuple[bool, int], float], train: _Objects, test: _Objects, temperature: float
) -> Iterator[tuple[tuple[bool, int], tuple[_Objects, _Objects]]]:
    """Each candidate with the objects to fit and to score, at its temperature."""
    plain = train, test
    scaled = train.with_temperature(temperature), test.with_temperature(temperature)
    for one in candidates:
        yield one, scaled if one[0] else plain
