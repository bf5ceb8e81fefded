"""A copy of a run's state in the memory of the host, which a thread can write while training goes on."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]


class HostCopy:
    """Copies states into tensors that it keeps, so that only the first copy takes new memory.

    A later copy overwrites an earlier one. From a GPU the tensors are copied into pinned memory, on the
    stream that computes: the copy lies between two steps without the host waiting for it, and neither an
    update nor a CUDA graph can change a weight that is still to be copied. A side stream would win the time
    of the copy (10 ms for 300 MB at 30 GB/s, computed and not measured), once a save, and would need an event
    before every kind of update.
    """

    def __init__(self) -> None:
        self._tensors: dict[tuple[Any, ...], Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def of(self, state: State) -> State:
        """Start to copy a state of nested dicts, lists, tensors and plain values; returns the copy.

        The copy may be read after `wait`.
        """
        self._copied = None
        found: State = self._copy(state, ())
        return found

    def wait(self) -> None:
        """Wait, in any thread, until the GPU has copied all tensors."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(self, value: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach(), path)
        if isinstance(value, Mapping):
            made = copy.copy(value)  # with the attributes that torch gives to a state dict
            for key, item in value.items():
                made[key] = self._copy(item, (*path, key))  # type: ignore[index]
            return made
        if isinstance(value, list | tuple):
            return type(value)(self._copy(item, (*path, number)) for number, item in enumerate(value))
        return value

    def _copy_tensor(self, tensor: Tensor, path: tuple[Any, ...]) -> Tensor:
        held = self._tensors.get(path)
        form = tensor.shape, tensor.dtype, tensor.stride()
        if held is None or (held.shape, held.dtype, held.stride()) != form:
            # In the memory order of the tensor, which a resumed run takes over.
            held = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._tensors[path] = held
        held.copy_(tensor, non_blocking=tensor.is_cuda)
        if tensor.is_cuda:
            stream = torch.cuda.current_stream(tensor.device)
            if self._copied is None:
                self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(stream)  # again after every tensor: the last one counts
        return held
