"""Requests to stop a run: signals, the wall-time budget and a file STOP set one flag, read between steps.

Exit statuses of a rank, for launchers:

    0     finished (and, under torchrun, stopped: torchrun takes any other status for a failure)
    75    stopped and saved (EX_TEMPFAIL of sysexits.h): the same command goes on
    128+n ended without saving, because signal n came a second time
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self

STOP_FILE = "STOP"  # in the run folder
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Repeats of a signal within this time are one request: `timeout` of GNU signals the process, then its group.
_ONE_REQUEST_S = 1.0
# Between two looks for the file: a look asks the server of metadata, on Lustre for all that its users do.
_FILE_LOOK_S = 5.0
_log = logging.getLogger(__name__)


class WallTimeBudget:
    """A time to end by, with room for the save: 2 (longest save + longest step) + 5 seconds.

    A checkpoint may be due just before the last step, and on a GPU the stop comes a step later: hence twice.
    A step is the time between two looks, with what is saved, written or validated between them. The first is
    left out, because it compiles.

    Args:
        minutes: from now on; 0: no limit.
    """

    def __init__(self, minutes: float) -> None:
        self._deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.save_s: Callable[[], float] = lambda: 0.0  # seconds of the longest save so far
        self._looks, self._last_look, self._longest_step_s = 0, 0.0, 0.0

    @property
    def reserve_s(self) -> float:
        """Seconds that are kept for a last step and the save after it."""
        return 2 * (self.save_s() + self._longest_step_s) + 5

    def forget_looks(self) -> None:
        """Leave out the time until the next look: what comes is no step."""
        self._looks, self._longest_step_s = 0, 0.0

    def is_spent(self) -> bool:
        """Whether the run has to stop now; called after every step."""
        now = time.monotonic()
        if self._looks:
            self._longest_step_s = max(self._longest_step_s, now - self._last_look)
        self._looks, self._last_look = self._looks + 1, now
        return now + self.reserve_s > self._deadline


class StopRequest:
    """A flag that a signal, the end of the wall-time budget or the file STOP sets.

    Handlers of SIGUSR1, SIGUSR2, SIGTERM, SIGINT and SIGHUP only set it. Ranks agree on it before they act,
    because a signal reaches them at different steps. A signal that comes again, a second or more after the
    first of its kind, ends the process with status 128 + its number, also while the main thread waits for
    another rank; in a notebook, whose variables would be lost, a second SIGINT is a KeyboardInterrupt. The
    earlier handlers come back at the end. A SIGHUP that is ignored, as under nohup, stays ignored.

    Args:
        wall_minutes: the budget, from now on; 0: none.
        file: asks for a stop once it exists; looked for every 5 seconds. None: do not look.
    """

    def __init__(self, wall_minutes: float = 0, file: Path | None = None) -> None:
        self.budget = WallTimeBudget(wall_minutes)
        self._file, self._next_look = file, 0.0
        self._reason, self._settled = "", False
        self._first: dict[int, float] = {}  # when each signal came first

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._watch_repeats()
            kept = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
            self._before = {n: signal.getsignal(n) for n in SIGNALS if n not in kept}
            for number in self._before:
                signal.signal(number, self._handle)
        else:
            _log.warning("not in the main thread: signals will not stop this run cleanly")
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._earlier_fd)
            os.close(self._write_end)
            self._thread.join()

    @property
    def reason(self) -> str:
        """Why this process should stop; "": it should not. Read after every step."""
        spent = self.budget.is_spent()
        if not self._reason and spent:
            self._reason = "wall-time budget spent"
        if not self._reason and self._file and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _FILE_LOOK_S
            with suppress(OSError):  # the server does not answer: it is asked again
                if self._file.exists():
                    self._reason = f"file {self._file.name} found (remove it to go on)"
        return self._reason

    def settle(self) -> None:
        """Ignore further signals: the run has ended, and nothing is left to save.

        A launcher that sees one rank leave with status 75 sends SIGTERM to the others.
        """
        self._settled = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._reason = self._reason or f"{signal.Signals(number).name} received"
        if self._raises(number) and self._is_repeat(number):
            raise KeyboardInterrupt

    def _raises(self, number: int) -> bool:
        """Whether a repeat belongs to Python: to a notebook or a program of the user's."""
        return number == signal.SIGINT and self._before.get(number) is signal.default_int_handler

    def _is_repeat(self, number: int) -> bool:
        if number not in self._first:
            self._first[number] = time.monotonic()
            return False
        return time.monotonic() - self._first[number] >= _ONE_REQUEST_S and not self._settled

    def _watch_repeats(self) -> None:
        # The system's own handler writes the number of a signal to this pipe, whatever the interpreter does.
        read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._earlier_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, args=(read_end,), name="signals", daemon=True)
        self._thread.start()

    def _watch(self, read_end: int) -> None:
        while numbers := os.read(read_end, 64):
            if self._earlier_fd >= 0:
                with suppress(OSError):  # full, or closed: not ours
                    os.write(self._earlier_fd, numbers)
            for number in filter(SIGNALS.__contains__, numbers):
                if not self._raises(number) and self._is_repeat(number):
                    end_without_saving(number)
        os.close(read_end)


def end_without_saving(number: int) -> None:
    """End this process at once, with the status of one that a signal has ended."""
    text = f"hpcphotoz: {signal.Signals(number).name} received again: ended without saving; the same command "
    with suppress(OSError):  # a terminal that has gone
        os.write(2, f"{text}resumes from the newest checkpoint\n".encode())
    os._exit(128 + number)


def ignore_stops() -> None:
    """Ignore signals in a rank with nothing left to save: at exit Python restores the default, which kills.

    Seen: the time-limit signal came in the last 4 s of a finished run, and Slurm called the job FAILED.
    """
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
