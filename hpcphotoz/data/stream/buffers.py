"""Pool of the memory buffers that batches are read into.

    acquire() ─► filled by reading threads ─► as_tensor() ─► tensors over it ─► the last one dies ─► acquire()

A buffer returns to the pool when the last tensor over it is garbage-collected: a consumer may keep a batch as
long as it likes.
"""

import weakref
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Bytes = npt.NDArray[np.uint8]


class BufferPool:
    """Reusable memory buffers of one size, allocated when none is free.

    Args:
        size: bytes each.
        pinned: page-locked, for asynchronous copies to a GPU.
    """

    def __init__(self, size: int, pinned: bool) -> None:
        self._size, self._pinned = size, pinned
        self._free: deque[Bytes] = deque()  # append and pop are atomic: finalizers run in any thread

    def acquire(self) -> Bytes:
        """A free buffer, allocated where there is none."""
        try:
            return self._free.pop()
        except IndexError:
            if self._pinned:
                return np.asarray(torch.empty(self._size, dtype=torch.uint8, pin_memory=True).numpy())
            return np.empty(self._size, np.uint8)  # numpy asks for huge pages: fewer faults than torch.empty

    def as_tensor(self, buffer: Bytes, shape: tuple[int, ...], dtype: Any) -> torch.Tensor:
        """A tensor over the start of a buffer, which is free again when the tensor and its views are gone."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        view = buffer[:count].view(dtype).reshape(shape)
        back = weakref.finalize(view, self._free.append, buffer)
        back.atexit = False
        return torch.from_numpy(view)
