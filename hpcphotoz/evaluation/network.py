"""The interface of a trained network to evaluation and prediction, and its PDFs."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hpcphotoz.attacks.passes.gradient import evaluation_mode
from hpcphotoz.compute.precision import tf32
from hpcphotoz.data.format.manifest import Header
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.redshift_pdf import RedshiftPdf
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.layers import FluxNetwork
from hpcphotoz.models.view import View
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


@runtime_checkable
class ImageBatch(Protocol):
    """Images with their labels, such as an `api.StampBatch`."""

    @property
    def images(self) -> Tensor: ...  # (N, B, H, W) float32, nMgy
    @property
    def ebv(self) -> Tensor: ...  # (N,) float32, mag
    @property
    def object_id(self) -> Tensor: ...  # (N,) int64
    @property
    def bands(self) -> tuple[str, ...]: ...  # of the images, in their order


Numbers = Tensor | npt.NDArray[Any]


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


def check_names(networks: Sequence[RedshiftNetwork]) -> None:
    """Raise BadInput for two networks of the same name."""
    names = [network.name for network in networks]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise BadInput(f"two runs are called '{twice}': rename one folder to tell them apart")


def view_of(network: RedshiftNetwork) -> View:
    """What the network sees of stamps: all of them, if it is not one of this library."""
    module = network.module
    view = module.normalise.view if isinstance(module, FluxNetwork) else None
    return view or View(network.stamp, 1)


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
            found, takes = f"shape {tuple(tensor.shape)}", str(wanted[0])
            if tuple(tensor.shape) == wanted[0]:
                found, takes = f"type {tensor.dtype}", str(wanted[1])
            raise BadInput(f"{who}: {name} of {found}, but {named(network)} takes {takes}")
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


def compute_pdfs(
    network: RedshiftNetwork,
    images: Tensor,
    ebv: Tensor,
    object_id: Tensor,
    forward: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """PDFs of images, (N, bins) float32 probabilities: the softmax of `compute_logits`, as there."""
    return torch.softmax(compute_logits(network, images, ebv, object_id, forward), dim=1)


@torch.no_grad()
def compute_logits(
    network: RedshiftNetwork,
    images: Tensor,
    ebv: Tensor,
    object_id: Tensor,
    forward: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Logits of images, (N, bins) float32, in evaluation mode and in float32 without TF32.

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
    return logits


def predict_pdfs(
    network: RedshiftNetwork,
    images: Numbers | ImageBatch | Iterable[ImageBatch],
    ebv: Numbers | Sequence[float] | float | None = None,
) -> RedshiftPdf:
    """Predict the PDFs of any number of objects, some hundred at a time, as `compute_pdfs` does.

    Args:
        network: the trained network.
        images: (N, B, H, W) nMgy: a tensor on the network's device, or a numpy array, of any real numbers; or
            a batch, or a dataset as its batches, which bring their E(B-V).
        ebv: (N,) mag, likewise, or one number for all objects.

    Raises:
        BadInput: as `check_tensors` and `compute_pdfs`, values that are no real numbers, a batch of other
            bands, or an E(B-V) that is missing, or given beside a batch.
    """
    device = next(network.module.parameters()).device
    if isinstance(images, Tensor | np.ndarray):
        if ebv is None:
            raise BadInput("predict: ebv is missing: give (N,) mag, or one number for all objects")
        x = _to_tensor("images", images, device)
        e = _to_tensor(
            "ebv",
            np.full(len(x) if x.ndim else 0, ebv) if isinstance(ebv, int | float | np.number) else ebv,
            device,
        )
        check_tensors(network, "predict", images=x, ebv=e)
        return RedshiftPdf(_pdfs_of(network, x, e, torch.arange(len(x), device=device)), network.bins)
    batches = [images] if isinstance(images, ImageBatch) else images
    if ebv is not None or not isinstance(batches, Iterable):
        what = type(images).__name__
        raise BadInput(
            f"predict: images: a {what}: want a tensor or an array, with ebv, or a batch or a dataset of "
            "hpcphotoz.open without"
        )
    pdfs = [np.empty((0, network.bins.n), np.float32)]
    for batch in batches:
        if not isinstance(batch, ImageBatch) or tuple(batch.bands) != network.bands:
            found = getattr(batch, "bands", type(batch).__name__)
            raise BadInput(f"predict: a batch of {found}, but {named(network)} takes bands {network.bands}")
        given = {"images": batch.images, "ebv": batch.ebv, "object_id": batch.object_id}
        check_tensors(network, "predict", **given)
        pdfs.append(_pdfs_of(network, **given))
    return RedshiftPdf(np.concatenate(pdfs), network.bins)


def _pdfs_of(
    network: RedshiftNetwork, images: Tensor, ebv: Tensor, object_id: Tensor
) -> npt.NDArray[np.float32]:
    pdf = np.empty((len(images), network.bins.n), np.float32)
    for first in range(0, len(images), _ROWS):
        rows = slice(first, first + _ROWS)
        pdf[rows] = compute_pdfs(network, images[rows], ebv[rows], object_id[rows]).cpu().numpy()
    return pdf


def _to_tensor(name: str, values: object, device: torch.device) -> Tensor:
    """Real numbers as a float32 tensor; those of numpy and of lists are put on the device."""
    if isinstance(values, list | tuple):
        try:
            values = np.asarray(values)
        except ValueError:
            raise BadInput(f"predict: {name}: a list of unequal lengths: want numbers") from None
    if isinstance(values, Tensor):
        if values.is_complex():
            raise BadInput(f"predict: {name} of type {values.dtype}: want real numbers")
        return values.float()
    if not isinstance(values, np.ndarray):
        what = type(values).__name__
        raise BadInput(f"predict: {name}: a {what}: want a tensor or an array of numbers")
    if values.dtype.kind not in "fiub":
        raise BadInput(f"predict: {name} of type {values.dtype}: want real numbers")
    with np.errstate(over="ignore"):  # infinite in float32: `check_tensors` names the object
        return torch.from_numpy(np.array(values, np.float32, order="C")).to(device)
