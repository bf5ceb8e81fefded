"""The PDFs of a batch: the mean over networks and over the symmetries of the square."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hpcphotoz.evaluation.inference import DatasetForward
from hpcphotoz.evaluation.network import RedshiftNetwork, compute_pdfs
from hpcphotoz.kernels import reference


def average_pdfs(
    networks: Sequence[RedshiftNetwork],
    images: Tensor,
    ebv: Tensor,
    object_id: Tensor,
    *,
    tta: bool = False,
    forwards: Sequence[DatasetForward | None] | None = None,
    weights: Sequence[float] = (),
) -> Tensor:
    """The mean PDF over networks, and over the symmetries of the square if `tta`; (N, bins) float32.

    Args:
        networks: with the same bins.
        images: (N, B, H, W) float32, nMgy.
        ebv: (N,) float32, mag.
        object_id: (N,) int64.
        tta: average over the eight flips and right-angle rotations.
        forwards: compute the logits of each network; None: the modules compute them.
        weights: of the networks, which add up to 1; (): equal ones. A network of weight 0 is not computed.
    """
    total = torch.zeros(len(images), networks[0].bins.n, device=images.device)
    codes = range(8 if tta else 1)
    given = [1.0] * len(networks) if not weights else [weight * len(networks) for weight in weights]
    for code in codes:
        turned = reference.dihedral(images, torch.full_like(object_id, code)) if code else images
        for network, forward, weight in zip(networks, forwards or [None] * len(networks), given, strict=True):
            if weight:
                total += weight * compute_pdfs(network, turned, ebv, object_id, forward)
    return total / (len(codes) * len(networks))
