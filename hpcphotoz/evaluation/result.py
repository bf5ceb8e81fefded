"""Results of an evaluation: metrics of each network under each condition, and what pictures show."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.select.subset import ALL_OBJECTS, Subset
from hpcphotoz.evaluation.attack_grid import QUERIES, headline_attack
from hpcphotoz.evaluation.scoring.measure import Measured
from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration
from hpcphotoz.models.bins import RedshiftBins

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
CLEAN = "clean"
_NOT_KEPT = "values of each object were not kept: call evaluate(..., keep_objects=True)"


@dataclass(frozen=True)
class RedshiftScatter:
    """z_phot against z_spec: the points of few objects, a histogram of many."""

    z_spec: Floats  # (n,) points; empty: a histogram
    z_phot: Floats  # (n,)
    counts: Ints  # (bins of z_spec, bins of z_phot); empty: points
    limits: tuple[float, float]  # of the histogram and of the plot, on both axes

    @property
    def is_histogram(self) -> bool:
        """Whether there are too many objects for points."""
        return self.counts.size > 0


@dataclass(frozen=True)
class ConditionResult:
    """One network on all objects, clean or under one attack."""

    method: str  # "clean", or a name in `attack_grid.METHODS`
    eps: float  # sky sigmas
    objects: int  # attacked, with or without z_spec
    metrics: dict[str, float]  # over objects of known z_spec; empty if there is none
    errors: dict[str, float]  # bootstrap errors of the metrics
    pit_histogram: Ints  # (20,) objects of known z_spec in equal bins of PIT
    shift_median: float  # of |<z> attacked - <z> clean|, over all objects
    shift_p90: float
    scatter: RedshiftScatter | None = None  # clean and headline attack only, where a z_spec is known
    scores: Floats | None = None  # (columns, N) of each object, if they were kept: <z>, PIT, ...

    @property
    def z_phot(self) -> Floats:
        """(N,) mean of the PDF; raises ValueError if values of each object were not kept."""
        return np.asarray(_kept(self.scores)[0])

    @property
    def pit(self) -> Floats:
        """(N,) NaN where z_spec is unknown; raises ValueError as `z_phot`."""
        return np.asarray(_kept(self.scores)[1])

    def as_summary(self) -> dict[str, Any]:
        """Entry of `metrics.json`: metrics, `errors`, `pit_histogram`, `eps_sky_sigma` and change of <z>."""
        shift = {"shift_median": self.shift_median, "shift_p90": self.shift_p90}
        more = {"errors": self.errors, "pit_histogram": self.pit_histogram.tolist()} if self.metrics else {}
        return {**self.metrics, **more, "eps_sky_sigma": self.eps, **shift, "n_attacked": self.objects}


def _kept(values: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    if values is None:
        raise ValueError(_NOT_KEPT)
    return values


@dataclass(frozen=True)
class MinimalEps:
    """Minimal epsilon of the galaxies, for one network: the smallest found that makes each an outlier.

    The search ends at one of a few hundred values, so that their counts hold those of any number of galaxies.
    """

    values: (
        Floats  # (k,) sky sigmas, growing, of known z_spec; 0: outliers already; inf: none up to `max_eps`
    )
    counts: Ints  # (k,) number of galaxies
    max_eps: float  # sky sigmas, upper end of the search
    kept: Floats | None = None  # (N,) of each object, if they were kept; NaN: z_spec is unknown

    @classmethod
    def of(cls, eps: Floats, max_eps: float) -> "MinimalEps":
        """From the minimal epsilon of each object, (N,), NaN where z_spec is unknown."""
        values, counts = np.unique(eps[~np.isnan(eps)], return_counts=True)
        return cls(values, counts.astype(np.int64), max_eps, eps)

    @property
    def eps(self) -> Floats:
        """(N,) of each object; raises ValueError if values of each object were not kept."""
        return _kept(self.kept)

    @property
    def n(self) -> int:
        """Number of galaxies of known z_spec."""
        return int(self.counts.sum())

    def fraction_within(self, eps: float) -> float:
        """Fraction of the galaxies of known z_spec whose minimal epsilon is at most `eps` sky sigmas."""
        return float(self.counts[self.values <= eps].sum() / self.n)

    def quantile(self, q: float) -> float:
        """Smallest epsilon, in sky sigmas, at which a fraction q of the galaxies of known z_spec is outliers.

        The quantile is the value of one galaxy; nothing is interpolated. It is infinite if fewer galaxies are
        outliers at `max_eps`, and NaN if no z_spec is known.
        """
        if not self.n:
            return math.nan
        rank = max(0, math.ceil(q * self.n - 1e-9) - 1)
        return float(self.values[np.searchsorted(np.cumsum(self.counts), rank, side="right")])

    def as_summary(self) -> dict[str, float | None]:
        """Entry of `metrics.json`: quantiles (None: infinite, or no z_spec) and fractions at both ends."""
        found = {f"p{percent}": self.quantile(percent / 100) for percent in (16, 50, 84)}
        return {
            **{f"{name}_sky_sigma": eps if math.isfinite(eps) else None for name, eps in found.items()},
            "already_outliers": self.fraction_within(0) if self.n else None,
            "not_reached": float(self.counts[np.isinf(self.values)].sum() / self.n) if self.n else None,
            "max_sky_sigma": self.max_eps,
            "n": self.n,
        }


@dataclass(frozen=True)
class NetworkResult:
    """One network under every condition."""

    name: str
    step: int
    bins: RedshiftBins
    conditions: tuple[ConditionResult, ...]  # clean first, then by method and growing epsilon
    minimal_eps: MinimalEps | None = None  # None: not searched for

    @property
    def clean(self) -> ConditionResult:
        """The condition without an attack."""
        return self.conditions[0]

    def at(self, method: str, eps: float) -> ConditionResult:
        """The condition of an attack; raises KeyError if it was not measured."""
        for condition in self.conditions:
            if condition.method == method and condition.eps == eps:
                return condition
        raise KeyError(f"{method} at {eps}")

    def curve(self, method: str) -> list[ConditionResult]:
        """The clean condition, then the attack at growing epsilon."""
        return [self.clean, *(condition for condition in self.conditions if condition.method == method)]

    def shift_curve(self, method: str) -> list[tuple[float, float, float]]:
        """(eps, median, 90th percentile) of |<z> attacked - <z> clean| over all objects; needs no z_spec."""
        return [(c.eps, c.shift_median, c.shift_p90) for c in self.curve(method)]


@dataclass(frozen=True)
class ExampleGalaxy:
    """One galaxy: its image, and for each network the attacked image and both PDFs."""

    object_id: int
    z_spec: float  # NaN: unknown
    image: Floats  # (B, H, W) nMgy
    sky_sigma: Floats  # (B,) nMgy
    attacked: dict[str, Floats] = field(default_factory=dict)  # network -> (B, H, W) nMgy
    pdf_clean: dict[str, Floats] = field(default_factory=dict)  # network -> (bins,)
    pdf_attacked: dict[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True)
class BinnedMetrics:
    """Metrics in bins of one column, clean and under the headline attack."""

    column: str
    meaning: str  # of the column, with its unit
    edges: tuple[float, ...]  # of the bins, growing
    # Network -> method -> one entry a bin; an entry without an object is empty.
    found: Mapping[str, Mapping[str, tuple[Measured, ...]]]


@dataclass(frozen=True)
class EvaluationResult:
    """Everything a report needs."""

    data: Path
    header: Header
    objects: int
    unlabelled: int  # objects of unknown z_spec: attacked, but left out of the metrics
    methods: tuple[str, ...]  # in the order of `attack_grid.METHODS`
    eps: tuple[float, ...]  # sky sigmas, growing, without 0
    headline_eps: float
    steps: int  # of all methods but FGSM and the square attack
    loss: str
    seed: int
    precision: str  # of the attacks' gradients
    networks: tuple[NetworkResult, ...]
    # By name of the attacked network, then of the network that predicts from its images.
    transfer: dict[str, dict[str, Measured]]
    example: ExampleGalaxy
    subset: Subset = ALL_OBJECTS  # which objects of the dataset
    limit: int | None = None  # greatest number of objects, the first of the subset
    restarts: int = 1  # of the same methods
    queries: int = QUERIES  # of the square attack
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)  # of scored PDFs, by network
    binned: tuple[BinnedMetrics, ...] = ()
    kept_ids: Ints | None = None  # (N,) if values of each object were kept
    kept_z_spec: Floats | None = None

    @property
    def headline_method(self) -> str:
        """The attack of pictures, calibration and transfer; see `attack_grid.headline_attack`."""
        return headline_attack(self.methods)

    @property
    def object_id(self) -> Ints:
        """(N,) in stored order; raises ValueError if values of each object were not kept."""
        return _kept(self.kept_ids)

    @property
    def z_spec(self) -> Floats:
        """(N,) NaN: unknown; raises ValueError as `object_id`."""
        return _kept(self.kept_z_spec)

    @property
    def which(self) -> str:
        """Which objects of the dataset, in parentheses after a space; empty if all."""
        return self.subset.text(self.limit if self.limit == self.objects else None)
