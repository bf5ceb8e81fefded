"""Compiles the kernel of a launch for a GPU, on a machine without one, and counts its resources."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.bool: "i1"}
TYPES |= {torch.int64: "i64", torch.int32: "i32", torch.int16: "i16"}


@dataclass(frozen=True)
class Resources:
    """Threads, registers and memory that a compiled kernel uses."""

    threads: int  # per program
    registers: int  # per thread
    spilt: int  # bytes per thread in memory, for lack of registers


def ptx(patch: pytest.MonkeyPatch, module: ModuleType, launch: Callable[[], object]) -> str:
    """PTX of the kernel that `launch` would start on an H100; arguments as for `built`."""
    return str(built(patch, module, launch).asm["ptx"])


def resources(kernel: Any, folder: Path) -> Resources:
    """Threads, registers and spills of a kernel from `built`.

    Args:
        kernel: compiled for an NVIDIA or an AMD GPU.
        folder: for the assembler's files.
    """
    meta = kernel.metadata
    threads = meta.num_warps * meta.target.warp_size
    if "amdgcn" in kernel.asm:
        found = {name: int(n) for name, n in re.findall(r"\.(\w+_count):\s+(\d+)", kernel.asm["amdgcn"])}
        return Resources(threads, found["vgpr_count"], 4 * found["vgpr_spill_count"])
    from triton.backends.nvidia.compiler import get_ptxas

    assembler = get_ptxas(meta.target.arch).path
    (folder / "kernel.ptx").write_text(kernel.asm["ptx"])
    wanted = re.search(r"^\.target (\w+)", kernel.asm["ptx"], re.MULTILINE)
    assert wanted
    said = subprocess.run(
        [assembler, f"-arch={wanted[1]}", "-v", "kernel.ptx", "-o", "kernel.cubin"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stderr
    used, spilt = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    assert used and spilt, said
    return Resources(threads, int(used[1]), int(spilt[1]))


def built(
    patch: pytest.MonkeyPatch, module: ModuleType, launch: Callable[[], object], target: Any = None
) -> Any:
    """Compile the kernel that `launch` would start.

    Args:
        patch: pytest's fixture, of the calling test.
        module: the module of the kernel, which imports `wrap_triton`.
        launch: starts the kernel once, with tensors of any device.
        target: Triton's GPUTarget; an H100 by default.
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
    return compile(source, target=target or GPUTarget("cuda", 90, 32), options=options)


def _type(value: Any) -> str:
    return f"*{TYPES[value.dtype]}" if isinstance(value, Tensor) else "i32"
