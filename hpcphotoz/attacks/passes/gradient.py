"""Input gradients of any model, at the cost of one forward pass and half a backward pass.

While an attack runs, parameters are frozen, the model is in evaluation mode, and a DistributedDataParallel
wrapper is bypassed (with it each step would cost a collective). Losses are summed over objects: with a mean,
bfloat16 gradients would underflow.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from hpcphotoz.attacks.ball import AttackBatch, layout
from hpcphotoz.attacks.losses import Loss, fused_loss
from hpcphotoz.compute.compiler import compiled
from hpcphotoz.compute.precision import tf32
from hpcphotoz.models.factory import ImagesOnly
from hpcphotoz.models.layers import FluxNetwork, OfNormalised

Model = Callable[..., Tensor]  # (images, ebv) -> logits, or (images,) -> logits; usually an nn.Module
_AUTOCAST_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # computed in the lower precision
_CHANNELS = 8  # 16 bytes in half precision: matrix units read multiples of it, cuDNN pads all other images


@dataclass(frozen=True)
class Passes:
    """How forward and backward passes are computed.

    Attributes:
        autocast: torch.bfloat16: precision of convolutions and matrix products, in the stop condition too;
            torch.float32: no autocast, also where the caller has one; None: the caller's autocast decides.
        tf32: whether a GPU may round the factors of float32 products to TF32; None: the caller's setting.
        compiled: use torch.compile; the first attack of a model and shape then takes a minute or more, and on
            a GPU so does each new batch size.
        rows: objects that go through all steps of the attack together; None: 16 on a CPU (their activations
            then stay in the cache, and no new memory is requested from the system), all on a GPU.
        replay: runs the attack as a CUDA graph on a GPU: a `cuda_graph.AttackGraphs` with its name bound.
    """

    autocast: torch.dtype | None = None
    compiled: bool = False
    rows: int | None = None
    replay: Callable[..., tuple[Tensor, ...]] | None = None
    tf32: bool | None = None


AS_IS = Passes()


class GradientResult(NamedTuple):
    """Result of one forward and backward pass."""

    grad: Tensor  # (N, B, H, W) of the summed loss, in the images' layout
    loss: Tensor  # (N,)
    outputs: Tensor  # (N, ...)


@dataclass(frozen=True)
class NormalisedPasses:
    """Passes of one of our networks in half precision, from its first convolution on.

    The normalisation before it is part of the step of the attack, which writes what the convolution reads.
    """

    forward: Model  # (normalised images (N, C, H, W), ebv) -> logits
    kind: str  # of the normalisation, as in `kernels.attack.pgd_normalised_reference.normalised`
    scale: Tensor  # (B,) float32, nMgy
    dtype: torch.dtype  # of the normalised images

    def empty(self, images: Tensor) -> Tensor:
        """Memory for normalised images (N, C, H, W) in channels_last: the bands padded to a multiple of 8."""
        n, bands, height, width = images.shape
        shape = n, -(-bands // _CHANNELS) * _CHANNELS, height, width
        return torch.empty(shape, dtype=self.dtype, device=images.device, memory_format=torch.channels_last)


class ImageLoss:
    """The loss of a model as a function of the images, with its gradient.

    Args:
        forward: the model.
        loss: the loss, per object.
        normalised: the passes of the model behind its normalisation; None: it has none of its own, or nothing
            would be saved.
    """

    def __init__(self, forward: Model, loss: Loss, normalised: NormalisedPasses | None = None) -> None:
        self._forward, self._loss, self.normalised = forward, loss, normalised

    def with_loss(self, loss: Loss) -> "ImageLoss":
        """The same model with another loss."""
        return ImageLoss(self._forward, loss, self.normalised)

    def with_forward(self, forward: Model) -> "ImageLoss":
        """The same loss of another model."""
        return ImageLoss(forward, self._loss)

    def gradient(self, adv: Tensor, batch: AttackBatch) -> GradientResult:
        """Loss, outputs and input gradient at `adv`; no gradient of a parameter is computed."""
        with torch.enable_grad():
            x = adv.detach().requires_grad_()
            outputs = self._outputs(x, batch)
            fused = fused_loss(self._loss, outputs.device)
            if fused:
                loss, of_outputs = fused.with_gradient(outputs.detach(), batch.labels)
                grad = _input_gradient(outputs, x, of_outputs)
            else:
                loss = self._loss(outputs, batch.labels)
                grad = _input_gradient(loss.sum(), x)
        return GradientResult(grad.contiguous(memory_format=layout(adv)), loss.detach(), outputs.detach())

    @torch.no_grad()
    def value(self, adv: Tensor, batch: AttackBatch) -> tuple[Tensor, Tensor]:
        """Outputs and loss (N,) at `adv`."""
        outputs = self._outputs(adv, batch)
        return outputs, self._loss(outputs, batch.labels)

    def _outputs(self, x: Tensor, batch: AttackBatch) -> Tensor:
        outputs = self._forward(x) if batch.ebv is None else self._forward(x, batch.ebv)
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"the model returned a {_describe(outputs)}: attacks want one tensor of outputs, a row an "
                "object; pass a function that picks it, such as lambda images, ebv: model(images, ebv)[0]"
            )
        return outputs


def _input_gradient(of: Tensor, x: Tensor, weight: Tensor | None = None) -> Tensor:
    if not of.requires_grad:
        raise ValueError(
            "the loss does not depend on the images by autograd: is the attack called under "
            "inference_mode, or is there a no_grad, detach or numpy inside the model?"
        )
    (grad,) = torch.autograd.grad(of, x, weight)
    return grad


def _describe(outputs: object) -> str:
    kind = type(outputs).__name__
    if isinstance(outputs, Mapping):
        return f"{kind} of {', '.join(map(repr, outputs))}"
    if isinstance(outputs, Sequence) and not isinstance(outputs, str):
        return f"{kind} of {len(outputs)} ({', '.join(type(part).__name__ for part in outputs)})"
    return kind


@contextmanager
def image_loss_of(model: Model, loss: Loss, device: torch.device, passes: Passes) -> Iterator[ImageLoss]:
    """Freeze the model and set the precision; yields the loss as a function of the images."""
    cast = passes.autocast or _callers_autocast(device)
    # No cache: it would keep the cast images of every step until the attack ends.
    low = cast not in (None, torch.float32)
    lower = nullcontext() if cast is None else torch.autocast(device.type, cast, low, cache_enabled=False)
    rounded = nullcontext() if passes.tf32 is None else tf32(passes.tf32)
    with frozen(model) as inner, lower, rounded:
        forward, weights = inner, dict[str, Tensor]()
        if passes.compiled:
            forward = compiled(inner, device)
        elif cast is not None and low and isinstance(inner, nn.Module):
            weights = _cast_weights(inner, cast)
            forward = _with_weights(inner, weights)
        normalised = None
        if cast is not None and low and isinstance(inner, FluxNetwork) and _writes_normalised(inner, device):
            behind = _with_weights(OfNormalised(inner), {f"network.{name}": w for name, w in weights.items()})
            if passes.compiled:  # the method, whose code is found again in the next attack
                behind = compiled(inner.of_normalised, device)
            first = inner.normalise
            normalised = NormalisedPasses(behind, first.kind, first.scale.flatten(), cast)
        yield ImageLoss(forward, loss, normalised)


def _writes_normalised(network: FluxNetwork, device: torch.device) -> bool:
    # On a CPU the step is no kernel of its own: nothing would be saved. Hooks want to see all calls.
    parts = network, network.normalise
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    return device.type == "cuda" and _is_ours(network) and network.normalise.view is None and not hooked


def _callers_autocast(device: torch.device) -> torch.dtype | None:
    """The dtype of the caller's autocast; None where it is off."""
    known = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if known else None


