"""Measures the losses of networks under the attacks of the masking checks, object by object."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcphotoz.attacks import Ball
from hpcphotoz.attacks.ball import AttackBatch, attack_batch
from hpcphotoz.attacks.losses import Loss, redshift_losses
from hpcphotoz.attacks.passes.gradient import ImageLoss
from hpcphotoz.attacks.passes.runner import run_attack
from hpcphotoz.config import Attack
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.evaluation.batches import attack_labels, divide_rows, read_batches, to_tensors
from hpcphotoz.evaluation.inference import PASSES, DatasetAttack, DatasetForward, image_gradients
from hpcphotoz.evaluation.masking.attacks import LARGE_PGD, STRONG_PGD, masking_attacks
from hpcphotoz.evaluation.metrics import OUTLIER
from hpcphotoz.evaluation.network import RedshiftNetwork, compute_logits
from hpcphotoz.evaluation.result import EvaluationResult
from hpcphotoz.evaluation.scoring.objects import gather_rows
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.ranks import ALONE, Ranks

Array = npt.NDArray[np.float64]
OBJECTS = 64  # that the checks attack, by default
ONE_OBJECT = "{}: one object is selected: masking checks compare means, and need more"


@dataclass(frozen=True)
class MaskingLosses:
    """What one network's objects lose, clean and under every attack of `masking_attacks`."""

    network: str
    clean: Array  # (N,) loss of the clean images
    attacked: dict[str, Array]  # (N,) loss, by name of the attack
    transferred: dict[str, Array]  # (N,) loss on images made against another network, by its name
    vanishing: Array  # (N,) 1 where the clean image has no gradient, see `vanishing_gradients`
    failed: Array  # (N,) 1 where an attack of `LARGE_PGD` succeeds, see `total_failure`


def measure_masking(
    networks: Sequence[RedshiftNetwork],
    result: EvaluationResult,
    *,
    objects: int = OBJECTS,
    batch: int = 128,
    device: torch.device | str = "cpu",
    ranks: Ranks = ALONE,
) -> list[MaskingLosses]:
    """Attack the first objects of an evaluation in all the ways that the checks compare.

    An object costs about 1,200 image gradients for each network.

    Args:
        networks: those of the evaluation.
        result: of `robustness.evaluate`, of which dataset, subset, headline epsilon, loss and seed are used.
            The attacks are in float32 whatever its precision: the rounding of bfloat16 is noise in the losses
            among which an attack keeps the best, so that more restarts can come out weaker.
        objects: greatest number of objects.
        batch: batch size.
        device: device of the networks.
        ranks: ranks that share the objects.

    Returns:
        The losses of all objects, for each network, the same on every rank.

    Raises:
        BadInput: a single object, an epsilon out of range, or an output that is not finite.
    """
    data, loss = result.data, result.loss
    attacks = masking_attacks(result.headline_eps, loss)
    manifest = read_manifest(data)
    limit = min(objects, result.limit or objects)
    part = divide_rows(data, manifest, batch, result.subset, limit, ranks)
    if part.total < 2:
        raise ranks.refusal(ONE_OBJECT.format(data))
    gradients = part.objects * sum(image_gradients(attack) for attack in attacks.values())
    forwards = part.objects * (len(attacks) + len(networks))
    probes = [
        _Probe(
            network,
            DatasetAttack(network, "fp32", batch, gradients),
            DatasetForward(network, batch, forwards),
            attacks,
            [other.name for other in networks if other is not network],
        )
        for network in networks
    ]
    batches = read_batches(data, manifest, batch, "checking gradients", limit, result.subset, share=part)
    for stamps in ranks.until_stopped(batches):
        tensor = to_tensors(stamps, device)
        strongest = {probe.network.name: probe.attack_batch(tensor, result.seed) for probe in probes}
        for probe in probes:
            for source in probe.sources:
                probe.predict_from(tensor, source, strongest[source])
    return [probe.gather(ranks) for probe in probes]


