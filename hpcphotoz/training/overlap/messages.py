"""Byte layout of the messages between learners and attackers: a header and numbers in one uint8 tensor.

    attacked images  header | scale (n, B) float32, only for int8 | n images, channels last
    weights          header | parameters one after the other

The header is eight int64: step (or version), then verdict or flags. In fp32 a message holds the attacked
images themselves. In bf16 and int8 it holds the *change* of each pixel, because bfloat16 images would lose
the attack in bright pixels (a pixel of 100 sky sigmas is rounded by 0.2). int8 counts in 127ths of the
greatest change of an object and band, so that no change becomes greater than that; bfloat16 rounds towards
zero for the same reason.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_HEADER = 64  # bytes
_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
_TYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


def header(buffer: Tensor) -> Tensor:
    """The (8,) int64 header of a message, as a view."""
    return buffer[:_HEADER].view(torch.int64)


@dataclass(frozen=True)
class ImageMessages:
    """Writes and reads messages of attacked images of one shape."""

    kind: str  # "fp32", "bf16" or "int8"
    shape: tuple[int, int, int]  # (B, H, W)
    device: torch.device

    def empty(self, n: int) -> Tensor:
        """An uninitialised message for n images, uint8."""
        scales = 4 * n * self.shape[0] if self.kind == "int8" else 0
        size = _HEADER + scales + n * math.prod(self.shape) * _BYTES[self.kind]
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def write(self, message: Tensor, rows: Tensor, adv: Tensor, clean: Tensor) -> None:
        """Write images to rows of a message. Other rows become NaN; in int8 they must not be read.

        Args:
            message: from `empty`.
            rows: (m,) int64.
            adv, clean: (m, B, H, W).
        """
        scale, numbers = self._views(message)
        if self.kind == "fp32":
            numbers.fill_(torch.nan).index_copy_(0, rows, adv)
            return
        change = adv - clean
        if scale is None:
            # Round towards zero: rounded to nearest, a change of eps became 1.004 eps.
            cut = (change.contiguous().view(torch.int32) & -65536).view(torch.float32)
            numbers.fill_(torch.nan).index_copy_(0, rows, cut.to(numbers.dtype))
            return
        greatest = change.abs().amax(dim=(2, 3))
        unit = torch.where(greatest > 0, greatest, 1.0) / 127
        scale.fill_(torch.nan).index_copy_(0, rows, greatest / 127)
        counts = (change / unit[:, :, None, None]).round_().clamp_(-127, 127)
        numbers.index_copy_(0, rows, counts.to(torch.int8))

    def read(self, message: Tensor, rows: Tensor, clean: Tensor) -> Tensor:
        """Read the attacked images at rows of a message, (m, B, H, W) float32; clean: (m, B, H, W)."""
        scale, numbers = self._views(message)
        found = numbers.index_select(0, rows)
        if self.kind == "fp32":
            return found
        change = found.float()
        if scale is not None:
            change = change * scale.index_select(0, rows)[:, :, None, None]
        return clean + change

    def _views(self, message: Tensor) -> tuple[Tensor | None, Tensor]:
        bands, height, width = self.shape
        body, scale = message[_HEADER:], None
        if self.kind == "int8":
            n = body.numel() // (4 * bands + math.prod(self.shape))
            scale = body[: 4 * n * bands].view(torch.float32).view(n, bands)
            body = body[4 * n * bands :]
        numbers = body.view(_TYPE[self.kind]).view(-1, height, width, bands)
        return scale, numbers.permute(0, 3, 1, 2)


class WeightMessages:
    """Writes and reads messages of the weights of a network, one after the other.

    Args:
        parameters: parameters and running statistics, in the same order on all ranks.
        kind: "fp32" or "bf16".
    """

    def __init__(self, parameters: Sequence[Tensor], kind: str) -> None:
        self._parameters, self._type = list(parameters), _TYPE[kind]
        self._device = self._parameters[0].device
        self._bytes = _HEADER + _BYTES[kind] * sum(p.numel() for p in self._parameters)

    def empty(self) -> Tensor:
        """An uninitialised message, uint8."""
        return torch.empty(self._bytes, dtype=torch.uint8, device=self._device)

    @torch.no_grad()
    def write(self, message: Tensor) -> None:
        """Copy the parameters into a message."""
        torch._foreach_copy_(self._views(message), [_flat(p) for p in self._parameters])

    @torch.no_grad()
    def read(self, message: Tensor) -> None:
        """Copy a message into the parameters, in place."""
        torch._foreach_copy_([_flat(p) for p in self._parameters], self._views(message))

    def _views(self, message: Tensor) -> list[Tensor]:
        numbers = message[_HEADER:].view(self._type)
        return list(torch.split(numbers, [p.numel() for p in self._parameters]))


def _flat(parameter: Tensor) -> Tensor:
    """A parameter's numbers in the order of its memory, (n,), as a view."""
    return parameter.detach().as_strided((parameter.numel(),), (1,), parameter.storage_offset())
