"""Where a step's time goes: named stretches, timed on the clock or by CUDA events, and seen by the
profiler.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Timers:
    """Adds up the time of named phases while it is `active`; a phase within another counts for itself alone.

    On a GPU a phase is timed between two events on the stream that is current where it begins: nothing waits.

    Args:
        device: where the step runs.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.active = False
        self._on_gpu = device is not None and device.type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._inner: list[float] = []  # of the phases begun and not ended: seconds of those within
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """The time until the end of the block counts for a phase."""
        # Within a capture nothing is timed: the events would become part of the graph.
        if not self.active or (self._on_gpu and torch.cuda.is_current_stream_capturing()):
            yield
            return
        with torch.profiler.record_function(name):
            yield from self._on_stream(name) if self._on_gpu else self._on_clock(name)

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase until now."""
        if self._events:
            torch.cuda.synchronize()
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) / 1e3
        self._events.clear()
        return dict(self._seconds)

    def _on_clock(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self._inner.append(0.0)
        yield
        took = time.perf_counter() - start
        self._seconds[name] += took - self._inner.pop()
        if self._inner:
            self._inner[-1] += took

    def _on_stream(self, name: str) -> Iterator[None]:
        stream = torch.cuda.current_stream()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record(stream)
        yield
        end.record(stream)
        self._events.append((name, begin, end))
