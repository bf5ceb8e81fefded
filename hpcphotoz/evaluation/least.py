"""The least epsilon that makes each galaxy an outlier: robustness without an epsilon to choose."""

import numpy as np
import torch
from torch import Tensor

from hpcphotoz.attacks import Ball, RandomStart, higher, lower, minimal_eps, outlier, shift
from hpcphotoz.evaluation.metrics import OUTLIER
from hpcphotoz.evaluation.network import Network
from hpcphotoz.evaluation.result import Floats

BISECTIONS = 8


def least_eps(
    network: Network,
    tensor: dict[str, Tensor],
    greatest: float,
    *,
    steps: int,
    seed: int,
) -> Floats:
    """Search for the least epsilon of some objects, as `attacks.minimal_eps` does, in float32.

    What is raised is |<z> - z|, of which an outlier has much: of 256 galaxies and the demo's two networks it
    left 124 without an epsilon below 1, cross-entropy 164, with epsilons 11 to 14 % larger. Where it does not
    succeed, <z> is raised, then lowered: 3 of 96 galaxies had been driven to the nearer end of the bins. Only
    objects of known
    z_spec are attacked: of others nobody knows whether they are outliers.

    Args:
        network: whom to fool.
        tensor: of `network.tensors`, N objects.
        greatest: the largest epsilon looked at, sky sigmas of each band.
        steps: PGD steps at each of up to 1 + `BISECTIONS` epsilons, of each loss in turn.
        seed: key of the random starts.

    Returns:
        (N,) float32, sky sigmas: 0 for an outlier before any attack, infinite where `greatest` does not make
        it one, NaN where z_spec is unknown.
    """
    known = ~torch.isnan(tensor["z_spec"])
    least = torch.full_like(tensor["z_spec"], torch.nan)
    if known.any():
        rows = {name: values[known] for name, values in tensor.items()}
        multiple, _ = minimal_eps(
            network.module,
            rows["images"],
            rows["ebv"],
            rows["z_spec"],
            Ball(greatest * rows["sky_sigma"]),
            loss=shift(network.bins),
            others=(higher(network.bins), lower(network.bins)),
            reach=outlier(network.bins, OUTLIER),
            steps=steps,
            bisections=BISECTIONS,
            start=RandomStart(rows["object_id"], seed),
        )
        least[known] = greatest * multiple
    return least.cpu().numpy().astype(np.float32)
