"""Certifies the smoothed redshifts of networks on a dataset, and attacks them within the same radii."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcphotoz.attacks import perturb
from hpcphotoz.config import Attack
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.evaluation.batches import attack_labels, divide_rows, read_batches, to_tensors
from hpcphotoz.evaluation.certificate.binomial import highest_count
from hpcphotoz.evaluation.certificate.radius import certified_interval, certified_radii, judged
from hpcphotoz.evaluation.certificate.smoothing import (
    SmoothedNetwork,
    Smoothing,
    draw_redshifts,
    judging_draws,
    seen_by,
)
from hpcphotoz.evaluation.inference import PASSES, DatasetForward
from hpcphotoz.evaluation.network import RedshiftNetwork, compute_pdfs, view_of
from hpcphotoz.evaluation.result import EvaluationResult
from hpcphotoz.ranks import ALONE, Ranks

Array = npt.NDArray[np.float32]
FRACTIONS = (0.5, 1.0, 1.5, 2.0)  # of sigma: the radii of intervals and attacks
_NEVER = 1e-6  # probability with which sound certificates fail the check


@dataclass(frozen=True)
class Certificate:
    """Certificates of one network's smoothed redshifts of N objects; radii in sky sigmas."""

    network: str
    smoothing: Smoothing
    dimensions: int  # pixels x bands of a stamp
    seen: int  # of these, the ones that the network sees
    radii: tuple[float, ...]  # of the intervals and attacks
    object_id: npt.NDArray[np.int64]  # (N,)
    z_spec: Array  # (N,) NaN: unknown
    z_smooth: Array  # (N,) median of <z> over noisy copies
    radius: Array  # (N,) within which the smoothed redshift is no outlier; NaN: z_spec is unknown
    radius_vote: Array  # (N,) within which most noisy copies are no outliers
    low: Array  # (K, N) bounds of the smoothed redshift within each of `radii`
    high: Array  # (K, N)
    outlier: npt.NDArray[np.bool_]  # (K, N) by the majority of draws, after an attack within each of `radii`
    outlier_surely: npt.NDArray[np.bool_]  # (K, N)

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """(N,) objects of known z_spec."""
        return ~np.isnan(self.z_spec)

    def certified(self, radius: float, *, vote: bool = False) -> float:
        """Fraction of the objects of known z_spec that are certified to be no outliers within a radius."""
        found = (self.radius_vote if vote else self.radius)[self.known]
        return float(((found >= radius) & (found > 0)).mean()) if len(found) else math.nan

    def attacked(self, k: int) -> float:
        """Fraction of the same objects that the attack within `radii[k]` does not make outliers."""
        return float((~self.outlier[k, self.known]).mean()) if self.known.any() else math.nan

    def linf(self, radius: float) -> float:
        """Epsilon of the largest L-infinity ball in which no change is beyond a radius.

        Only the pixels that the network sees count.
        """
        return radius / math.sqrt(self.seen)

    @property
    def contradictions(self) -> int:
        """Objects that an attack surely made outliers within a radius that is certified for them."""
        within = self.radius[None, :] >= np.array(self.radii)[:, None]
        return int((within & self.outlier_surely).any(axis=0).sum())

    @property
    def allowed(self) -> int:
        """Contradictions that chance explains: certificate and judgement are wrong with alpha each."""
        n = int(self.known.sum())
        return highest_count(n, min(2 * self.smoothing.alpha, 1.0), _NEVER) if n else 0

    @property
    def problem(self) -> str | None:
        """Why the certificates cannot be right; None if no attack contradicts them."""
        if self.contradictions <= self.allowed:
            return None
        return (
            f"run '{self.network}': an attack makes outliers of {self.contradictions} galaxies within radii "
            f"that are certified for them, where chance explains {self.allowed}: the certificates are wrong"
        )