class _Probe:
    """Attacks one network batch by batch and keeps the losses."""

    def __init__(
        self,
        network: RedshiftNetwork,
        attack: DatasetAttack,
        forward: DatasetForward,
        attacks: dict[str, Attack],
        sources: list[str],
    ) -> None:
        self.network, self.sources = network, sources
        self._attack, self._forward, self._attacks = attack, forward, attacks
        self._loss = redshift_losses[next(iter(attacks.values())).loss](network.bins)
        names = ("clean", "vanishing", "failed", *attacks, *map(_from, sources))
        self._columns: dict[str, list[Array]] = {name: [np.zeros(0)] for name in names}

    def attack_batch(self, tensor: dict[str, Tensor], seed: int) -> Tensor:
        """Attack a batch in all ways; returns the images of the strong PGD, (N, B, H, W) nMgy."""
        clean = self._logits(tensor, tensor["images"])
        z = attack_labels(self.network.bins, torch.softmax(clean, dim=1), tensor["z_spec"])
        self._add("clean", self._loss(clean, z))
        self._add("vanishing", vanishing_gradients(self.network, tensor, z, self._loss))
        strongest, failed = tensor["images"], torch.zeros_like(z, dtype=torch.bool)
        for name, attack in self._attacks.items():
            images = self._attack(tensor, z, attack, seed)
            logits = self._logits(tensor, images)
            self._add(name, self._loss(logits, z))
            if name in LARGE_PGD:
                failed |= total_failure(self.network.bins, logits, z)
            if name == STRONG_PGD:
                strongest = images
        self._add("failed", failed)
        self._labels = z
        return strongest

    def predict_from(self, tensor: dict[str, Tensor], source: str, images: Tensor) -> None:
        """Keep the losses of the last batch on images that were made against another network."""
        self._add(_from(source), self._loss(self._logits(tensor, images), self._labels))

    def gather(self, ranks: Ranks) -> MaskingLosses:
        """The losses of all objects, in order of rank."""
        found = {name: gather_rows(np.concatenate(parts), ranks) for name, parts in self._columns.items()}
        return MaskingLosses(
            self.network.name,
            found["clean"],
            {name: found[name] for name in self._attacks},
            {source: found[_from(source)] for source in self.sources},
            found["vanishing"],
            found["failed"],
        )

    def _logits(self, tensor: dict[str, Tensor], images: Tensor) -> Tensor:
        return compute_logits(self.network, images, tensor["ebv"], tensor["object_id"], self._forward)

    def _add(self, name: str, values: Tensor) -> None:
        self._columns[name].append(values.double().cpu().numpy())


def vanishing_gradients(network: RedshiftNetwork, tensor: dict[str, Tensor], z: Tensor, loss: Loss) -> Tensor:
    """(N,) bool: no pixel of the clean image has a gradient of the loss, or one is not finite; in float32."""

    def loop(image_loss: ImageLoss, batch: AttackBatch, key: Tensor | None) -> tuple[Tensor]:
        return (image_loss.gradient(batch.images, batch).grad,)

    unit = Ball(tensor["sky_sigma"])
    batch = attack_batch(tensor["images"], tensor["ebv"], z, unit, None, 1.0, tensor["object_id"])
    pixels = run_attack(network.module, batch, loss, loop, None, PASSES["fp32"])[0].flatten(1)
    return (pixels == 0).all(dim=1) | ~pixels.isfinite().all(dim=1)


def total_failure(bins: RedshiftBins, logits: Tensor, z: Tensor) -> Tensor:
    """(N,) bool: |<z> - z| > 0.05 (1 + z), or the bin of z has less probability than in a uniform PDF."""
    pdf = torch.softmax(logits, dim=1)
    own = pdf.gather(1, bins.index(z)[:, None])[:, 0]
    return ((bins.integral(pdf) - z).abs() > OUTLIER * (1 + z)) | (own < 1 / bins.n)


def _from(source: str) -> str:
    return f"from {source}"
