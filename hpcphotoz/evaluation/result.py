"""Results of an evaluation: per network and condition, the per-object scores and their metrics."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.select.subset import ALL_OBJECTS, Subset
from hpcphotoz.evaluation.attack_grid import QUERIES, headline_attack
from hpcphotoz.models.bins import RedshiftBins

Floats = npt.NDArray[np.float32]
CLEAN = "clean"


@dataclass(frozen=True)
class ConditionResult:
    """One network on all objects, clean or under one attack."""

    method: str  # "clean", or a name in `attack_grid.METHODS`
    eps: float  # sky sigmas
    z_phot: Floats  # (N,) mean of the PDF
    pit: Floats  # (N,) NaN where z_spec is unknown
    metrics: dict[str, float]  # over objects of known z_spec; empty if there is none
    shift_median: float  # of |<z> attacked - <z> clean|, over all objects
    shift_p90: float

    def as_summary(self) -> dict[str, float]:
        """Entry of `metrics.json`: the metrics, `eps_sky_sigma` and the change of <z>."""
        shift = {"shift_median": self.shift_median, "shift_p90": self.shift_p90}
        return {**self.metrics, "eps_sky_sigma": self.eps, **shift, "n_attacked": len(self.z_phot)}


@dataclass(frozen=True)
class MinimalEps:
    """Minimal epsilon of each galaxy, for one network: the smallest found that makes it an outlier."""

    eps: Floats  # (N,) sky sigmas; 0: an outlier already; inf: none up to `max_eps`; NaN: z_spec is unknown
    max_eps: float  # sky sigmas, upper end of the search

    @property
    def known(self) -> Floats:
        """Minimal epsilons of the galaxies of known z_spec, sorted."""
        return np.sort(self.eps[~np.isnan(self.eps)])

    def quantile(self, q: float) -> float:
        """Smallest epsilon, in sky sigmas, at which a fraction q of the galaxies of known z_spec is outliers.

        The quantile is the value of one galaxy; nothing is interpolated. It is infinite if fewer galaxies are
        outliers at `max_eps`, and NaN if no z_spec is known.
        """
        known = self.known
        return float(known[max(0, math.ceil(q * len(known) - 1e-9) - 1)]) if len(known) else math.nan

    def as_summary(self) -> dict[str, float | None]:
        """Entry of `metrics.json`: quantiles (None: infinite, or no z_spec) and fractions at both ends."""
        known = self.known
        found = {f"p{percent}": self.quantile(percent / 100) for percent in (16, 50, 84)}
        return {
            **{f"{name}_sky_sigma": eps if math.isfinite(eps) else None for name, eps in found.items()},
            "already_outliers": float((known == 0).mean()) if len(known) else None,
            "not_reached": float(np.isinf(known).mean()) if len(known) else None,
            "max_sky_sigma": self.max_eps,
            "n": len(known),
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
class EvaluationResult:
    """Everything a report needs."""

    data: Path
    header: Header
    object_id: npt.NDArray[np.int64]  # (N,)
    z_spec: Floats  # (N,) NaN: unknown
    methods: tuple[str, ...]  # in the order of `attack_grid.METHODS`
    eps: tuple[float, ...]  # sky sigmas, growing, without 0
    headline_eps: float
    steps: int  # of all methods but FGSM and the square attack
    loss: str
    seed: int
    precision: str  # of the attacks' gradients
    networks: tuple[NetworkResult, ...]
    # Metrics by name of the attacked network, then of the network that predicts from its images.
    transfer: dict[str, dict[str, dict[str, float]]]
    example: ExampleGalaxy
    subset: Subset = ALL_OBJECTS  # which objects of the dataset
    limit: int | None = None  # greatest number of objects, the first of the subset
    restarts: int = 1  # of the same methods
    queries: int = QUERIES  # of the square attack

    @property
    def headline_method(self) -> str:
        """The attack of pictures, calibration and transfer; see `attack_grid.headline_attack`."""
        return headline_attack(self.methods)

    @property
    def which(self) -> str:
        """Which objects of the dataset, in parentheses after a space; empty if all."""
        return self.subset.text(self.limit if self.limit == len(self.z_spec) else None)

    @property
    def unlabelled(self) -> int:
        """Number of objects of unknown z_spec: attacked, but left out of the metrics."""
        return int(np.isnan(self.z_spec).sum())
