"""Numbers per object, batch after batch, and what becomes of them at the end."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.methods import Planned
from hpcphotoz.evaluation.network import Network, edges
from hpcphotoz.evaluation.result import CLEAN, Condition, Floats, LeastEps, NetworkResult


class Tally:
    """<z>, PIT, CRPS and CDE loss of every object under one condition."""

    def __init__(self) -> None:
        self._parts: list[Floats] = []

    def add(self, network: Network, pdf: Tensor, z_spec: Floats) -> None:
        """Add a batch.

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

    def numbers(self) -> Floats:
        """(4, N): <z>, PIT, CRPS, CDE loss."""
        return np.concatenate(self._parts, axis=1)

    def metrics(self, z_spec: Floats) -> dict[str, float]:
        """`metrics.summary` over the objects of known z_spec; empty where there is none."""
        known = np.isfinite(z_spec)
        z_phot, _, crps, cde = self.numbers()[:, known]
        return metrics.summary(z_phot, z_spec[known], crps, cde) if known.any() else {}


def network_result(
    network: Network,
    tallies: Sequence[Tally],
    plan: Sequence[Planned],
    z_spec: Floats,
    minimal: LeastEps | None,
) -> NetworkResult:
    """One network under every condition.

    Args:
        network: which.
        tallies: clean first, then one of each planned attack.
        plan: the attacks.
        z_spec: (N,) of all objects, NaN: unknown.
        minimal: the least epsilons, where they were looked for.
    """
    reference = tallies[0].numbers()[0]
    conditions = []
    names = [(CLEAN, 0.0), *((name, attack.eps) for name, attack in plan)]
    for (method, eps), tally in zip(names, tallies, strict=True):
        z_phot, pit = tally.numbers()[:2]
        median, p90 = np.percentile(np.abs(z_phot - reference), [50, 90]).tolist()
        conditions.append(Condition(method, eps, z_phot, pit, tally.metrics(z_spec), median, p90))
    return NetworkResult(network.name, network.step, network.bins, tuple(conditions), minimal)
