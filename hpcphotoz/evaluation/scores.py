"""Accumulates per-object scores batch by batch and summarises them as metrics."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.attack_grid import NamedAttack
from hpcphotoz.evaluation.network import TrainedNetwork, edges
from hpcphotoz.evaluation.result import CLEAN, ConditionResult, Floats, MinimalEps, NetworkResult


class ScoreAccumulator:
    """Collects <z>, PIT, CRPS and CDE loss of every object of one network under one condition."""

    def __init__(self) -> None:
        self._parts: list[Floats] = []

    def add(self, network: TrainedNetwork, pdf: Tensor, z_spec: Floats) -> None:
        """Score a batch.

        Args:
            network: whose PDFs.
            pdf: (N, bins) probabilities.
            z_spec: (N,) NaN: unknown, scored NaN.
        """
        mean = network.bins.integral(pdf).cpu().numpy()
        scores = np.full((3, len(pdf)), np.nan)
        known = np.isfinite(z_spec)
        p, e, z = pdf.cpu().numpy()[known], edges(network.bins), z_spec[known]
        scores[:, known] = metrics.pit(p, e, z), metrics.crps(p, e, z), metrics.cde_loss(p, e, z)
        self._parts.append(np.vstack([mean, scores]).astype(np.float32))

    def per_object_scores(self) -> Floats:
        """(4, N): <z>, PIT, CRPS, CDE loss."""
        return np.concatenate(self._parts, axis=1)

    def metrics(self, z_spec: Floats) -> dict[str, float]:
        """`metrics.summary` over the objects of known z_spec; empty where there is none."""
        known = np.isfinite(z_spec)
        z_phot, _, crps, cde = self.per_object_scores()[:, known]
        return metrics.summary(z_phot, z_spec[known], crps, cde) if known.any() else {}


def network_result(
    network: TrainedNetwork,
    accumulators: Sequence[ScoreAccumulator],
    grid: Sequence[NamedAttack],
    z_spec: Floats,
    minimal_eps: MinimalEps | None,
) -> NetworkResult:
    """Summarise the scores of one network under every condition.

    Args:
        network: which.
        accumulators: one per condition: clean, then every attack of the grid.
        grid: the attacks.
        z_spec: (N,) of all objects, NaN: unknown.
        minimal_eps: smallest epsilons that make outliers; None if they were not searched for.
    """
    reference = accumulators[0].per_object_scores()[0]
    conditions = []
    names = [(CLEAN, 0.0), *((name, attack.eps) for name, attack in grid)]
    for (method, eps), accumulator in zip(names, accumulators, strict=True):
        z_phot, pit = accumulator.per_object_scores()[:2]
        median, p90 = np.percentile(np.abs(z_phot - reference), [50, 90]).tolist()
        conditions.append(ConditionResult(method, eps, z_phot, pit, accumulator.metrics(z_spec), median, p90))
    return NetworkResult(network.name, network.step, network.bins, tuple(conditions), minimal_eps)
