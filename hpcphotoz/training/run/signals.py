"""A request to stop the run: signals and the wall-time budget set one flag, which is read between steps."""

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
    """A flag that SIGUSR2, SIGTERM, SIGINT, SIGHUP or the end of the wall-time budget set.

    The handlers only set the flag. Ranks agree on it before they act, because a signal reaches them at
    different steps. Leaving the context restores the earlier handlers. A SIGHUP that is ignored, as under
    nohup, stays ignored. The budget counts from now; 0 minutes: no limit.
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
        """Why this process should stop; "": it should not."""
        if not self._reason and time.monotonic() > self._deadline:
            self._reason = "wall-time budget spent"
        return self._reason

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._reason and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C ends the process at once
            os.kill(os.getpid(), number)
        self._reason = f"{signal.Signals(number).name} received"
