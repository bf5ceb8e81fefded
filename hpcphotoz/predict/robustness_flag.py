"""Flags objects whose redshift a small perturbation of the image would change much."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcphotoz.config.section import GREATEST
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.network import RedshiftNetwork, compute_pdfs
from hpcphotoz.evaluation.scores import find_minimal_eps

_STEPS = 10  # of PGD at each epsilon and for each loss, as in `evaluate`


def check_flag_below(eps: float | None) -> None:
    """Raise BadInput for a threshold that is not above 0, or too large."""
    if eps is not None and not 0 < eps <= GREATEST:
        raise BadInput(f"flag_below {eps}: must be above 0 and at most {GREATEST:g} sky sigmas")


def robustness_flag(
    networks: Sequence[RedshiftNetwork], tensor: dict[str, Tensor], eps: float
) -> dict[str, npt.NDArray[np.floating]]:
    """`minimal_eps` and `fragile`, the columns of `columns.FLAG`, of a batch.

    `minimal_eps` is the smallest epsilon, in sky sigmas of each band, with which `find_minimal_eps` moves the
    mean redshift <z> of one of the networks by more than 0.05 (1 + <z>) from where it is without attack.
    What counts is the change and not the error: an object has the same flag whether its z_spec is known or
    not, so that flagged objects mean the same in a whole survey. Measured from the mode of the PDF instead, a
    galaxy with two peaks would be an outlier without any attack. Networks are attacked one by one, in
    float32, each as it is: neither calibrated nor averaged over symmetries.

    Args:
        networks: the networks; the least epsilon counts.
        tensor: of `batches.to_tensors`, N objects.
        eps: upper end of the search, sky sigmas.
    """
    least = np.full(len(tensor["images"]), np.inf, np.float32)
    for network in networks:
        clean = compute_pdfs(network, tensor["images"], tensor["ebv"], tensor["object_id"])
        bins = network.bins
        start = bins.integral(clean).clamp(bins.z_min, float(np.nextafter(np.float32(bins.z_max), 0)))
        given = {**tensor, "z_spec": start.to(torch.float32)}
        least = np.minimum(least, find_minimal_eps(network, given, eps, steps=_STEPS, seed=0))
    return {"minimal_eps": least, "fragile": np.isfinite(least).astype(np.uint8)}
