"""Named timers of the sections of a step, on the clock or by CUDA events; a profiler shows these names."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

WAIT = "wait for other ranks"
SAVING, VALIDATION = "saving", "validation"
AGREEMENT = "agreement of ranks"
COLLECTIVES = ("all-reduce", AGREEMENT)


class Timers:
    """Adds up seconds per named section while `active`; a nested section is not counted in the outer one.

    If the step's device is a GPU, a section is timed between two events on the stream that is current at its
    start, so that the host does not wait. Sections are named, and waits counted, also while not active.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.active = False
        self.section, self.since = "", time.monotonic()  # the innermost open section, and when it began
        self.waited_s = 0.0  # in sections WAIT
        self.listeners: list[Callable[[str], None]] = []  # called as a section begins, with its name
        self._on_gpu = device is not None and device.type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._inner: list[float] = []  # of each open section: seconds of the sections nested in it
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Context that times a section, and names it in `section` meanwhile."""
        outer, start = (self.section, self.since), time.monotonic()
        self.section, self.since = name, start
        for listener in self.listeners:
            listener(name)
        try:
            yield from self._timed(name)
        finally:
            if name == WAIT:
                self.waited_s += time.monotonic() - start
            self.section, self.since = outer if outer[0] else ("", time.monotonic())

    def seconds(self) -> dict[str, float]:
        """Seconds of each section so far."""
        if self._events:
            torch.cuda.synchronize()
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) / 1e3
        self._events.clear()
        return dict(self._seconds)

    def _timed(self, name: str) -> Iterator[None]:
        # A capture is not timed, because the events would become part of the graph.
        if not self.active or (self._on_gpu and torch.cuda.is_current_stream_capturing()):
            yield
            return
        with torch.profiler.record_function(name):
            yield from self._on_stream(name) if self._on_gpu else self._on_clock(name)

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
