"""Lets networks use fused activations on a CPU, through the operators that they use on a GPU."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hpcphotoz.kernels.backend import kernels_on
from hpcphotoz.models import layers


def fused_on_cpu(patch: pytest.MonkeyPatch, prelu_pool: Callable[..., Tensor] | None = None) -> None:
    """Makes `fused` count on a CPU.

    Args:
        patch: pytest's fixture.
        prelu_pool: stands in for the operator of this name.
    """
    from hpcphotoz.kernels.network.prelu_pool import prelu_pool as operator

    kernels = replace(kernels_on("cpu"), prelu_pool=prelu_pool or operator)
    patch.setattr(layers, "kernels_on", lambda device: kernels)
    patch.setattr(layers.Conv, "fuses", lambda self, x: self.fused and not torch.compiler.is_compiling())


class _Launched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, slope: Tensor, pooling: str) -> Tensor:
        from hpcphotoz.kernels.network import forward

        ctx.save_for_backward(x, bias, slope)
        ctx.pooling = pooling
        return forward.launch(x, bias, slope, pooling)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from hpcphotoz.kernels.network import backward

        x, bias, slope = ctx.saved_tensors
        all_ = any(ctx.needs_input_grad[1:3])
        found = backward.launch(grads[0], x, bias, slope, ctx.pooling, parameters=all_)
        return (*found, None) if all_ else (found[0], None, None, None)


def launched(x: Tensor, bias: Tensor, slope: Tensor, pooling: str) -> Tensor:
    """The operator `prelu_pool` with its gradients by the kernels, under the interpreter on a CPU."""
    found: Tensor = _Launched.apply(x, bias, slope, pooling)  # type: ignore[no-untyped-call]
    return found
