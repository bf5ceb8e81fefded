"""Bias, PReLU and pooling at sizes of the Inception, and the operators of eager torch that compute the same.

Images are 64 pixels a side: `halve` follows the first convolution, `none` and `smooth` those of the first
inception module. Memory is channels_last. `prelu_halve_bf16` is the forward pass, `_backward` that with the
gradients of input, bias and slope, `_input` that of an attack, with the gradient of the input alone.
"""

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels.problem import Problem
from hpcphotoz.kernels.network import reference

SIZES = {"none": (64, 32), "halve": (64, 64), "smooth": (48, 32)}  # channels, pixels a side
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Eager torch rounds the sum, the PReLU, the mean and each gradient to bfloat16 (2^-9 of each); 16 times that.
ROUNDING = {"bf16": 2.0**-5, "fp32": 1e-5}


def activation_problems(n: int, device: torch.device) -> dict[str, Problem]:
    """Problems by name, for n objects."""
    found = {}
    for pooling, (channels, side) in SIZES.items():
        for name, dtype in TYPES.items():
            eager = Eager.drawn(n, channels, side, pooling, dtype, device)
            x, grad, given = eager.x, eager.grad, (eager.x, eager.bias, eager.slope, pooling)
            begin = f"prelu_{pooling}_{name}"
            for kind, function, arguments, read, written, call in (
                ("", "prelu_pool", given, (x,), grad, eager.forward),
                ("_backward", "prelu_pool_gradients", (grad, *given), (grad, x), x, eager.backward),
                ("_input", "prelu_pool_input_gradient", (grad, *given), (grad, x), x, eager.of_input),
            ):
                found[begin + kind] = Problem(
                    function, arguments, read, written, others={"eager": call}, rounding=ROUNDING[name]
                )
    return found


class Eager:
    """The passes as eager torch makes them: an operator each for bias, PReLU and pooling.

    Backward passes call the operators that autograd would, on the tensors that it would have kept: autograd
    itself runs on the stream of the forward pass, which a captured backward pass has not.

    Args:
        x: (N, C, H, W), the output of a convolution without its bias.
        grad: with respect to the pooled result.
        bias, slope: (C,) float32.
        pooling: as `reference.pool`.
    """

    def __init__(self, x: Tensor, grad: Tensor, bias: Tensor, slope: Tensor, pooling: str) -> None:
        self.x, self.grad, self.bias, self.slope, self.pooling = x, grad, bias, slope, pooling
        self._bias, self._slope = bias.to(x.dtype), slope.to(x.dtype)
        self._shifted = x + self._bias[:, None, None]
        self._activated = functional.prelu(self._shifted, self._slope)

    @staticmethod
    def drawn(
        n: int, channels: int, side: int, pooling: str, dtype: torch.dtype, device: torch.device
    ) -> "Eager":
        """Draw the inputs of n objects."""
        g = torch.Generator(device).manual_seed(0)
        half = side // 2 if pooling == "halve" else side
        x, grad = (
            torch.randn(n, channels, s, s, generator=g, device=device)
            .to(dtype)
            .contiguous(memory_format=torch.channels_last)
            for s in (side, half)
        )
        # Numbers of bfloat16: with a bias that is rounded, x + bias has another sign here and there.
        bias, slope = (
            (torch.rand(channels, generator=g, device=device) - 0.25).bfloat16().float() for _ in range(2)
        )
        return Eager(x, grad, bias, slope, pooling)

    def forward(self) -> Tensor:
        """The pooled result."""
        shifted = self.x + self._bias[:, None, None]
        return reference.pool(functional.prelu(shifted, self._slope), self.pooling)

    def backward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, bias and slope."""
        of_x, of_slope = self._backward()
        return of_x, of_x.sum((0, 2, 3)).float(), of_slope.sum((0, 2, 3)).float()

    def of_input(self) -> Tensor:
        """The gradient of x; torch computes the slope's too, pixel by pixel."""
        return self._backward()[0]

    def _backward(self) -> tuple[Tensor, Tensor]:
        g, whole = self.grad, self._activated
        if self.pooling == "halve":
            g = torch.ops.aten.avg_pool2d_backward(g, whole, [2, 2], [2, 2], [0, 0], True, False, None)
        elif self.pooling == "smooth":
            whole = functional.pad(whole, (0, 1, 0, 1))
            g = torch.ops.aten.avg_pool2d_backward(g, whole, [2, 2], [1, 1], [0, 0], False, True, None)
            g = functional.pad(g, (0, -1, 0, -1))
        slope = self._slope[None, :, None, None]
        found: tuple[Tensor, Tensor] = torch.ops.aten._prelu_kernel_backward(g, self._shifted, slope)
        return found
