"""A checksum over the content of a checkpoint: its tensors and plain values, whatever file holds them.

torch's zip files carry checksums that torch.load does not compare: a flipped bit in a tensor is read as
another weight.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import xxhash
from torch import Tensor

_CHUNK_BYTES = 1 << 24  # 2 ms; no thread waits longer for the interpreter


def content_checksum(state: Mapping[str, Any]) -> str:
    """XXH3-128 of all keys, plain values and tensors on the host, as 32 hexadecimal digits.

    Args:
        state: nested dicts, lists and tuples of tensors and of plain values (numbers, texts, None). Types,
            shapes and the memory order of tensors count as well.
    """
    found = xxhash.xxh3_128()
    _add(state, found.update)
    return found.hexdigest()


def _add(value: object, update: Callable[[Any], object]) -> None:
    if isinstance(value, Tensor):
        order = sorted(range(value.dim()), key=value.stride, reverse=True)
        update(f"tensor {value.dtype} {tuple(value.shape)} {order}\0".encode())
        # In the order of the memory, so that no copy is made.
        flat = value.detach().permute(order).contiguous().reshape(-1).view(torch.uint8).numpy()
        for start in range(0, len(flat), _CHUNK_BYTES):
            update(flat[start : start + _CHUNK_BYTES])
    elif isinstance(value, Mapping):
        update(f"dict {len(value)}\0".encode())
        for key, item in value.items():
            update(f"{key!r}\0".encode())
            _add(item, update)
    elif isinstance(value, list | tuple):
        update(f"list {len(value)}\0".encode())
        for item in value:
            _add(item, update)
    else:
        update(f"{value!r}\0".encode())
