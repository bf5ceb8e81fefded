"""Shows what a kernel does wrong with memory: pixels it does not write, places outside its tensors.

On memory of its own a kernel that leaves out a pixel, reads past an end, or uses a lane that no load has
filled may pass all comparisons: new memory holds what was freed last, often the result of the reference.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor


@contextmanager
def poisoned() -> Iterator[None]:
    """Fills the memory of torch.empty and its kin with NaN, the largest integer or True, on any device."""
    was = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was[0])
        torch.utils.deterministic.fill_uninitialized_memory = was[1]  # type: ignore[attr-defined]


class OutsideError(Exception):
    """A kernel reads or writes memory that belongs to none of its tensors, or that it has to leave alone."""


_left_alone: list[tuple[int, int]] = []


@contextmanager
def left_alone(*tensors: Tensor) -> Iterator[None]:
    """Inside the block a `checked` kernel that reads or writes these dense tensors raises `OutsideError`."""
    _left_alone.extend(_extent(tensor) for tensor in tensors)
    try:
        yield
    finally:
        _left_alone.clear()


def checked(kernel: Any) -> Any:
    """A kernel under the interpreter, launched as before, with its memory watched.

    Lanes that a masked load does not fill hold NaN or the largest integer, where the interpreter has 0 and a
    GPU anything. A load or store outside the tensors that were given raises `OutsideError`.
    """
    return _Checked(kernel)


class _Checked:
    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **constants: Any) -> None:
            tensors = [t for t in (*args, *constants.values()) if isinstance(t, Tensor) and t.numel()]
            # NaN in unused lanes warns when it is cast or multiplied.
            with _watched([_extent(t) for t in tensors]), np.errstate(all="ignore"):
                self._kernel[grid](*args, **constants)

        return launch


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First address of a tensor, and the one past its last element."""
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


@contextmanager
def _watched(extents: list[tuple[int, int]]) -> Iterator[None]:
    interpreter = _interpreter()
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    load, store = builder.create_masked_load, builder.create_masked_store

    def watched_load(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any) -> Any:
        _check("reads", ptrs.data, mask.data, extents)
        if other is None:
            kind = interpreter._get_np_dtype(ptrs.get_element_ty())
            other = handle(np.full(ptrs.data.shape, _poison_of(kind), dtype=kind), ptrs.get_element_ty())
        return load(self, ptrs, mask, other, *rest)

    def watched_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _check("writes", ptrs.data, mask.data, extents)
        return store(self, ptrs, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = watched_load, watched_store
    try:
        yield
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store


def _interpreter() -> ModuleType:
    from triton.runtime import interpreter

    return interpreter  # type: ignore[no-any-return]


def _poison_of(kind: Any) -> Any:
    kind = np.dtype(kind)  # bfloat16 is held in 16-bit words: all ones are a NaN
    if kind.kind == "f":
        return np.nan
    return True if kind.kind == "b" else np.iinfo(kind).max


def _check(verb: str, addresses: Any, mask: Any, extents: list[tuple[int, int]]) -> None:
    used = np.broadcast_to(addresses, np.broadcast(addresses, mask).shape)[
        np.broadcast_to(mask, addresses.shape)
    ]
    outside = ~_within(used, extents)
    if outside.any():
        raise OutsideError(f"the kernel {verb} {int(outside.sum())} places outside its tensors")
    if (found := _within(used, _left_alone)).any():
        raise OutsideError(f"the kernel {verb} {int(found.sum())} places that it has to leave alone")


def _within(addresses: Any, extents: list[tuple[int, int]]) -> Any:
    inside = np.zeros(addresses.shape, dtype=bool)
    for first, end in extents:
        inside |= (addresses >= first) & (addresses < end)
    return inside
