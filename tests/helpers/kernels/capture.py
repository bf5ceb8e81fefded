"""Detects operators that a CUDA graph may not capture, on fake CUDA tensors, without a GPU."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers.paths import ROOT

_READS = (
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "unique",
    "_unique2",
)
_WRITES = ("copy_", "_to_copy", "index_put", "_index_put_impl", "index_copy", "scatter", "masked_scatter")


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators that read a CUDA tensor on the host, or copy between host and device.

    Attributes:
        found: the operator and the line of code of each, as text.
        names: of all operators.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = str(func).removeprefix("aten.").split(".")[0].rstrip("_")
        self.names.add(str(func))
        given = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        try:
            out = func(*args, **(kwargs or {}))
        except Exception:
            self._note(str(func))  # the size of the result is known on the device alone
            raise
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        devices = {t.device.type for t in (*given, *made)}
        if "cuda" in devices:
            indices = args[1] if name.startswith(("index", "_index")) and len(args) > 1 else ()
            boolean = isinstance(indices, (list, tuple)) and any(
                isinstance(i, Tensor) and i.dtype == torch.bool for i in indices
            )
            # A number on the host is an argument of the kernel; anywhere else it is copied.
            crosses = len(devices) > 1 and name in [write.rstrip("_") for write in _WRITES]
            if name in _READS or boolean or crosses:
                self._note(str(func))
        return out

    def _note(self, name: str) -> None:
        ours = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(ROOT)]
        ours = [
            f
            for f in ours
            if ".venv" not in f.filename and "tests" not in Path(f.filename).relative_to(ROOT).parts
        ]
        where = f"{ours[-1].filename}:{ours[-1].lineno}: {ours[-1].line}" if ours else "outside the package"
        self.found.append(f"{name} at {where}")


@contextmanager
def fake_gpu(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes tensors on "cuda" fake, as while a CUDA graph is captured: operators check and compute nothing.

    Backward passes are left out: torch runs those of CUDA tensors on a thread of the device.
    """
    from hpcphotoz.kernels import checks

    with patch.context() as local, FakeTensorMode(allow_non_fake_inputs=True):
        local.setattr(checks, "on_device", lambda tensor: nullcontext())
        local.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        local.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)
        local.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        local.setattr(torch.autograd, "grad", _zeros)
        local.setattr(Tensor, "backward", lambda self, *a, **k: None)
        yield


def _zeros(loss: Tensor, x: Tensor, *args: Any, **options: Any) -> tuple[Tensor]:
    assert loss.requires_grad
    return (torch.zeros_like(x),)
