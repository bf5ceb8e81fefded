"""Captures a call as a CUDA graph, which is replayed by one launch."""

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch

_WARM_UP = 3  # libraries choose algorithms and take workspace in their first calls, which a capture may not
T = TypeVar("T")


def capture(work: Callable[[], T], device: torch.device) -> tuple[Callable[[], object], T]:
    """Capture a call as a CUDA graph: how to replay it, and what each replay fills.

    Args:
        work: what is called, a few times before the capture too.
        device: a CUDA device.
    """
    side = _capture_stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads go on calling CUDA, as the one that copies batches: by default that ends a capture.
    with (
        torch.cuda.device(device),
        torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"),
    ):
        out = work()
    return graph.replay, out


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream for captures on a device: one a process, for torch has 32 and gives them out in turns."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
