"""Streams the objects of an evaluation with the images that its headline attack makes of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcphotoz.config import Attack
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.evaluation.attack_grid import build_attack_grid
from hpcphotoz.evaluation.batches import attack_labels, divide_rows, read_batches, to_tensors
from hpcphotoz.evaluation.inference import DatasetAttack, DatasetForward, image_gradients
from hpcphotoz.evaluation.network import RedshiftNetwork, compute_pdfs
from hpcphotoz.evaluation.result import EvaluationResult
from hpcphotoz.evaluation.scoring.pdf_calibration import calibrated
from hpcphotoz.ranks import ALONE, Ranks


@dataclass(frozen=True)
class AttackedStamps:
    """One network's images and PDFs of a batch, before and after the headline attack, as they are scored."""

    attacked: Tensor  # (N, B, H, W) float32, nMgy
    pdf_clean: Tensor  # (N, bins)
    pdf_attacked: Tensor  # (N, bins)


@dataclass(frozen=True)
class HeadlineAttack:
    """The headline attack of an evaluation, run again on its objects for a further measurement.

    Attributes:
        networks: those of the evaluation.
        result: of the evaluation: its objects, epsilon, options and seed are used.
        device: of the networks.
        batch: batch size.
        ranks: ranks that share the objects; all of them measure.
    """

    networks: Sequence[RedshiftNetwork]
    result: EvaluationResult
    device: torch.device | str = "cpu"
    batch: int = 128
    ranks: Ranks = ALONE

    @property
    def attack(self) -> Attack:
        """The attack's configuration."""
        one = self.result
        passes = {"steps": one.steps, "restarts": one.restarts, "queries": one.queries}
        (found,) = build_attack_grid([one.headline_method], [], one.headline_eps, **passes, loss=one.loss)
        return found.attack

    def batches(self, what: str) -> Iterator[tuple[Stamps, dict[str, AttackedStamps]]]:
        """Yield this rank's batches in stored order, with each network's images and PDFs by its name.

        Args:
            what: the verb of the progress line.

        Raises:
            BadInput: a shard cannot be read, or an output is not finite.
        """
        one, attack = self.result, self.attack
        manifest = read_manifest(one.data)
        part = divide_rows(one.data, manifest, self.batch, one.subset, one.limit, self.ranks)
        gradients = part.objects * image_gradients(attack)
        attacks = [DatasetAttack(n, one.precision, self.batch, gradients) for n in self.networks]
        forwards = [DatasetForward(n, self.batch, 2 * part.objects) for n in self.networks]
        batches = read_batches(one.data, manifest, self.batch, what, one.limit, one.subset, share=part)
        for stamps in self.ranks.until_stopped(batches):
            tensor = to_tensors(stamps, self.device)
            found = {}
            for network, attacked_by, forward in zip(self.networks, attacks, forwards, strict=True):
                own = compute_pdfs(network, tensor["images"], tensor["ebv"], tensor["object_id"], forward)
                z = attack_labels(network.bins, own, tensor["z_spec"])
                attacked = attacked_by(tensor, z, attack, one.seed)
                clean = calibrated(one.calibrations.get(network.name), own)
                pdf = self.scored_pdfs(network, tensor, attacked, forward)
                found[network.name] = AttackedStamps(attacked, clean, pdf)
            yield stamps, found

    def scored_pdfs(
        self, network: RedshiftNetwork, tensor: dict[str, Tensor], images: Tensor, forward: DatasetForward
    ) -> Tensor:
        """A network's PDFs of some images of a batch, (N, bins): calibrated as those of the evaluation."""
        pdf = compute_pdfs(network, images, tensor["ebv"], tensor["object_id"], forward)
        return calibrated(self.result.calibrations.get(network.name), pdf)
