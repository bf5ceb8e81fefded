"""Argument checks of the operators, and memory layouts as their kernels need them.

A kernel reads raw memory: an unexpected shape, type, layout or device gives wrong numbers or an illegal
access. The references of the kernels document shapes and types.
"""

from contextlib import AbstractContextManager
from typing import NamedTuple, Self

import torch
from torch import Tensor

GRADIENTS = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


class StepArguments(NamedTuple):
    """The arguments of a step in any ball, as `attack.reference` documents them."""

    adv: Tensor
    x0: Tensor
    grad: Tensor | None
    eps: Tensor
    step: Tensor
    lo: Tensor
    hi: Tensor
    mask: Tensor | None = None
    active: Tensor | None = None

    def checked(self) -> Self:
        """These arguments; raises ValueError where their shapes, types, layouts or devices differ."""
        check_images(self.x0, adv=self.adv)
        if self.grad is not None:
            check_like("grad", self.grad, self.x0, GRADIENTS)
        for name in ("eps", "step", "lo", "hi"):
            check_per_band(name, getattr(self, name), self.x0)
        check_mask(self.mask, self.x0)
        if self.active is not None:
            check_vector("active", self.active, self.x0, torch.bool)
        return self

    def of_kernel(self) -> tuple[tuple[Tensor | int, ...], dict[str, int]]:
        """The tensors and band strides of a kernel, in its order, and the constants of all step kernels.

        A kernel does not read a tensor that is None; `x0` takes its place.
        """
        tensors = (self.x0 if tensor is None else tensor for tensor in self)
        strides = (band_stride(values) for values in (self.eps, self.step, self.lo, self.hi))
        constants = {
            "BANDS": int(self.x0.shape[1]),
            "PIXELS": int(self.x0.shape[2] * self.x0.shape[3]),
            "CHANNELS_LAST": is_channels_last(self.x0),
            "STEPPED": self.grad is not None,
            "MASKED": self.mask is not None,
            "FLAGGED": self.active is not None,
        }
        return (*tensors, *strides), constants


def check_images(x0: Tensor, **others: Tensor | None) -> None:
    """Check `x0`, and the tensors that have to be float32 images like it.

    Raises:
        ValueError: a tensor of another shape, type, layout or device; names it.
    """
    check_dense("x0", x0, (torch.float32,))
    for name, tensor in others.items():
        if tensor is not None:
            check_like(name, tensor, x0, (torch.float32,))


def check_mask(mask: Tensor | None, x0: Tensor) -> None:
    """Check the mask of pixels that may change: like the images, bool; None passes."""
    if mask is not None:
        check_like("mask", mask, x0, (torch.bool,))


def check_per_band(name: str, values: Tensor, x0: Tensor) -> None:
    """Check `eps`, `step`, `lo` or `hi`: (B,) or (N, B), contiguous float32."""
    n, bands = x0.shape[:2]
    if values.shape not in ((bands,), (n, bands)):
        raise ValueError(f"{name} {tuple(values.shape)}: want (B,) = ({bands},) or (N, B) = ({n}, {bands})")
    _check_plain(name, values, x0, torch.float32)


def check_vector(name: str, values: Tensor, x0: Tensor, dtype: torch.dtype, strided: bool = False) -> None:
    """Check values per object: (N,), of `dtype`, contiguous unless they may be `strided`."""
    if values.shape != x0.shape[:1]:
        raise ValueError(f"{name} {tuple(values.shape)}: want (N,) = ({x0.shape[0]},)")
    _check_plain(name, values, x0, dtype, strided)


def check_dense(name: str, x0: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Check the images that the other tensors have to be like: (N, B, H, W), `dtypes`, `LAYOUTS`."""
    if x0.ndim != 4 or x0.dtype not in dtypes:
        raise ValueError(f"{name} {tuple(x0.shape)} {x0.dtype}: want (N, B, H, W) {_either(dtypes)}")
    if not any(x0.is_contiguous(memory_format=layout) for layout in LAYOUTS):
        raise ValueError(
            f"{name} has strides {x0.stride()}: want contiguous or channels_last, call .contiguous() first"
        )


def check_seen(x0: Tensor, seen: Tensor, grad: Tensor | None, scale: Tensor) -> None:
    """Check normalised images, (N, C, H, W) with C >= B, their gradient, and the scale, (B,) float32 nMgy."""
    n, bands, height, width = x0.shape
    check_dense("seen", seen, GRADIENTS)
    if seen.shape[1] < bands or seen.shape != (n, seen.shape[1], height, width):
        raise ValueError(f"seen {tuple(seen.shape)}: want ({n}, C, {height}, {width}), C at least {bands}")
    for name, tensor in (("x0", x0), ("seen", seen)):
        if not tensor.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(f"{name} has strides {tensor.stride()}: want channels_last")
        _check_device(name, tensor, x0)
    if grad is not None:
        check_like("grad", grad, seen, (seen.dtype,))
    if scale.shape != (bands,):
        raise ValueError(f"scale {tuple(scale.shape)}: want (B,) = ({bands},)")
    _check_plain("scale", scale, x0, torch.float32)


def check_key(key: Tensor, x0: Tensor) -> None:
    """Check seed and epoch of `attack.start_reference`: (2,) contiguous int64."""
    if key.shape != (2,):
        raise ValueError(f"key {tuple(key.shape)}: want (2,), the seed and the epoch")
    _check_plain("key", key, x0, torch.int64)


def check_like(name: str, tensor: Tensor, x0: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Check a tensor that has to have the images' shape, layout and device, and one of `dtypes`."""
    if tensor.shape != x0.shape or tensor.dtype not in dtypes:
        wanted = f"want {tuple(x0.shape)} {_either(dtypes)}, like the other images"
        raise ValueError(f"{name} {tuple(tensor.shape)} {tensor.dtype}: {wanted}")
    if not tensor.is_contiguous(memory_format=memory_format(x0)):
        call = f"call .contiguous(memory_format={memory_format(x0)}) first"
        raise ValueError(f"{name} has strides {tensor.stride()} and the images {x0.stride()}: {call}")
    _check_device(name, tensor, x0)


def is_channels_last(x0: Tensor) -> bool:
    """Whether images are channels_last; with one band or one pixel they count as contiguous."""
    return not x0.is_contiguous()


def memory_format(x0: Tensor) -> torch.memory_format:
    """The memory format of `x0`, to allocate a tensor like it."""
    return torch.channels_last if is_channels_last(x0) else torch.contiguous_format


def band_stride(values: Tensor) -> int:
    """Distance in memory between the values of two objects: 0 for (B,), B for (N, B)."""
    return 0 if values.ndim == 1 else values.shape[1]


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's GPU the current one, on which Triton launches. Does nothing for CPU tensors."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)


def _check_plain(name: str, values: Tensor, x0: Tensor, dtype: torch.dtype, strided: bool = False) -> None:
    if values.dtype != dtype:
        raise ValueError(f"{name} {values.dtype}: want {dtype}")
    if not strided and not values.is_contiguous():
        raise ValueError(f"{name} has strides {values.stride()}: call .contiguous() first")
    _check_device(name, values, x0)


def _check_device(name: str, tensor: Tensor, x0: Tensor) -> None:
    if tensor.device != x0.device:
        raise ValueError(f"{name} is on {tensor.device} and the images are on {x0.device}: want one device")


def _either(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(dtype) for dtype in dtypes)
