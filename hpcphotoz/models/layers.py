"""Layers that the networks share."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcphotoz.kernels.backend import kernels_on
from hpcphotoz.kernels.network import reference
from hpcphotoz.models.view import View


class _Asinh(torch.autograd.Function):
    # On a CPU torch.asinh is not vectorised: it took 21 % of a training step, this form 4 %. The gradient is
    # written out because that of |x| would be 0 at 0, where a masked pixel lies.
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.square(x).add_(1).sqrt_().add_(x.abs()).log_().copysign_(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor | None:
        (x,) = ctx.saved_tensors
        return grads[0] * torch.rsqrt(x * x + 1) if ctx.needs_input_grad[0] else None


def asinh(x: Tensor) -> Tensor:
    """asinh(x) = sign(x) log(|x| + sqrt(x^2 + 1)), to 2.4e-7 absolutely; any shape, float32."""
    # torch 2.11 traces the function below with a gradient of exactly 0: a compiled attack would move nothing.
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.asinh(x)
    out: Tensor = _Asinh.apply(x)  # type: ignore[no-untyped-call]
    return out


class _FrozenPReLU(torch.autograd.Function):
    # torch's backward always computes the slopes' gradient too, elementwise: 10 to 19 ms on a CPU where these
    # two passes over 16 images take 2, and 16 to 24 % of a step of an attack.
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        slope = slope.to(x.dtype)
        ctx.save_for_backward(x, slope)
        return _prelu_along_rows(x, slope)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        x, slope = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None
        above = torch.ops.aten.threshold_backward(grads[0], x, 0)  # the gradient where x > 0, else 0
        return torch.lerp(above, grads[0], slope[:, None, None].expand_as(x)), None


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """max(x, 0) + slope min(x, 0) of (N, C, H, W) and (C,), faster where the slopes are frozen."""
    trained = slope.requires_grad and torch.is_grad_enabled()
    if x.device.type != "cpu" or trained or torch.compiler.is_compiling():
        return functional.prelu(x, slope)
    out: Tensor = _FrozenPReLU.apply(x, slope)  # type: ignore[no-untyped-call]
    return out


def _prelu_along_rows(x: Tensor, slope: Tensor) -> Tensor:
    # In channels_last order torch goes along the channels of a pixel, two vectors at a time: in bfloat16 it
    # computes 28 of 92 one by one, and all of 48, which takes five to nine times as long. Of a row of pixels
    # hardly any are left.
    if not x.is_contiguous(memory_format=torch.channels_last):
        return functional.prelu(x, slope)
    n, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(n * height, width * channels)
    y = functional.prelu(rows, slope.expand(width, channels).flatten())
    return y.view(n, height, width, channels).permute(0, 3, 1, 2)


class _Pool2x2(torch.autograd.Function):
    # The gradient of a mean over 2x2 is a quarter of it on each: one pass, where torch clears and adds (3.5
    # times slower on a CPU in bfloat16).
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, 2, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor | None:
        wanted = ctx.needs_input_grad[0]
        return functional.interpolate(0.25 * grads[0], scale_factor=2, mode="nearest") if wanted else None


class Normalise(nn.Module):
    """The first layer: compresses flux to numbers of order one, so that attacks still work on flux.

    Args:
        kind: "asinh": asinh(x / scale); "sqrt": sign(x)(sqrt(|x| + 1) - 1), as Pasquet et al. 2019, no scale.
        scale: per band, nMgy.
        view: what of the images is normalised; None: all of it.
    """

    scale: Tensor

    def __init__(self, kind: str, scale: tuple[float, ...], view: View | None = None) -> None:
        super().__init__()
        self.kind, self.view = kind, view
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """(N, B, H, W) nMgy -> the same shape, or (N, B, side, side) of the view; float32."""
        if self.view is not None:
            images = self.view(images)
        if self.kind == "asinh":
            return asinh(images / self.scale)
        # Written so that the gradient at 0 is 1/2: sign(x) alone would have none there.
        return images / (torch.sqrt(images.abs() + 1) + 1)


class FluxNetwork(nn.Module):
    """A network whose first layer is `normalise`, and whose second is a convolution."""

    normalise: Normalise

    def of_normalised(self, x: Tensor, ebv: Tensor) -> Tensor:
        """Logits (N, bins) of images that are normalised already; any further channels of them are 0.

        Args:
            x: (N, C, H, W), C at least the number of bands.
            ebv: (N,), E(B-V).
        """
        raise NotImplementedError


class OfNormalised(nn.Module):
    """A network behind its normalisation, as a module."""

    def __init__(self, network: FluxNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, ebv: Tensor) -> Tensor:
        """`FluxNetwork.of_normalised`."""
        return self.network.of_normalised(x, ebv)


class Convolution(nn.Conv2d):
    """nn.Conv2d, always with a bias."""

    bias: Tensor

    def of_padded(self, x: Tensor) -> Tensor:
        """The same of (N, C, H, W), whose channels beyond `in_channels` are 0."""
        out: Tensor = self._conv_forward(x, self.padded_weight(x), self.bias)
        return out

    def padded_weight(self, x: Tensor) -> Tensor:
        """The weight for (N, C, H, W), whose channels beyond `in_channels` are 0."""
        further = x.shape[1] - self.in_channels
        return functional.pad(self.weight, (0, 0, 0, 0, 0, further)) if further else self.weight


class Conv(nn.Module):
    """Convolution and PReLU per channel, initialised as Campagne's: Xavier uniform, bias 0.1, slope 0.25."""

    def __init__(self, inputs: int, outputs: int, size: int, padding: int) -> None:
        super().__init__()
        self.conv = Convolution(inputs, outputs, size, padding=padding)
        self.activ = nn.PReLU(outputs, init=0.25)
        self.fused = False  # see `fuse_activations`
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.constant_(self.conv.bias, 0.1)

    def forward(self, x: Tensor, halve: bool = False) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H', W'), or with `halve` the same through `pool`."""
        if self.fuses(x):
            return self.pooled(x, "halve" if halve else "none")
        y = self.activate(self.conv(x))
        return pool(y) if halve else y

    def of_padded(self, x: Tensor, halve: bool = False) -> Tensor:
        """The same of (N, C, H, W), whose channels beyond `inputs` are 0."""
        if self.fuses(x):
            return self.pooled(x, "halve" if halve else "none", self.conv.padded_weight(x))
        y = self.activate(self.conv.of_padded(x))
        return pool(y) if halve else y

    def activate(self, y: Tensor) -> Tensor:
        """The PReLU alone, of the convolution's output (N, outputs, H', W')."""
        return prelu(y, self.activ.weight)

    def fuses(self, x: Tensor) -> bool:
        """Whether bias, PReLU and pooling are one kernel: where `fused`, in eager passes on a GPU alone."""
        return self.fused and x.is_cuda and not torch.compiler.is_compiling()

    def pooled(self, x: Tensor, pooling: str, weight: Tensor | None = None) -> Tensor:
        """The layer (with another `weight`) and `reference.pool`; on a GPU the convolution and one kernel."""
        weight = self.conv.weight if weight is None else weight
        y = functional.conv2d(x, weight, padding=self.conv.padding)
        return kernels_on(y.device.type).prelu_pool(y, self.conv.bias, self.activ.weight, pooling)


