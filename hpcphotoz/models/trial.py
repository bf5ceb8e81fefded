"""The trial of a network of the user: it is called once, and what does not fit is said in one line."""

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hpcphotoz.config import Model
from hpcphotoz.errors import BadInput, first_line


def try_network(network: nn.Module, model: Model, stamp: int, scale: tuple[float, ...]) -> None:
    """Compute logits of images and their gradient; layers that are made at their first call are made here.

    Args:
        network: called as network(images, ebv).
        model: its configuration.
        stamp: pixels a side.
        scale: per band, nMgy; the images are of this size.

    Raises:
        BadInput: it fails, changes the images, or gives no finite, differentiable logits (N, model.bins).
    """
    who, count, bands = f"model.name {model.name}", 3, len(scale)
    # Fluxes of either sign, as in a sky. Batches come in this memory order, in which `view` fails where
    # `reshape` and `flatten` do not.
    fluxes = torch.linspace(-1.0, 3.0, count * bands * stamp * stamp).reshape(count, bands, stamp, stamp)
    fluxes = (fluxes * torch.tensor(scale)[:, None, None]).contiguous(memory_format=torch.channels_last)
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    what = f"{who}: a pass over images {tuple(fluxes.shape)} in channels_last memory order"
    with torch.enable_grad():
        leaf = fluxes.clone().requires_grad_()
        images = leaf.clone()  # may be changed in place, which a leaf may not
        logits = attempt(what, network, images, torch.zeros(count))
    for part, training in modes:
        part.training = training
    if (
        not isinstance(logits, Tensor)
        or logits.shape != (count, model.bins)
        or not logits.is_floating_point()
    ):
        given = (
            f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        )
        wanted = f"want logits of shape ({count}, {model.bins}), one a redshift bin (model.bins)"
        raise BadInput(f"{who}: gives {given} for {count} images: {wanted}")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise BadInput(f"{who}: the network has no parameter to train")
    if not torch.equal(images.detach(), fluxes):
        raise BadInput(f"{who}: its forward changes the images in place: change a copy, as in images * 2")
    if not logits.isfinite().all():
        raise BadInput(f"{who}: gives NaN or infinite logits for finite images, some of negative flux")
    if not logits.requires_grad or not _reach(logits, leaf, who):
        without = "leave out no_grad, detach and numpy: attacks need it"
        raise BadInput(f"{who}: no gradient of the logits reaches the images: {without}")


def _reach(logits: Tensor, images: Tensor, who: str) -> bool:
    """Whether the logits are differentiable by the images."""
    gradient = attempt(
        f"{who}: the gradient by the images",
        torch.autograd.grad,
        logits.sum(),
        images,
        allow_unused=True,
    )
    return gradient[0] is not None


def attempt(what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call code of the user; its error is reported in one line with the place in its file."""
    try:
        return call(*arguments, **options)
    except BadInput:
        raise
    # Code of the user may raise anything.
    except (Exception, SystemExit) as error:
        raise BadInput(f"{what} fails: {where_raised(error)}") from None


def where_raised(error: BaseException) -> str:
    """Type and first line of an error, and the line of code at which it was raised."""
    text = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, SyntaxError):
        return f"{text} ({error.filename}, line {error.lineno})"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{text} ({last.filename}, line {last.lineno})"
