"""Convolutions and dense layers that can compute on channels padded with zeros to multiples of 8.

Matrix units want sizes in multiples of 8; the published networks have 5 bands, 92 channels, N + 1 features
and 180 bins. Parameters stay what they are: the wider weights are formed in each forward pass, and channels
of zeros stay zeros from layer to layer. `form.reform` is where this is asked for.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_MULTIPLE = 8

# What a layer takes, block by block: how many channels there are, and how many when padded. Concatenated
# outputs have a gap after each block.
Blocks = tuple[tuple[int, int], ...]


def room(channels: int) -> int:
    """The next multiple of 8."""
    return -(-channels // _MULTIPLE) * _MULTIPLE


def blocks(channels: int | tuple[int, ...], pixels: int = 1) -> Blocks:
    """One block for each number of channels, of which each is flattened to so many pixels."""
    parts = (channels,) if isinstance(channels, int) else channels
    return tuple((part * pixels, room(part) * pixels) for part in parts)


def grown(x: Tensor, size: int, dim: int) -> Tensor:
    """`x` with zeros after it along `dim` (>= 0), up to `size`; `x` itself if it has that size."""
    gap = size - x.shape[dim]
    return functional.pad(x, (0, 0) * (x.dim() - 1 - dim) + (0, gap)) if gap else x


def _wide(weight: Tensor, bias: Tensor, inputs: Blocks) -> tuple[Tensor, Tensor]:
    pieces = torch.split(weight, [held for held, _ in inputs], dim=1)
    padded = [grown(piece, size, 1) for piece, (_, size) in zip(pieces, inputs, strict=True)]
    weight = torch.cat(padded, dim=1) if len(padded) > 1 else padded[0]
    outputs = room(len(bias))
    return grown(weight, outputs, 0), grown(bias, outputs, 0)


class Convolution(nn.Conv2d):
    """nn.Conv2d with a bias. When `padded` its outputs are too: to a multiple of 8 channels.

    Args:
        inputs: channels in; several numbers where the outputs of several layers are concatenated.
        outputs: channels out.
        size: of the kernel.
        options: of nn.Conv2d: stride and padding.
    """

    bias: Tensor

    def __init__(self, inputs: int | tuple[int, ...], outputs: int, size: int, **options: Any) -> None:
        taken = blocks(inputs)
        super().__init__(sum(held for held, _ in taken), outputs, size, **options)
        self.padded, self._inputs = False, taken

    def parameters_in_form(self) -> tuple[Tensor, Tensor]:
        """Weight and bias as they are multiplied: as stored, or padded."""
        return _wide(self.weight, self.bias, self._inputs) if self.padded else (self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H', W')."""
        if not self.padded:
            return super().forward(x)
        weight, bias = self.parameters_in_form()
        return functional.conv2d(grown(x, weight.shape[1], 1), weight, bias, self.stride, self.padding)


class Dense(nn.Linear):
    """nn.Linear with a bias. When `padded` it is computed so, and its outputs are cut to what they are.

    Args:
        inputs: features in, or blocks of them.
        outputs: features out.
    """

    def __init__(self, inputs: int | Blocks, outputs: int) -> None:
        taken = blocks(inputs) if isinstance(inputs, int) else inputs
        super().__init__(sum(held for held, _ in taken), outputs)
        self.padded, self._inputs = False, taken

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, outputs)."""
        if not self.padded:
            return super().forward(x)
        weight, bias = _wide(self.weight, self.bias, self._inputs)
        out = functional.linear(grown(x, weight.shape[1], 1), weight, bias)
        return out if len(bias) == self.out_features else out[:, : self.out_features].contiguous()
