"""The heartbeat file of a run, logs/heartbeat.json: what every rank does, and since when; needs no torch.

Rank 0 replaces it every few seconds, for all ranks: a file a rank would ask the server of metadata for two
operations a rank and interval, and the ranks have a key-value store in common anyway.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "heartbeat.json"  # in the folder `logs` of the run folder
_FORMAT = 1
_ALIVE = 6  # intervals without a beat after which a rank counts as hung
# What a rank does.
STARTING, READING, ATTACK, PASSES = "starting", "reading", "attack", "passes"
WAITING, SAVING, VALIDATING, ENDED = "waiting for ranks", "saving", "validating", "ended"


@dataclass(frozen=True)
class Beat:
    """What one rank does. Times are seconds since 1970 by the clock of rank 0's host."""

    rank: int
    host: str
    pid: int
    role: str  # "rank", "learner" or "attacker"
    step: int  # optimiser steps taken
    phase: str  # one of the constants of this module
    since: float  # when the phase began
    time: float  # of this beat
    work_s: float | None = None  # own work of a step, without waiting for other ranks; None: not measured

    @property
    def name(self) -> str:
        """As in "rank 1 on node1 (process 4711)"."""
        return f"rank {self.rank} on {self.host} (process {self.pid})"

    @property
    def text(self) -> str:
        """What the rank does and since when, as in "reading after step 17 since 12:00:03"."""
        return f"{self.phase} after step {self.step} since {clock(self.since)}"


@dataclass(frozen=True)
class Heartbeat:
    """The newest beats of all ranks that have sent one, in order of rank."""

    time: float  # when they were collected, by the clock of rank 0's host
    interval_s: float  # between two beats of a rank
    beats: tuple[Beat, ...]

    @property
    def stale_s(self) -> float:
        """Seconds without a beat after which a rank counts as hung, stopped or dead."""
        return _ALIVE * self.interval_s

    def is_fresh(self, now: float | None = None) -> bool:
        """Whether the run was alive a moment ago: for readers on file systems without locks.

        Args:
            now: seconds since 1970 by the clock of rank 0's host; that of this host by default. A clock that
                is behind counts as fresh.
        """
        ended = any(beat.rank == 0 and beat.phase == ENDED for beat in self.beats)
        return not ended and (time.time() if now is None else now) - self.time <= self.stale_s

    def silent(self, now: float | None = None) -> list[Beat]:
        """The last beats of ranks that have sent none for `stale_s` before `now` (default: `self.time`)."""
        now = self.time if now is None else now
        return [beat for beat in self.beats if now - beat.time > self.stale_s and beat.phase != ENDED]

    def behind(self, rank: int) -> Beat | None:
        """The rank for which `rank` seems to wait: of a lesser step, or longer in its phase; None: none is.

        A rank whose main thread hangs still sends beats, and its phase does not change.
        """
        working = [beat for beat in self.beats if beat.phase not in (WAITING, ENDED) or beat.rank == rank]
        last = min(working, key=lambda beat: (beat.step, beat.since), default=None)
        return last if last and last.rank != rank else None


def clock(seconds: float) -> str:
    """A time of the day for messages, from seconds since 1970."""
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def write_heartbeat(run: Path, heartbeat: Heartbeat) -> None:
    """Replace the heartbeat file of a run folder; it is not flushed to the disk.

    Raises:
        OSError: the file cannot be written.
    """
    path = run / "logs" / FILE
    temporary = path.with_name(f"{FILE}.{os.getpid()}.tmp")
    content = {"format": _FORMAT, "time": heartbeat.time, "interval_s": heartbeat.interval_s}
    try:
        temporary.write_text(json.dumps({**content, "ranks": [asdict(beat) for beat in heartbeat.beats]}))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_heartbeat(run: Path) -> Heartbeat | None:
    """The heartbeat of a run folder; None: it has none that this version can read."""
    try:
        content = json.loads((run / "logs" / FILE).read_text())
        if content["format"] != _FORMAT:
            return None
        return Heartbeat(content["time"], content["interval_s"], beats_of(content["ranks"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def beats_of(ranks: Sequence[dict[str, object]]) -> tuple[Beat, ...]:
    """Beats from their JSON objects; further keys, of a later version, are left out."""
    names = Beat.__dataclass_fields__
    return tuple(Beat(**{k: v for k, v in rank.items() if k in names}) for rank in ranks)  # type: ignore[arg-type]
