"""Running statistics of normalisation layers: found, and kept while a pass is only measured.

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
