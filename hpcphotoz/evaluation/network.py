"""The interface of a trained network to evaluation and prediction, and its PDFs."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from hpcphotoz.compute.precision import tf32
from hpcphotoz.data.format.manifest import Header
from hpcphotoz.errors import BadInput
from hpcphotoz.models.bins import RedshiftBins


class RedshiftNetwork(Protocol):
    """A trained network: what `training.run.network.load_network` returns, or any with these members."""

    @property
    def name(self) -> str: ...  # the run folder's name
    @property
    def module(self) -> nn.Module: ...  # called as module(images, ebv); returns logits (N, bins)
    @property
    def bins(self) -> RedshiftBins: ...  # of the logits
    @property
    def bands(self) -> tuple[str, ...]: ...  # in the order in which the network takes them
    @property
    def stamp(self) -> int: ...  # pixels per side of the images that the network takes
    @property
    def step(self) -> int: ...  # number of optimiser steps in training


def check_bands_and_stamp(network: RedshiftNetwork, header: Header, where: object) -> None:
    """Raise BadInput for a dataset of other bands or stamp size than the network's training set."""
    if network.bands != header.bands:
        ours, theirs = ",".join(network.bands), ",".join(header.bands)
        raise BadInput(f"{where}: holds bands {theirs} but run '{network.name}' takes {ours}, in that order")
    if network.stamp != header.stamp:
        raise BadInput(
            f"{where}: stamps of {header.stamp} pixels but run '{network.name}' takes {network.stamp}: "
            "cut the stamps again at that size"
        )


@torch.no_grad()
def compute_pdfs(
    network: RedshiftNetwork,
    images: Tensor,
    ebv: Tensor,
    object_id: Tensor,
    forward: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """PDFs of images, (N, bins) float32 probabilities, in evaluation mode and in float32 without TF32.

    Args:
        network: the trained network.
        images: (N, B, H, W) float32, nMgy.
        ebv: (N,) float32, mag.
        object_id: (N,) int64, named in the error message.
        forward: computes logits from images and ebv, as `inference.DatasetForward`; default `network.module`.

    Raises:
        BadInput: logits of the wrong shape, or not finite for some object.
    """
    network.module.eval()
    with tf32(False):
        logits = (forward or network.module)(images, ebv).float()
    if logits.shape != (len(images), network.bins.n):
        raise BadInput(
            f"run '{network.name}': logits of shape {tuple(logits.shape)} for {len(images)} objects and "
            f"{network.bins.n} bins: the network and its configuration do not belong together"
        )
    bad = ~torch.isfinite(logits).all(dim=1)
    if bad.any():
        raise BadInput(
            f"run '{network.name}': the output for object {int(object_id[bad][0])} is not finite: "
            "has the training diverged? use an earlier checkpoint"
        )
    return torch.softmax(logits, dim=1)
