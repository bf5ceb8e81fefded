"""Captures any call as a CUDA graph: one launch replays it."""

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch

# In its first calls a library chooses algorithms and allocates workspace, which a capture does not allow.
_WARM_UP = 3
T = TypeVar("T")


def capture(call: Callable[[], T], device: torch.device) -> tuple[Callable[[], object], T]:
    """Capture a call as a CUDA graph.

    Args:
        call: called a few times before the capture, to warm up, and once in it.
        device: a CUDA device.

    Returns:
        A function that replays the call, and the output, which each replay overwrites.
    """
    side = _capture_stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # "thread_local": by default a CUDA call of any thread ends the capture, and one copies batches meanwhile.
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        out = call()
    return graph.replay, out


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream for captures on a device. One a process: torch has 32 in all and hands them out in turn."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
