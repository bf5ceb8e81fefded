"""The interface of a trained network to evaluation and prediction, and its PDFs."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hpcphotoz.attacks.gradient import evaluation_mode
from hpcphotoz.compute.precision import tf32
from hpcphotoz.data.format.manifest import Header
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.redshift_pdf import RedshiftPdf
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.output import number_of

_SAME_SCALE = 0.01  # pixel scales from a WCS and from a survey's description differ by less
_ROWS = 256  # objects of a forward pass of `predict_pdfs`


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


def named(network: RedshiftNetwork) -> str:
    """The network in a message: its `title` where it has one, as a module that no run trained, or its run."""
    return str(getattr(network, "title", f"run '{network.name}'"))


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
    parameter = next(network.module.parameters(), images)  # a module without any is on no device
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise BadInput(f"{who}: {name}: a {type(tensor).__name__}: want a torch tensor")
        wanted = (rows, *rest.get(name, ())), torch.int64 if name == "object_id" else torch.float32
        if (tuple(tensor.shape), tensor.dtype) != wanted:
            if name == "images" and tensor.ndim == 3:  # images[0] in place of images[:1]
                raise BadInput(
                    f"{who}: images of one object, {tuple(tensor.shape)}: give a batch, images[None]"
                )
            raise BadInput(
                f"{who}: {name} of shape {tuple(tensor.shape)} and {tensor.dtype}, but "
                f"{named(network)} takes {wanted[0]} and {wanted[1]}"
            )
        if tensor.device != parameter.device:
            raise BadInput(f"{who}: {name} on {tensor.device}, but {named(network)} is on {parameter.device}")
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
            f"{named(network)}: logits of shape {tuple(logits.shape)} for {number_of(len(images), 'object')} "
            f"and {network.bins.n} bins: the network and its configuration do not belong together"
        )
    bad = ~torch.isfinite(logits).all(dim=1)
    if bad.any():
        raise BadInput(
            f"{named(network)}: the output for object {int(object_id[bad][0])} is not finite: "
            "has the training diverged? use an earlier checkpoint"
        )
    return torch.softmax(logits, dim=1)


def predict_pdfs(
    network: RedshiftNetwork, images: Tensor | npt.NDArray[Any], ebv: Tensor | npt.NDArray[Any]
) -> RedshiftPdf:
    """Predict the PDFs of any number of objects, some hundred at a time, as `compute_pdfs` does.

    Args:
        network: the trained network.
        images: (N, B, H, W) nMgy: a float32 tensor on the network's device, or a numpy array of any numbers.
        ebv: (N,) mag, likewise.

    Raises:
        BadInput: as `check_tensors` and `compute_pdfs`, or an array that does not hold numbers.
    """
    device = next(network.module.parameters()).device
    x, e = _to_tensor("images", images, device), _to_tensor("ebv", ebv, device)
    check_tensors(network, "predict", images=x, ebv=e)
    pdf = np.empty((len(x), network.bins.n), np.float32)
    number = torch.arange(len(x), device=device)
    for first in range(0, len(x), _ROWS):
        rows = slice(first, first + _ROWS)
        pdf[rows] = compute_pdfs(network, x[rows], e[rows], number[rows]).cpu().numpy()
    return RedshiftPdf(pdf, network.bins)


def _to_tensor(name: str, values: Tensor | npt.NDArray[Any], device: torch.device) -> Tensor:
    """A numpy array as a float32 tensor on a device; anything else as it is, for `check_tensors`."""
    if not isinstance(values, np.ndarray):
        return values
    if values.dtype.kind not in "fiub":
        raise BadInput(f"predict: {name} of type {values.dtype}: want real numbers")
    with np.errstate(over="ignore"):  # infinite in float32: `check_tensors` names the object
        return torch.from_numpy(np.array(values, np.float32, order="C")).to(device)
