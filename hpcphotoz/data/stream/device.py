"""Copies batches to a GPU on a CUDA stream of its own, while the previous batch is used.

    host      read 1   read 2      read 3
    copies        copy 1   copy 2      copy 3
    compute              step 1    step 2     step 3

A pinned buffer must not be written again before its copy has ended, so a host batch is kept until its event
has passed; memory on the GPU must not be given to another tensor of the copying stream while the computing
stream reads it, hence `record_stream`.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from hpcphotoz.data.stream.batch import Batch

# The host plans a step from these: reading them back from the GPU would synchronise.
_ON_HOST = ("position", "object_id", "random_key")


def batch_to_device(batch: Batch, device: torch.device, non_blocking: bool = False) -> Batch:
    """The batch with its tensors on a device, except those of `_ON_HOST`."""
    fields = vars(batch).items()
    tensors = [(k, value) for k, value in fields if isinstance(value, Tensor) and k not in _ON_HOST]
    # Images last: the labels are not pinned, and their copies would wait for the images' on the same stream.
    tensors.sort(key=lambda pair: pair[1].numel())
    moved = {name: value.to(device, non_blocking=non_blocking) for name, value in tensors}
    return replace(batch, **moved)  # type: ignore[arg-type]


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor from the host to a device without waiting.

    From memory that is not pinned, CUDA copies only after all earlier work of the stream, and the host waits.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def prefetch_to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches on a device; for a GPU the next one is copied while the last one is used.

    Their memory must be pinned: from other memory the copies would be synchronous.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch_to_device(batch, device)
        return
    copies = _copy_stream(device)
    coming: deque[tuple[Batch, torch.cuda.Event]] = deque()
    held: deque[tuple[Batch, torch.cuda.Event]] = deque()
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = batch_to_device(batch, device, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(copies)
        coming.append((moved, done))
        held.append((batch, done))
        while held and held[0][1].query():  # type: ignore[no-untyped-call]
            held.popleft()
        del batch, moved
        if len(coming) > 1:
            yield _after_copy(*coming.popleft(), device)
    while coming:
        yield _after_copy(*coming.popleft(), device)
    copies.synchronize()  # before the last host buffers return to their pool


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream for copies to a device. One a process: torch has 32 and hands them out in rotation."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _after_copy(batch: Batch, copied: torch.cuda.Event, device: torch.device) -> Batch:
    computing = torch.cuda.current_stream(device)
    computing.wait_event(copied)
    for value in vars(batch).values():
        if isinstance(value, Tensor) and value.is_cuda:
            value.record_stream(computing)
    return batch
