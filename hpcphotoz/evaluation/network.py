"""The interface of a trained network to evaluation and prediction, and its PDFs."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from hpcphotoz.attacks.gradient import evaluation_mode
from hpcphotoz.compute.precision import tf32
from hpcphotoz.data.format.manifest import Header
from hpcphotoz.errors import BadInput
from hpcphotoz.models.bins import RedshiftBins

_SAME_SCALE = 0.01  # pixel scales from a WCS and from a survey's description differ by less


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
    """Raise BadInput for a dataset of other bands, stamp size or pixel scale than the network's training set.

    The pixel scale is compared where the network has `pixel_scale`, arcsec, which `load_network` sets.
    """
    if network.bands != header.bands:
        wanted, found = ",".join(network.bands), ",".join(header.bands)
        raise BadInput(
            f"{where}: holds bands {found} but run '{network.name}' takes {wanted}, in that order: "
            "give a dataset of those bands, or train a run on these"
        )
    if network.stamp != header.stamp:
        raise BadInput(
            f"{where}: stamps of {header.stamp} pixels but run '{network.name}' takes {network.stamp}: "
            "cut the stamps again at that size"
        )
    ours = getattr(network, "pixel_scale", None)
    if ours is not None and abs(header.pixel_scale / ours - 1) > _SAME_SCALE:
        raise BadInput(
            f"{where}: pixels of {header.pixel_scale:g} arcsec but run '{network.name}' takes {ours:g}: "
            "resample the images, or train a run on these"
        )


def check_tensors(network: RedshiftNetwork, who: str, **tensors: Tensor) -> None:
    """Raise BadInput for the first tensor that does not suit the network or holds a value that means nothing.

    Args:
        network: the network that is to take the tensors.
        who: the function that was called, for the message.
        tensors: `images` and any of the others of an `api.StampBatch`, by name. NaN is allowed in z_spec.
    """
    images, bands = tensors["images"], len(network.bands)
    rows = len(images) if isinstance(images, Tensor) and images.ndim else 0
    rest = {"images": (bands, network.stamp, network.stamp), "sky_sigma": (bands,)}
    device = next(network.module.parameters()).device
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise BadInput(f"{who}: {name}: a {type(tensor).__name__}: want a torch tensor")
        wanted = (rows, *rest.get(name, ())), torch.int64 if name == "object_id" else torch.float32
        if (tuple(tensor.shape), tensor.dtype) != wanted:
            raise BadInput(
                f"{who}: {name} of shape {tuple(tensor.shape)} and {tensor.dtype}, but run "
                f"'{network.name}' takes {wanted[0]} and {wanted[1]}"
            )
        if tensor.device != device:
            raise BadInput(f"{who}: {name} on {tensor.device}, but run '{network.name}' is on {device}")
        bad = tensor.isinf() if name == "z_spec" else ~tensor.isfinite()
        if name == "sky_sigma":
            bad |= tensor <= 0
        if bad.any():
            row, value = int(bad.nonzero()[0, 0]), float(tensor[bad][0])
            number = int(tensors["object_id"][row]) if "object_id" in tensors else row
            want = "finite and positive" if name == "sky_sigma" else "finite"
            raise BadInput(f"{who}: object {number}: {value:g} in {name}: must be {want}")


@torch.no_grad()
def compute_pdfs(
    network: RedshiftNetwork,
    images: Tensor,
    ebv: Tensor,
    object_id: Tensor,
    forward: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """PDFs of images, (N, bins) float32 probabilities, in evaluation mode and in float32 without TF32.

    An autocast of the caller has no effect, and the module's own mode is restored.

    Args:
        network: the trained network.
        images: (N, B, H, W) float32, nMgy.
        ebv: (N,) float32, mag.
        object_id: (N,) int64, named in the error message.
        forward: computes logits from images and ebv, as `inference.DatasetForward`; default `network.module`.

    Raises:
        BadInput: logits of the wrong shape, or not finite for some object.
    """
    in_float32 = torch.autocast(images.device.type, enabled=False)
    with evaluation_mode(network.module), tf32(False), in_float32:
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
