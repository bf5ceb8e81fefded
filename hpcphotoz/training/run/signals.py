"""A request to stop: signals and the wall-time budget feed one flag, read between steps."""

import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import Self

_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_log = logging.getLogger(__name__)


class StopRequest:
    """Collects SIGUSR2, SIGTERM, SIGINT, SIGHUP and the end of the time budget; nothing is done inside the
    handler.

    Ranks must agree on the flag before they act on it: a signal reaches them at different steps. Earlier
    handlers are put back on leaving. A SIGHUP that nohup has ignored stays ignored.

    Args:
        wall_minutes: budget from now (minutes); 0: none.
    """

    def __init__(self, wall_minutes: float = 0) -> None:
        self._deadline = time.monotonic() + 60 * wall_minutes if wall_minutes else float("inf")
        self._reason = ""

    def __enter__(self) -> Self:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            kept = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
            self._before = {n: signal.signal(n, self._handle) for n in _SIGNALS if n not in kept}
        else:
            _log.warning("not in the main thread: signals will not stop this run cleanly")
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def reason(self) -> str:
        """Why this process should stop; empty: it should not."""
        if not self._reason and time.monotonic() > self._deadline:
            self._reason = "wall-time budget spent"
        return self._reason

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._reason and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C means it
            os.kill(os.getpid(), number)
        self._reason = f"{signal.Signals(number).name} received"
