"""Losses that attacks raise: one number per object, from the network's outputs and the redshifts.

A loss is any function of (outputs (N, ...), labels (N,)) that returns (N,) float32; `redshift_losses` names
those of redshift PDFs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional

from hpcphotoz.models.bins import RedshiftBins

Loss = Callable[[Tensor, Tensor], Tensor]
Condition = Callable[[Tensor, Tensor], Tensor]  # (outputs, labels) -> (N,) bool


@dataclass(frozen=True)
class PdfLoss:
    """A loss of the PDF with a fused kernel: `kernels.redshift_loss_reference` defines its kinds."""

    kind: str
    bins: RedshiftBins
    negative: bool = False

    def __call__(self, logits: Tensor, z: Tensor) -> Tensor:
        loss = self.bins.loss(self.kind, logits, z)
        return -loss if self.negative else loss

    def with_gradient(self, logits: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (N,), and its gradient with respect to the logits (N, n), from one kernel on a GPU."""
        loss, grad = self.bins.loss_and_gradient(self.kind, logits, z)
        return (-loss, -grad) if self.negative else (loss, grad)


@dataclass(frozen=True)
class RedshiftLoss:
    """A loss whose labels are redshifts; `check_labels` refuses those for which it means nothing."""

    unchecked: Loss  # the loss alone, for callers that know the labels
    bins: RedshiftBins | None = None  # the labels lie in them; None: any redshift but NaN

    def __call__(self, outputs: Tensor, z: Tensor) -> Tensor:
        return self.unchecked(outputs, z)


def fused_loss(loss: Loss, device: torch.device) -> PdfLoss | None:
    """The loss, unchecked, if one kernel gives it with its gradient on a device; else None."""
    if device.type != "cuda":
        return None
    loss = loss.unchecked if isinstance(loss, RedshiftLoss) else loss
    return loss if isinstance(loss, PdfLoss) else None


def check_labels(loss: Loss, z: Tensor) -> None:
    """Raise ValueError for NaN, and for redshifts outside the bins of a loss that looks for their bin.

    The host waits for a GPU here, except while a CUDA graph is captured, when nothing is checked.
    """
    if not isinstance(loss, RedshiftLoss) or (z.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    z, bins = z.detach().cpu(), loss.bins
    bad = z.isnan() if bins is None else ~((z >= bins.z_min) & (z < bins.z_max))
    if bad.any():
        row, want = int(bad.nonzero()[0, 0]), "a number" if bins is None else f"in {bins.text()}"
        raise ValueError(
            f"z of {int(bad.sum())} of {len(z)} objects, the first {float(z[bad][0]):g} of object {row}: "
            f"must be {want}: leave them out, or take the redshift of the most probable bin, as "
            "hpcphotoz.attack does where z_spec is unknown"
        )


@overload
def cross_entropy(bins: None = None) -> Loss: ...
@overload
def cross_entropy(bins: RedshiftBins) -> RedshiftLoss: ...
def cross_entropy(bins: RedshiftBins | None = None) -> Loss:
    """Cross-entropy of the PDF against the bin that holds the redshift; no bins: labels are class numbers."""
    if bins is None:
        return lambda logits, label: functional.cross_entropy(logits.float(), label, reduction="none")
    return RedshiftLoss(PdfLoss("cross_entropy", bins), bins)


def margin(bins: RedshiftBins) -> RedshiftLoss:
    """Difference of logits ratio, DLR (Croce & Hein 2020, arXiv:2003.01690, eq. 6): no softmax to saturate.

    -(l_z - max l_rival) / (l_1st - l_3rd): the logit of the bin that holds z against its strongest rival, in
    units of the spread of the three largest logits.
    """

    def loss(logits: Tensor, z: Tensor) -> Tensor:
        logits, own = logits.float(), bins.index(z)[:, None]
        rival = logits.scatter(1, own, -torch.inf).amax(dim=1)
        apart = rival - logits.gather(1, own)[:, 0]
        if bins.n < 3:  # without a third logit: the difference itself
            return apart
        top = logits.topk(3, dim=1).values
        return apart / (top[:, 0] - top[:, 2] + 1e-12)

    return RedshiftLoss(loss, bins)


def probability_margin(bins: RedshiftBins) -> RedshiftLoss:
    """Probability margin, PMA (Xie et al. 2024, arXiv:2411.15210): max p_rival - p_z, between -1 and 1.

    The margin of the softmax: logits that are large, and equal up to a constant, do not flatten its gradient.
    """

    def loss(logits: Tensor, z: Tensor) -> Tensor:
        pdf, own = torch.softmax(logits.float(), dim=1), bins.index(z)[:, None]
        rival: Tensor = pdf.scatter(1, own, -torch.inf).amax(dim=1)
        return rival - pdf.gather(1, own)[:, 0]

    return RedshiftLoss(loss, bins)


def shift(bins: RedshiftBins) -> RedshiftLoss:
    """|<z> - z|: how far the mean of the PDF lies from the redshift."""
    return RedshiftLoss(PdfLoss("shift", bins))


def higher(bins: RedshiftBins) -> Loss:
    """<z>: raising it moves a galaxy to higher redshift, whatever its own."""
    return PdfLoss("mean", bins)


def lower(bins: RedshiftBins) -> Loss:
    """-<z>: raising it moves a galaxy to lower redshift, whatever its own."""
    return PdfLoss("mean", bins, negative=True)


def crps(bins: RedshiftBins) -> RedshiftLoss:
    """Continuous ranked probability score (Gneiting & Raftery 2007, doi:10.1198/016214506000001437).

    integral (CDF(z') - H(z' - z))^2 dz', with the probability of a bin spread evenly over it.
    """
    return RedshiftLoss(PdfLoss("crps", bins), bins)


def toward(loss: Loss) -> Loss:
    """The negative of a loss, for targeted attacks: labels are the wanted redshifts (see `moved_by`)."""
    if isinstance(loss, RedshiftLoss):
        return RedshiftLoss(toward(loss.unchecked), loss.bins)
    if isinstance(loss, PdfLoss):
        return replace(loss, negative=not loss.negative)
    return lambda outputs, wanted: -loss(outputs, wanted)


def moved_by(z: Tensor, shift: float, bins: RedshiftBins) -> Tensor:
    """z + shift (1 + z), kept inside the bins: the target of a galaxy that is to look nearer or further.

    Args:
        z: (N,) float32, redshift.
        shift: in units of 1 + z, of either sign.
        bins: of the network.
    """
    return (z + shift * (1 + z)).clamp(bins.z_min + 0.5 * bins.width, bins.z_max - 0.5 * bins.width)


def outlier(bins: RedshiftBins, beyond: float = 0.05) -> Condition:
    """Stop condition: |<z> - z| > beyond (1 + z), an outlier by the field's definition."""
    return lambda logits, z: (bins.mean(logits) - z).abs() > beyond * (1 + z)


def reached(bins: RedshiftBins, within: float = 0.01) -> Condition:
    """Stop condition of a targeted attack: |<z> - wanted| <= within (1 + wanted)."""
    return lambda logits, wanted: (bins.mean(logits) - wanted).abs() <= within * (1 + wanted)


redshift_losses: dict[str, Callable[[RedshiftBins], RedshiftLoss]] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "probability_margin": probability_margin,
    "shift": shift,
    "crps": crps,
}
