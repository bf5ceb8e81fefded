"""Operators for what follows a convolution: bias, PReLU and pooling, with their gradients.

Definition: `reference`. Eager torch passes over memory for the bias, the PReLU and the pooling, forward and
backward, and once more for each parameter's gradient; here a forward and a backward pass each read and write
once, and no activated tensor is kept for the backward pass. The operators run `forward` and `backward` on
CUDA tensors and the reference elsewhere; the kernels themselves run on CPU tensors under TRITON_INTERPRET=1.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from hpcphotoz.kernels import checks
from hpcphotoz.kernels.network import backward, forward, reference

TYPES = (torch.float32, torch.bfloat16)
_MOST_PIXELS = 2**31 - 2**16  # of all objects, counted in 32 bits


@triton_op("hpcphotoz::prelu_pool", mutates_args={})
def prelu_pool(x: Tensor, bias: Tensor, slope: Tensor, pooling: str) -> Tensor:
    """`reference.prelu_pool` as a torch operator: the kernel on CUDA, the reference elsewhere.

    Autograd differentiates it once. Where neither bias nor slope requires a gradient, that of x alone is
    computed; a second derivative is refused.

    Raises:
        ValueError: shapes, types, layouts or devices that do not belong together, an unknown pooling, or
            2^31 pixels or more.
    """
    _check(x, bias, slope, pooling)
    if x.is_cuda:
        return forward.launch(x, bias, slope, pooling)
    return _ordered(reference.prelu_pool(x, bias, slope, pooling), x)


@triton_op("hpcphotoz::prelu_pool_gradients", mutates_args={})
def prelu_pool_gradients(
    grad: Tensor, x: Tensor, bias: Tensor, slope: Tensor, pooling: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The torch operator: the kernel on CUDA, the reference elsewhere; ValueError as `prelu_pool`."""
    _check(x, bias, slope, pooling, grad)
    if x.is_cuda:
        of_x, of_bias, of_slope = backward.launch(grad, x, bias, slope, pooling)
    else:
        of_x, of_bias, of_slope = reference.prelu_pool_gradients(grad, x, bias, slope, pooling)
    return _ordered(of_x, x), of_bias, of_slope


@triton_op("hpcphotoz::prelu_pool_input_gradient", mutates_args={})
def prelu_pool_input_gradient(grad: Tensor, x: Tensor, bias: Tensor, slope: Tensor, pooling: str) -> Tensor:
    """The torch operator: the kernel on CUDA, the reference elsewhere; ValueError as `prelu_pool`."""
    _check(x, bias, slope, pooling, grad)
    if x.is_cuda:
        return backward.launch(grad, x, bias, slope, pooling, parameters=False)[0]
    return _ordered(reference.prelu_pool_input_gradient(grad, x, bias, slope, pooling), x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, slope, ctx.pooling = inputs
    ctx.save_for_backward(x, bias, slope)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, bias, slope = ctx.saved_tensors
    if any(ctx.needs_input_grad[1:3]):
        return *prelu_pool_gradients(grad, x, bias, slope, ctx.pooling), None
    return prelu_pool_input_gradient(grad, x, bias, slope, ctx.pooling), None, None, None


prelu_pool.register_autograd(_backward, setup_context=_save)


def _ordered(found: Tensor, x: Tensor) -> Tensor:
    return found.contiguous(memory_format=checks.memory_format(x))


def _check(x: Tensor, bias: Tensor, slope: Tensor, pooling: str, grad: Tensor | None = None) -> None:
    if pooling not in reference.POOLINGS:
        raise ValueError(f"pooling {pooling!r}: want one of {reference.POOLINGS}")
    checks.check_dense("x", x, TYPES)
    n, channels, height, width = x.shape
    if n * height * width > _MOST_PIXELS:
        raise ValueError(f"x {tuple(x.shape)}: want fewer than 2^31 pixels in all")
    for name, values in (("bias", bias), ("slope", slope)):
        plain = values.ndim == 1 and values.is_contiguous() and values.dtype in TYPES
        if not plain or len(values) != channels or values.device != x.device:
            raise ValueError(
                f"{name} {tuple(values.shape)} {values.dtype} on {values.device}: want contiguous (C,) = "
                f"({channels},), {' or '.join(map(str, TYPES))}, on {x.device}"
            )
    if grad is not None:
        if pooling == "halve":
            height, width = (height + 1) // 2, (width + 1) // 2
        wanted = (n, channels, height, width)
        if grad.shape != wanted or grad.dtype != x.dtype or grad.device != x.device:
            raise ValueError(
                f"grad {tuple(grad.shape)} {grad.dtype} on {grad.device}: "
                f"want {wanted} {x.dtype} on {x.device}"
            )
