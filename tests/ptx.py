"""What Triton makes of a launch for an H100, on a machine that has none."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.bool: "i1"}
TYPES |= {torch.int64: "i64", torch.int32: "i32", torch.int16: "i16"}


def ptx(patch: pytest.MonkeyPatch, module: ModuleType, launch: Callable[[], object]) -> str:
    """The assembly of the one kernel that `launch` would start.

    Args:
        patch: of the test that calls.
        module: where the kernel and the name `wrap_triton` are.
        launch: starts the kernel once, with tensors of any device.
    """
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    seen: list[tuple[Any, dict[str, Any]]] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            def record(*args: Any, **constants: Any) -> None:
                seen.append((self.kernel, dict(zip(self.kernel.arg_names, args, strict=False)) | constants))

            return record

    with patch.context() as local:
        local.setattr(module, "wrap_triton", Recorder)
        launch()
    ((kernel, values),) = seen
    options = {name: values.pop(name) for name in [*values] if name not in kernel.arg_names}  # num_warps
    constants = {p.name for p in kernel.params if p.is_constexpr}
    signature = {name: _type(value) for name, value in values.items() if name not in constants}
    aligned = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name in signature
        if isinstance(values[name], Tensor) or values[name] % 16 == 0
    }
    source = ASTSource(
        kernel,
        signature | dict.fromkeys(constants, "constexpr"),
        {name: values[name] for name in constants},
        aligned,
    )
    return str(compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])


def _type(value: Any) -> str:
    return f"*{TYPES[value.dtype]}" if isinstance(value, Tensor) else "i32"
