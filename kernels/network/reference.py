"""Bias, PReLU and pooling after a convolution in plain torch: the definition of `prelu_pool`, the CPU path.

Shared arguments:

    x           (N, C, H, W) float32 or bfloat16: the output of a convolution without its bias
    bias        (C,) float32 or bfloat16: added to each channel
    slope       (C,) float32 or bfloat16: of the PReLU, where x + bias is not positive
    pooling     what follows the PReLU, one of `POOLINGS`

Everything is computed in float32, and each result is rounded once, to the type of what it belongs to.
"""

import torch
from torch import Tensor
from torch.nn import functional

POOLINGS = ("none", "halve", "smooth", "smooth_edge")


def prelu_pool(x: Tensor, bias: Tensor, slope: Tensor, pooling: str) -> Tensor:
    """`pool` of max(y, 0) + slope min(y, 0), y = x + bias: (N, C, H', W'), of the type of x."""
    y = _shifted(x, bias)
    # Not functional.prelu: autocast would round its arguments to bfloat16.
    return pool(torch.where(y > 0, y, _per_channel(slope) * y), pooling).to(x.dtype)


def prelu_pool_gradients(
    grad: Tensor, x: Tensor, bias: Tensor, slope: Tensor, pooling: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to x, bias and slope.

    With g the gradient with respect to the output of the PReLU: g where y = x + bias is positive and slope g
    elsewhere for x, the sum of the same over objects and pixels for the bias, the sum of g min(y, 0) for the
    slope.

    Args:
        grad: (N, C, H', W') of the type of x: with respect to the result of `prelu_pool`.
        x, bias, slope, pooling: see above.
    """
    y = _shifted(x, bias)
    g = pool_gradient(grad.float(), x.shape[2:], pooling)
    of_x = torch.where(y > 0, g, _per_channel(slope) * g)
    of_slope = torch.where(y > 0, 0, g * y).sum((0, 2, 3))
    return of_x.to(x.dtype), of_x.sum((0, 2, 3)).to(bias.dtype), of_slope.to(slope.dtype)


def prelu_pool_input_gradient(grad: Tensor, x: Tensor, bias: Tensor, slope: Tensor, pooling: str) -> Tensor:
    """The first of `prelu_pool_gradients` alone, which is what an attack needs."""
    y = _shifted(x, bias)
    g = pool_gradient(grad.float(), x.shape[2:], pooling)
    return torch.where(y > 0, g, _per_channel(slope) * g).to(x.dtype)


def pool(x: Tensor, pooling: str) -> Tensor:
    """Pool (N, C, H, W).

    Args:
        x: images.
        pooling: "none", unchanged; "halve", the mean over 2x2 with stride 2, where odd sizes are rounded up
            and the last mean is that of the pixels that there are; "smooth", the mean over each pixel, the
            next one of its row and the two below, with zeros beyond the last row and column (torch's
            padding); "smooth_edge", the same with the last row and column repeated, which is the mean over
            the pixels that there are (TensorFlow's SAME).
    """
    if pooling == "none":
        return x
    if pooling == "halve":
        # Nothing is padded; the last argument changes only what the Inductor of torch 2.13 makes of it:
        # without it the gradient was 2 to 4 times too small in the last row and column of an odd side.
        return functional.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
    # Repeating the edge gives the mean over the true pixels only: at the border each is counted twice.
    mode = "constant" if pooling == "smooth" else "replicate"
    return functional.avg_pool2d(functional.pad(x, (0, 1, 0, 1), mode), 2, 1)


def pool_gradient(grad: Tensor, size: torch.Size, pooling: str) -> Tensor:
    """Gradient of `pool` with respect to its input of (H, W) = `size`, from that by its output."""
    for dim, pixels in ((3, size[1]), (2, size[0])):
        grad = _along(grad, dim, pixels, pooling)
    return grad


def _along(grad: Tensor, dim: int, pixels: int, pooling: str) -> Tensor:
    # Every pooling is a mean of two along rows, and the same along columns.
    if pooling == "none":
        return grad
    alone = pixels % 2 == 1 if pooling == "halve" else pooling == "smooth_edge"
    last = torch.arange(pixels, device=grad.device) == pixels - 1
    own = torch.where(last, 1.0 if alone else 0.5, 0.5).view(-1, *[1] * (3 - dim))
    if pooling == "halve":
        return own * grad.repeat_interleave(2, dim).narrow(dim, 0, pixels)
    before = torch.cat([torch.zeros_like(grad.narrow(dim, 0, 1)), grad.narrow(dim, 0, pixels - 1)], dim)
    return own * grad + 0.5 * before


def _shifted(x: Tensor, bias: Tensor) -> Tensor:
    return x.float() + _per_channel(bias)


def _per_channel(values: Tensor) -> Tensor:
    return values.float()[:, None, None]
