"""Right gradients of bfloat16 convolutions over small maps on CPUs.

Where some weights of a kernel meet padding alone, such as the outer ones of 3x3 on a map of one pixel, the
gradient of a bfloat16 convolution with respect to its weights holds memory that nothing has written: NaN, or
any number (torch 2.11 and 2.13 with oneDNN, AVX-512). In float32 it is right, and such maps are so small that
the precision costs no time.
"""

from functools import cache, partial

import torch
from torch import Tensor, nn


def keep_small_maps_right(network: nn.Module) -> None:
    """Let the convolutions of a network on a CPU compute in float32 where bfloat16 may go wrong.

    Args:
        network: changed in place; its parameters and their names are as before. Convolutions that override
            `nn.Conv2d._conv_forward`, or call torch otherwise, stay as they are.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and type(module)._conv_forward is nn.Conv2d._conv_forward:
            module._conv_forward = partial(_convolve, module)  # type: ignore[method-assign]


@cache
def meets_padding_alone(size: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether some weight along one axis of a kernel meets no pixel of a map of `size` pixels."""
    outputs = range((size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)
    return any(
        all(not 0 <= out * stride + weight * dilation - padding < size for out in outputs)
        for weight in range(kernel)
    )


def _convolve(module: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    low = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if not low or not _is_small(module, x):
        return _forward(module, x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        given = x.float(), weight.float(), None if bias is None else bias.float()
        return _forward(module, *given).to(torch.bfloat16)


def _forward(module: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = nn.Conv2d._conv_forward(module, x, weight, bias)
    return out


def _is_small(module: nn.Conv2d, x: Tensor) -> bool:
    kernel, dilation, padding = module.kernel_size, module.dilation, module.padding
    if padding == "same":
        padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    elif isinstance(padding, str):  # valid
        padding = (0, 0)
    axes = zip(x.shape[2:], kernel, module.stride, padding, dilation, strict=True)
    return any(meets_padding_alone(*axis) for axis in axes)
