"""Bytes that a pass of a training step must move, counted as torch dispatches an eager pass."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LAYERS = frozenset(
    "convolution convolution_backward mm addmm bmm baddbmm "
    "avg_pool2d avg_pool2d_backward max_pool2d_with_indices max_pool2d_with_indices_backward "
    "_adaptive_avg_pool2d _adaptive_avg_pool2d_backward upsample_nearest2d "
    "native_batch_norm native_batch_norm_backward cudnn_batch_norm cudnn_batch_norm_backward "
    "native_group_norm native_layer_norm".split()
)


def bytes_moved(call: Callable[[], Iterable[Tensor]]) -> int:
    """The least bytes that a pass must read and write when all that can be fused is fused.

    The rule: each layer reads its input and its weights once and writes its output once, in the precision in
    which it takes and gives them. Layers are convolutions, matrix products, poolings and normalisations, and
    their backward passes (that of a convolution reads the gradient once for both of its products), and every
    operator that is not of torch itself. All else (activations, casts, pads, sums, losses) is fused into the
    layer that made its latest operand. Of it count the other operands, which lie in memory, such as the input
    of an activation in its backward pass; a result of as many elements takes the place of what the layer
    alone would have written, so that an activation's input and output are written as one. What is computed
    from a batch, weights or saved activations before a layer takes it costs nothing beside it. The layers
    that make the parts of a concatenation write it. Caches are not heeded.

    Args:
        call: runs the pass eagerly and returns what it is for, such as gradients: that must be written.
            Everything that it makes is kept in memory until the end.
    """
    counter = _Counter()
    with counter:
        results = call()
    for tensor in results:
        counter.write(tensor)
    return sum(counter.read_bytes.values()) + sum(counter.written_bytes.values())


def bytes_of_update(optimiser: torch.optim.Optimizer) -> int:
    """The least bytes of an update: each weight and moment read and written once, each gradient read once."""
    total = 0
    for group in optimiser.param_groups:
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = [t for t in optimiser.state[weight].values() if isinstance(t, Tensor)]
            moments = sum(t.nbytes for t in state if t.shape == weight.shape)
            total += weight.grad.nbytes + 2 * (weight.nbytes + moments)
    return total


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that groups, each a layer and what is fused into it, read and write.

    Attributes:
        read_bytes: by group, and the part of memory that it reads.
        written_bytes: by place: all tensors of one place are written as one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read_bytes: dict[tuple[int, int, int, torch.Size], int] = {}
        self.written_bytes: dict[tuple[int, int], int] = {}
        self._group: dict[int, int] = {}  # by storage, which wrote it; none: it was there before the pass
        self._place: dict[int, int] = {}  # by storage: the first of its place
        self._groups = 0
        self._kept: list[Tensor] = []  # memory that is freed would be given out again, under the same name

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self._kept += made
        known = {_storage(t) for t in given}
        if not func._schema.is_mutable and all(_storage(t) in known for t in made):
            return out  # a view
        if name == "cat":
            for tensor in given:
                if self._group_of(tensor):
                    self.write(tensor)
            return out
        operands, layer = _operands(name, args, given), name in LAYERS or "::" in name
        self._groups += layer
        group = self._groups if layer else max(map(self._group_of, operands), default=0)
        if group:
            own = [t for t in operands if self._group_of(t) == group]
            for tensor in operands:
                self._read(tensor, group)
            for tensor in made:
                like = next((t for t in own if t.numel() == tensor.numel()), tensor)
                self._place[_storage(tensor)] = self._place.get(_storage(like), _storage(like))
                self._group[_storage(tensor)] = group
        return out

    def write(self, tensor: Tensor) -> None:
        """Count a tensor that must lie in memory after its group."""
        storage = _storage(tensor)
        place = self._group_of(tensor), self._place.get(storage, storage)
        size = tensor.untyped_storage().nbytes()
        self.written_bytes[place] = max(size, self.written_bytes.get(place, 0))

    def _read(self, tensor: Tensor, group: int) -> None:
        writer = self._group_of(tensor)
        if writer == group:
            return
        if writer:
            self.write(tensor)
        part = group, _storage(tensor), int(tensor.storage_offset()), tensor.shape
        # An expanded tensor has fewer numbers in memory than elements.
        self.read_bytes[part] = min(tensor.nbytes, tensor.untyped_storage().nbytes())

    def _group_of(self, tensor: Tensor) -> int:
        return self._group.get(_storage(tensor), 0)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _operands(name: str, args: tuple[Any, ...], given: list[Tensor]) -> list[Tensor]:
    """The tensors that an operator must read: some are given more."""
    if name == "convolution_backward":
        gradient, image, weight = args[:3]
        of_image, of_weight, _ = args[-1]  # which gradients are wanted
        return [gradient, *([image] if of_weight else []), *([weight] if of_image else [])]
    if name == "copy_":
        return given[1:]
    return given[:1] if name in ("avg_pool2d_backward", "_adaptive_avg_pool2d_backward") else given