def certify(
    networks: Sequence[RedshiftNetwork],
    result: EvaluationResult,
    smoothing: Smoothing,
    *,
    device: torch.device | str = "cpu",
    batch: int = 128,
    ranks: Ranks = ALONE,
) -> tuple[Certificate, ...]:
    """Certify the smoothed redshifts of each network on the objects of an evaluation.

    Each object takes `samples` forward passes, and for each of the four radii an attack (PGD on the PDF
    averaged over eight noisy copies) and up to 200 forward passes that judge it. Objects of unknown z_spec
    have intervals, but no radius.

    Args:
        networks: those of the evaluation.
        result: of the evaluation: its objects, attack steps, precision and seed are used.
        smoothing: noise, number of samples, confidence.
        device: of the networks.
        batch: batch size, of noisy copies too.
        ranks: ranks that share the objects; all of them certify.

    Returns:
        The certificates of all objects, the same on every rank.

    Raises:
        BadInput: a shard cannot be read, or an output is not finite.
    """
    manifest = read_manifest(result.data)
    part = divide_rows(result.data, manifest, batch, result.subset, result.limit, ranks)
    radii = tuple(fraction * smoothing.sigma for fraction in FRACTIONS)
    forwards = part.objects * (smoothing.samples + len(radii) * smoothing.judged)
    workers = [
        _Certifier(n, smoothing, radii, result, DatasetForward(n, batch, forwards), batch) for n in networks
    ]
    which = result.limit, result.subset
    batches = read_batches(result.data, manifest, batch, "certifying galaxies", *which, share=part)
    for stamps in ranks.until_stopped(batches):
        tensor = to_tensors(stamps, device)
        for worker in workers:
            worker.add(tensor, stamps.z_spec)
    return tuple(worker.certificate(ranks) for worker in workers)


class _Certifier:
    """Certifies and attacks one network batch by batch."""

    def __init__(
        self,
        network: RedshiftNetwork,
        smoothing: Smoothing,
        radii: tuple[float, ...],
        result: EvaluationResult,
        forward: DatasetForward,
        batch: int,
    ) -> None:
        self._network, self._smoothing, self._radii = network, smoothing, radii
        self._view = view_of(network)
        self._result, self._forward, self._batch = result, forward, batch
        self._object_id = [np.zeros(0, np.int64)]
        self._numbers: list[npt.NDArray[np.float64]] = [np.zeros((4 + 4 * len(radii), 0))]

    def add(self, tensor: dict[str, Tensor], z_spec: Array) -> None:
        """Certify a batch of stamps."""
        tensor, one = seen_by(self._view, tensor), self._smoothing
        images = tensor["images"]
        draws = self._draw(tensor, images, range(one.samples))
        radii = certified_radii(draws, z_spec, one)
        numbers = [z_spec, np.median(draws, axis=0), radii.median, radii.vote]
        inputs = images, tensor["ebv"], tensor["object_id"]
        clean = compute_pdfs(self._network, *inputs, self._forward)
        z = attack_labels(self._network.bins, clean, tensor["z_spec"])
        smoothed = SmoothedNetwork(self._network, tensor, one)
        for radius in self._radii:
            low, high = certified_interval(draws, one, radius, self._network.bins)
            attacked = self._attack(smoothed, tensor, z, radius)
            after = self._draw(tensor, attacked, judging_draws(one))
            numbers += [low, high, *judged(after, z_spec, one.alpha / len(self._radii))]
        self._object_id.append(tensor["object_id"].cpu().numpy())
        self._numbers.append(np.stack([np.asarray(row, np.float64) for row in numbers]))

    def _draw(self, tensor: dict[str, Tensor], images: Tensor, draws: range) -> Array:
        forward, one = self._forward, self._smoothing
        return draw_redshifts(self._network, forward, tensor, images, one, draws, self._batch)

    def _attack(
        self, smoothed: SmoothedNetwork, tensor: dict[str, Tensor], z: Tensor, radius: float
    ) -> Tensor:
        """PGD within an L2 ball, away from z_spec, on the PDF averaged over noisy copies."""
        images, result = tensor["images"], self._result
        eps = radius / math.sqrt(images.shape[1:].numel())  # of `ball_and_step`: a root mean square
        rows = torch.arange(len(images), dtype=torch.float32, device=images.device)
        return perturb(
            smoothed,
            images,
            rows,
            z,
            tensor["sky_sigma"],
            tensor["object_id"],
            attack=Attack(method="pgd", ball="l2", eps=eps, steps=result.steps, loss="shift"),
            bins=self._network.bins,
            seed=result.seed,
            passes=PASSES[result.precision],
        )

    def certificate(self, ranks: Ranks) -> Certificate:
        """The certificates of the objects of all ranks."""
        parts = [one for part in ranks.allgather(self._numbers) for one in part]
        object_id = np.concatenate([one for part in ranks.allgather(self._object_id) for one in part])
        z_spec, z_smooth, radius, vote, *rest = np.concatenate(parts, axis=1).astype(np.float32)
        low, high, outlier, surely = (np.stack(rest[k::4]) for k in range(4))
        header = self._result.header
        dimensions, seen = (len(header.bands) * side**2 for side in (header.stamp, self._view.part))
        given = self._network.name, self._smoothing, dimensions, seen, self._radii
        of_objects = object_id, z_spec, z_smooth, radius, vote, low, high
        return Certificate(*given, *of_objects, outlier.astype(bool), surely.astype(bool))