def fuse_activations(network: nn.Module, on: bool = True) -> None:
    """Let the convolutions of a network use one kernel each for bias, PReLU and pooling, or not any more.

    Eager passes on a GPU alone use it; results differ by rounding. The Inception and the small CNN have such
    convolutions; other networks stay as they are. No run does this: `benchmarks.training.activations` times
    whether it pays.
    """
    for module in network.modules():
        if isinstance(module, Conv):
            module.fused = on


class Linear(nn.Module):
    """Linear layer, with ReLU unless it is the last; initialised as `Conv`."""

    def __init__(self, inputs: int, outputs: int, relu: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self._relu = relu
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.constant_(self.linear.bias, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, outputs)."""
        out: Tensor = self.linear(x)
        return functional.relu(out) if self._relu else out


def convolve_together(layers: list[Conv], x: Tensor) -> list[Tensor]:
    """The outputs of several layers for the same input, computed as one convolution.

    Args:
        layers: layers with 1x1 kernels and no padding.
        x: (N, inputs, H, W), the input of all of them.
    """
    weights, biases = [layer.conv.weight for layer in layers], [layer.conv.bias for layer in layers]
    y = functional.conv2d(x, torch.cat(weights), torch.cat(biases))
    # Split before the PReLU, so that its outputs are contiguous: the next convolution would copy slices.
    slices = torch.split(y, [len(bias) for bias in biases], dim=1)
    return [layer.activate(own) for layer, own in zip(layers, slices, strict=True)]


def pool(x: Tensor) -> Tensor:
    """Average over 2x2 with stride 2, odd sizes rounded up."""
    even = x.shape[-1] % 2 == x.shape[-2] % 2 == 0
    if even and x.device.type == "cpu" and not torch.compiler.is_compiling():
        out: Tensor = _Pool2x2.apply(x)  # type: ignore[no-untyped-call]
        return out
    return reference.pool(x, "halve")


def with_ebv(features: Tensor, ebv: Tensor) -> Tensor:
    """Flatten features and put E(B-V) beside them: (N, features + 1)."""
    return torch.cat([features.flatten(1), ebv[:, None].to(features.dtype)], dim=1)


def subsample_first(network: nn.Module) -> None:
    """Let strided 1x1 convolutions of few channels take every n-th pixel first: the same, by another path.

    The gradient by the weights of such a convolution ends the process on CPUs: in channels_last order oneDNN
    (torch 2.13) writes out of bounds, with AVX2 alone for fewer than 8 channels, with AVX-512 for fewer than
    16 and images of about 56 pixels or more.
    """
    for layer in network.modules():
        if not (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride != (1, 1)):
            continue
        if layer.padding in ((0, 0), "valid") and layer.groups == 1 and layer.in_channels < 16:
            layer.register_forward_pre_hook(partial(_subsample, stride=layer.stride))
            layer.stride = (1, 1)


def _subsample(_: nn.Module, given: tuple[Tensor, ...], stride: tuple[int, ...]) -> tuple[Tensor, ...]:
    return (given[0][..., :: stride[0], :: stride[1]], *given[1:])
