"""Holds rank 0 in a save or a validation until a fault has struck, so that no busy machine makes it miss.

The driver asks for it by two files beside the record of the rank, and the rank looks for them: at its
beginning, and before its end, which for a save is before the rename that makes the checkpoint valid.

    driver   asks ───── sees "held" ─ lets it begin ─ delay ─ strikes ─ lets it end
    rank 0     └─ begins, "held", waits ──┘ writes, flushes ── waits ────┘ renames

The fault strikes at any instant in between; where the driver is late, at the last one. The rank waits for
LIMIT_S in all: if the driver is later than that, or has died, the rank goes on.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

LIMIT_S = 5.0  # below run.timeout_s of the training, so that no rank takes the held one for hung
_POLL_S = 0.001


class Hold:
    """The files of one kind of moment.

    Args:
        record: of the rank.
        mark: of the moment in the record, such as saving.
    """

    def __init__(self, record: Path, mark: str) -> None:
        self._begin, self._end = (record.with_suffix(f".{mark}-{place}") for place in ("begin", "end"))
        self._thread = 0  # of the rank, that is held
        self._until = 0.0

    def ask(self) -> None:
        """Hold the rank at its next moment; of the driver, as `let_begin` and `let_go`."""
        self._end.touch()
        self._begin.touch()  # last: a rank that is held at the beginning is held at the end

    def let_begin(self) -> None:
        """Let the rank go on to the end of the moment."""
        self._begin.unlink(missing_ok=True)

    def let_go(self) -> None:
        """Let the rank go on, wherever it is held, and hold it no more."""
        self.let_begin()
        self._end.unlink(missing_ok=True)

    def wait_to_begin(self, say: Callable[[], None]) -> None:
        """Wait at the beginning of a moment if the driver asks for it; of the rank, as `wait_to_end`.

        Args:
            say: called before the wait; tells the driver.
        """
        self._thread = 0
        if self._begin.exists():
            self._thread, self._until = threading.get_ident(), time.monotonic() + LIMIT_S
            say()
            self._wait(self._begin)

    def wait_to_end(self) -> None:
        """Wait before the end of a moment, if it was held at its beginning, by this thread."""
        if self._thread == threading.get_ident():
            self._thread = 0
            self._wait(self._end)

    def _wait(self, file: Path) -> None:
        while file.exists() and time.monotonic() < self._until:
            time.sleep(_POLL_S)
