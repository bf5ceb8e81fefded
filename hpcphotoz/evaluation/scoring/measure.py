"""Metrics of groups of objects whose scores are spilled and divided over ranks, with bootstrap errors.

They are those of `metrics.summary`, but for `pit_ks`, `pit_cvm` and `pit_ad`, whose PITs are rounded to the
centres of 65,536 bins: this moves `pit_ks` by less than 8e-6. Scores are rounded to float32.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.metrics.calibration import LEVELS
from hpcphotoz.evaluation.metrics.combined import coverage_name
from hpcphotoz.evaluation.metrics.point import RAIL_IQR, RAIL_OUTLIER
from hpcphotoz.evaluation.scoring import bootstrap
from hpcphotoz.evaluation.scoring.bootstrap import PIT_BINS
from hpcphotoz.evaluation.scoring.exact import ExactSums, exact_quantiles, sum_over_ranks
from hpcphotoz.ranks import ALONE, Ranks

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SCORES = ("pit", "crps", "cde", "brier", "hpd")  # of `metrics.pdf_scores`
COLUMNS = ("z_phot", *SCORES)
_MEANS = ("bias", "crps", "cde_loss", "brier")
_FRACTIONS = (
    "eta",
    "eta_15",
    *(coverage_name(name, at) for name in ("coverage", "hpd_coverage") for at in LEVELS),
)


@dataclass(frozen=True)
class ScoredBlock:
    """Scores of some objects of known z_spec, and the group of each."""

    scores: npt.NDArray[np.float32]  # (columns, m), in the order of `COLUMNS`
    z_spec: npt.NDArray[np.float32]  # (m,)
    group: Ints  # (m,) from 0

    def __getitem__(self, rows: slice | npt.NDArray[Any]) -> "ScoredBlock":
        return ScoredBlock(self.scores[:, rows], self.z_spec[rows], self.group[rows])

    def column(self, name: str) -> npt.NDArray[np.float32]:
        """One of `COLUMNS`, (m,)."""
        return np.asarray(self.scores[COLUMNS.index(name)])

    @property
    def dz(self) -> npt.NDArray[np.float32]:
        """(z_phot - z_spec) / (1 + z_spec), rounded to float32."""
        z_spec = self.z_spec.astype(np.float64)
        return ((self.column("z_phot") - z_spec) / (1 + z_spec)).astype(np.float32)


@dataclass(frozen=True)
class Measured:
    """Metrics of a group of objects, their errors, and the histogram of the PIT; empty without an object."""

    metrics: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    pit_counts: Ints = field(default_factory=lambda: np.zeros(PIT_BINS, np.int64))

    def as_summary(self) -> dict[str, Any]:
        """Entry of `metrics.json`: metrics and their `errors`; empty without an object."""
        return {**self.metrics, "errors": self.errors} if self.metrics else {}


def measure_objects(
    z_phot: npt.NDArray[Any], z_spec: npt.NDArray[Any], scores: Mapping[str, npt.NDArray[Any]]
) -> Measured:
    """Measure objects of known z_spec that are in memory, as `measure_groups` does those of ranks.

    Args:
        z_phot, z_spec: (N,) redshifts.
        scores: of `metrics.pdf_scores`, (N,) each.
    """
    rows = np.stack([z_phot, *(scores[name] for name in SCORES)]).astype(np.float32)
    block = ScoredBlock(rows, z_spec.astype(np.float32), np.zeros(len(z_spec), np.int64))
    return measure_groups(lambda: [block], 1, ALONE)[0]


def measure_groups(blocks: Callable[[], Iterable[ScoredBlock]], groups: int, ranks: Ranks) -> list[Measured]:
    """Measure each group of objects; all ranks call this, and get the same.

    Args:
        blocks: called for each pass over the objects of this rank.
        groups: number of groups.
        ranks: ranks that share the objects.
    """
    tally = _tally(blocks(), groups, ranks)

    def each_dz() -> Iterator[tuple[npt.NDArray[np.float32], Ints]]:
        return ((block.dz, block.group) for block in blocks())

    q25, median, q75 = exact_quantiles(each_dz, groups, (0.25, 0.5, 0.75), ranks).T
    sigma_iqr = (q75 - q25) / RAIL_IQR
    far = np.maximum(RAIL_OUTLIER, 3 * sigma_iqr)

    def deviations() -> Iterator[tuple[npt.NDArray[np.float32], Ints]]:
        return ((np.abs(dz - median[group]).astype(np.float32), group) for dz, group in each_dz())

    mad = exact_quantiles(deviations, groups, (0.5,), ranks)[:, 0]
    outliers = np.zeros(groups, np.int64)
    cells = np.zeros((groups, len(bootstrap.EDGES) - 1), np.int64)
    for dz, group in each_dz():
        outliers += np.bincount(group[np.abs(dz) > far[group]], minlength=groups)
        cell = bootstrap.dz_cells(dz.astype(np.float64), median[group], sigma_iqr[group])
        cells += np.bincount(group * cells.shape[1] + cell, minlength=cells.size).reshape(cells.shape)
    outliers, cells = sum_over_ranks(outliers, ranks), sum_over_ranks(cells, ranks)
    found = []
    for g, n in enumerate(tally.n.tolist()):
        if n == 0:
            found.append(Measured())
            continue
        figures = {name: float(tally.sums[name][g]) / n for name in _MEANS}
        errors = {
            name: float(np.sqrt(max(tally.squares[name][g] / n - figures[name] ** 2, 0) / n))
            for name in _MEANS
        }
        fractions = {name: int(tally.counts[name][g]) / n for name in _FRACTIONS}
        robust = {
            "sigma_mad": metrics.NMAD * float(mad[g]),
            "rail_bias": float(median[g]),
            "rail_sigma_iqr": float(sigma_iqr[g]),
            "rail_outlier_rate": int(outliers[g]) / n,
        }
        errors |= {name: float(np.sqrt(f * (1 - f) / n)) for name, f in fractions.items()}
        errors |= bootstrap.dz_errors(cells[g], float(median[g]), float(sigma_iqr[g]))
        errors |= bootstrap.pit_errors(tally.pit[g])
        every = {**figures, **fractions, **robust, **_pit_statistics(tally.pit[g])}
        found.append(Measured({**{name: every[name] for name in _ORDER}, "n": n}, errors, tally.pit[g]))
    return found


_ORDER = (
    *("bias", "sigma_mad", "eta", "eta_15", "rail_bias", "rail_sigma_iqr", "rail_outlier_rate"),
    *("crps", "cde_loss", "brier", "pit_ks", "pit_cvm", "pit_ad", *_FRACTIONS[2:]),
)


@dataclass(frozen=True)
class _Tally:
    """Numbers of a first pass over the objects of all ranks, by group."""

    n: Ints  # (groups,)
    counts: dict[str, Ints]  # of the objects in each of `_FRACTIONS`
    sums: dict[str, Floats]  # of each of `_MEANS`
    squares: dict[str, Floats]
    pit: Ints  # (groups, PIT_BINS)


def _tally(blocks: Iterable[ScoredBlock], groups: int, ranks: Ranks) -> _Tally:
    n, pit = np.zeros(groups, np.int64), np.zeros((groups, PIT_BINS), np.int64)
    counts = {name: np.zeros(groups, np.int64) for name in _FRACTIONS}
    sums, squares = ({name: ExactSums(groups) for name in _MEANS} for _ in range(2))
    for block in blocks:
        group, dz = block.group, block.dz
        n += np.bincount(group, minlength=groups)
        place = np.minimum((block.column("pit") * np.float32(PIT_BINS)).astype(np.int64), PIT_BINS - 1)
        np.add.at(pit, (group, place), 1)
        for name, hit in _hits(block, dz):
            counts[name] += np.bincount(group[hit], minlength=groups)
        for name, values in zip(
            _MEANS, (dz, *(block.column(name) for name in ("crps", "cde", "brier"))), strict=True
        ):
            sums[name].add(values, group)
            square = values.astype(np.float64) ** 2  # 48 bits: two float32 hold it
            high = square.astype(np.float32)
            squares[name].add(high, group)
            squares[name].add((square - high).astype(np.float32), group)
    return _Tally(
        n=sum_over_ranks(n, ranks),
        counts={name: sum_over_ranks(each, ranks) for name, each in counts.items()},
        sums={name: each.totals(ranks) for name, each in sums.items()},
        squares={name: each.totals(ranks) for name, each in squares.items()},
        pit=sum_over_ranks(pit, ranks),
    )


def _hits(block: ScoredBlock, dz: npt.NDArray[np.float32]) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """The objects that each of `_FRACTIONS` counts."""
    away = np.abs(dz)
    yield "eta", away > metrics.OUTLIER
    yield "eta_15", away > metrics.FAR_OUTLIER
    for name, level in (
        ("coverage", metrics.central_level(block.column("pit"))),
        ("hpd_coverage", block.column("hpd")),
    ):
        for at in LEVELS:
            yield coverage_name(name, at), level <= at


def _pit_statistics(counts: Ints) -> dict[str, Any]:
    held = np.flatnonzero(counts)
    centres = (held + 0.5) / PIT_BINS
    of = {"pit_ks": metrics.pit_ks, "pit_cvm": metrics.pit_cvm, "pit_ad": metrics.pit_ad}
    return {name: float(statistic(centres, counts[held])) for name, statistic in of.items()}
