"""Running statistics of normalisation layers: found, kept while a pass is only measured, and put back.

`nn.BatchNorm*d`, `nn.SyncBatchNorm` and `nn.InstanceNorm*d` with `track_running_stats` change them in every
pass in training mode. The networks of this library have none.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Running means and variances of all layers, the same order on all ranks; empty: there are none."""
    layers = [part for part in module.modules() if isinstance(part, _NormBase)]
    both = [tensor for layer in layers for tensor in (layer.running_mean, layer.running_var)]
    return [tensor for tensor in both if tensor is not None]


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Give all buffers at the end the values that they have now."""
    buffers = list(module.buffers())
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, saved, strict=True):
                buffer.copy_(value)


class BufferCopy:
    """A copy of the buffers of a network, from which they get their values back, to the bit.

    Args:
        module: the network; its buffers must stay where they are, as they do while it is trained.
    """

    def __init__(self, module: nn.Module) -> None:
        kinds: dict[object, list[Tensor]] = {}
        for buffer in module.buffers():
            kinds.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        self._kinds = list(kinds.values())
        self._saved: list[Tensor] = []  # all buffers of a kind, one after the other

    def save(self) -> None:
        """Copy the values that the buffers have now."""
        self._saved = [_flat(buffers) for buffers in self._kinds]

    @torch.no_grad()
    def restore(self, where: Tensor | None = None) -> None:
        """Give the buffers the values of `save`.

        Args:
            where: () bool, on the device of the buffers: whether to; None: yes. No host waits for it.
        """
        for buffers, saved in zip(self._kinds, self._saved, strict=True):
            values = saved if where is None else torch.where(where, saved, _flat(buffers))
            parts = torch.split(values, [buffer.numel() for buffer in buffers])
            torch._foreach_copy_(
                buffers, [part.view(buffer.shape) for part, buffer in zip(parts, buffers, strict=True)]
            )


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
