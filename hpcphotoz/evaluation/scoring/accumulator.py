"""Accumulates the scores of one network under one condition, batch by batch, and measures them."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.network import RedshiftNetwork
from hpcphotoz.evaluation.result import Floats, RedshiftScatter
from hpcphotoz.evaluation.scoring.columns import Binning
from hpcphotoz.evaluation.scoring.exact import sum_over_ranks
from hpcphotoz.evaluation.scoring.measure import COLUMNS, SCORES, Measured, ScoredBlock, measure_groups
from hpcphotoz.evaluation.scoring.objects import Objects, gather_rows
from hpcphotoz.evaluation.scoring.spill import Spill, SpilledColumns

POINTS = 3000  # greatest number of objects that the picture of redshifts shows one by one
_CELLS, _PIT_SHOWN = 120, 20  # bins of an axis of that picture; bins of the PIT histogram


class ScoreAccumulator:
    """Collects <z> and the scores of the PDF of every object of one network under one condition."""

    def __init__(self, spill: Spill) -> None:
        self.columns = SpilledColumns(spill, COLUMNS)

    def add(self, network: RedshiftNetwork, pdf: Tensor, z_spec: Floats) -> None:
        """Score the PDFs (N, bins) that a network predicted; where z_spec (N,) is NaN, so are the scores."""
        mean = network.bins.integral(pdf).cpu().numpy()
        scores = np.full((len(SCORES), len(pdf)), np.nan)
        known = np.isfinite(z_spec)
        found = metrics.pdf_scores(pdf.cpu().numpy()[known], network.bins.edges(), z_spec[known])
        scores[:, known] = [found[name] for name in SCORES]
        self.columns.append(np.vstack([mean, scores]))

    def measure(self, objects: Objects) -> Measured:
        """Metrics over the objects of known z_spec of all ranks."""
        return measure_groups(lambda: self._known(objects), 1, objects.ranks)[0]

    def measure_bins(
        self, objects: Objects, binning: Binning, edges: Sequence[float]
    ) -> tuple[Measured, ...]:
        """Metrics in each bin of a column, over the objects of known z_spec of all ranks."""
        bins = len(edges) - 1
        found = measure_groups(lambda: self._known(objects, binning, edges), bins, objects.ranks)
        return tuple(found)

    def _known(
        self, objects: Objects, binning: Binning | None = None, edges: Sequence[float] = ()
    ) -> Iterator[ScoredBlock]:
        names = ["z_spec"] if binning is None else ["z_spec", binning.column]
        for scores, (z_spec, *column) in zip(
            self.columns.blocks(), objects.columns.blocks(*names), strict=True
        ):
            known = np.isfinite(z_spec)
            group = np.zeros(len(z_spec), np.int64)
            if binning is not None:
                group = binning.groups(column[0], edges)
                known &= group >= 0
            yield ScoredBlock(np.stack(scores), z_spec, group)[known]

    def scatter(self, objects: Objects, limits: tuple[float, float]) -> RedshiftScatter:
        """z_phot against z_spec, where it is known: points of at most `POINTS` objects, or a histogram."""

        def known() -> Iterator[Floats]:
            for (z_phot,), (z_spec,) in zip(
                self.columns.blocks("z_phot"), objects.columns.blocks("z_spec"), strict=True
            ):
                yield np.stack([z_spec, z_phot])[:, np.isfinite(z_spec)]

        none = np.zeros(0, np.float32)
        if objects.total - objects.unlabelled <= POINTS:
            mine = np.concatenate([np.zeros((2, 0), np.float32), *known()], axis=1)
            z_spec, z_phot = gather_rows(mine, objects.ranks, axis=1)
            return RedshiftScatter(z_spec, z_phot, np.zeros((0, 0), np.int64), limits)
        counts = np.zeros((_CELLS, _CELLS), np.int64)
        for pairs in known():
            counts += np.histogram2d(pairs[0], pairs[1], bins=_CELLS, range=[limits, limits])[0].astype(
                np.int64
            )
        return RedshiftScatter(none, none, sum_over_ranks(counts, objects.ranks), limits)


def coarse_pit_histogram(pit_counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Counts of PITs in 20 equal bins."""
    edges = -(-np.arange(_PIT_SHOWN) * len(pit_counts) // _PIT_SHOWN)
    return np.add.reduceat(pit_counts, edges)