@contextmanager
def frozen(model: Model) -> Iterator[Model]:
    """Freeze a model: bare module, evaluation mode, no parameter requires a gradient; restored at the end.

    Freezing matters even with `autograd.grad`: torch.compile would compute the weight gradients all the same,
    and so would a Python `autograd.Function` that asks `ctx.needs_input_grad`. Only one thread at a time may
    attack a model.
    """
    inner = getattr(model, "_orig_mod", model)  # torch.compile around DDP
    inner = inner.module if isinstance(inner, DistributedDataParallel) else model
    if not isinstance(inner, nn.Module):  # a plain function: nothing to freeze
        yield inner
        return
    wanted = [parameter for parameter in inner.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with evaluation_mode(inner):
            yield inner
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode; each part's own mode is restored at the end."""
    was = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in was:
            part.training = training


def _cast_weights(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    # Autocast would cast frozen weights again at every step, 31 % of the time of the small CNN on a CPU. Only
    # for our own networks it is known that no layer leaves autocast and no weight is shared.
    if not _is_ours(module):
        return {}
    return {
        f"{path}.{name}" if path else name: parameter.detach().to(dtype)
        for path, layer in module.named_modules()
        if isinstance(layer, _AUTOCAST_LAYERS)
        for name, parameter in layer.named_parameters(recurse=False)
        if parameter.dtype == torch.float32
    }


def _with_weights(module: nn.Module, weights: dict[str, Tensor]) -> Model:
    return (lambda *arguments: functional_call(module, weights, arguments)) if weights else module


def _is_ours(module: nn.Module) -> bool:
    return type(module).__module__.startswith("hpcphotoz.models.") and not isinstance(module, ImagesOnly)
