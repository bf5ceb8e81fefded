"""Every rank tells in the key-value store what it does, and rank 0 writes it to the heartbeat file.

The traffic is bounded: a set of some 250 bytes a rank and interval, and one request by rank 0 for all of
them; 1024 ranks send 50 kB/s. No rank waits for another, and no step waits for a beat.
"""

import json
import logging
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from torch import distributed as dist

from hpcphotoz import heartbeat
from hpcphotoz.heartbeat import Beat, Heartbeat
from hpcphotoz.training.distributed.store import in_thread
from hpcphotoz.training.monitoring.own_work import OwnWork
from hpcphotoz.training.run.timers import COLLECTIVES, SAVING, VALIDATION, WAIT, Timers
from hpcphotoz.world import World

_PHASES = {
    "": heartbeat.STARTING,
    "data": heartbeat.READING,
    "attack": heartbeat.ATTACK,
    SAVING: heartbeat.SAVING,
    VALIDATION: heartbeat.VALIDATING,
    **dict.fromkeys((WAIT, *COLLECTIVES), heartbeat.WAITING),
}
_INTERVAL_S = 5.0
_ANSWER_S = 3.0  # for the store or the file system, once a rank is missing
_FINISHING_S = 1.0
_NAMED = 8
_log = logging.getLogger(__name__)


class BeatThread:
    """Sends the beats of this rank, and on rank 0 writes those of all to the run folder, until closed.

    Args:
        run: run folder, with its folder `logs`.
        world: all ranks.
        store: in which all ranks of this start meet; None: this is the only rank.
        timers: say in which section of a step this rank is.
        timeout_s: seconds after which a rank counts as lost; a beat comes at least 20 times in it.
        clock_ahead_s: seconds by which the clock of this host is ahead of that of rank 0's.
    """

    def __init__(
        self,
        run: Path,
        world: World,
        store: Any,
        timers: Timers,
        timeout_s: float,
        clock_ahead_s: float = 0.0,
    ) -> None:
        self.rank = world.rank
        self._run, self._world, self._timers, self._ahead_s = run, world, timers, clock_ahead_s
        # A connection of its own, which a wait of the main thread in the store does not block.
        self._store = store.clone() if store is not None else None
        self.interval_s = min(_INTERVAL_S, timeout_s / 20)
        self.state: Callable[[], tuple[str, int]] = lambda: ("rank", 0)  # role, steps taken
        self.work = OwnWork(timers)
        self._host, self._pid, self._begun = socket.gethostname(), os.getpid(), False
        self._newest: Heartbeat | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join(_FINISHING_S)

    def straggler_figures(self) -> dict[str, float | int | None]:
        """Which rank works longest for a step, and its seconds over the median of all ranks; by their beats.

        Empty on a single rank; null where no two ranks have told it yet. Attackers are not compared.
        """
        if self._world.size == 1:
            return {}
        beats = self._newest.beats if self._newest else ()
        works = {beat.rank: beat.work_s for beat in beats if beat.work_s is not None}
        if len(works) < 2:
            return {"slowest_rank": None, "straggler_ratio": None}
        slowest = max(works, key=lambda rank: works[rank])
        return {
            "slowest_rank": slowest,
            "straggler_ratio": works[slowest] / max(statistics.median(works.values()), 1e-9),
        }

    def newest(self) -> Heartbeat | None:
        """The newest beats of all ranks, for a message about a lost one: of the store, else of the file.

        None: neither answers within 3 seconds.
        """
        for read in (self._collected_now, self._of_file):
            with suppress(TimeoutError, dist.DistError):
                if (found := in_thread(read, time.monotonic() + _ANSWER_S)) is not None:
                    return found
        return None

    @property
    def now(self) -> float:
        """Seconds since 1970 by the clock of rank 0's host."""
        return time.time() - self._ahead_s

    def _beat(self) -> None:
        while not self._done.is_set():
            self._send(self._own())
            self._done.wait(self.interval_s)
        # The store ends with rank 0: the others send no last beat to it.
        if self._world.is_first:
            self._send(self._own(heartbeat.ENDED))

    def _own(self, phase: str | None = None) -> Beat:
        timers, (role, step), now = self._timers, self.state(), self.now
        section, since = timers.section, now - (time.monotonic() - timers.since)
        self._begun = self._begun or section != ""
        if phase is None:
            between = section == "" and self._begun
            phase = heartbeat.PASSES if between else _PHASES.get(section, heartbeat.PASSES)
        work_s = self.work.mean_s
        return Beat(self._world.rank, self._host, self._pid, role, step, phase, since, now, work_s)

    def _send(self, own: Beat) -> None:
        try:
            if self._store is not None:
                self._store.set(f"beat/{own.rank}", json.dumps(asdict(own)))
            if self._world.is_first:
                self._newest = self._collected(own)
                heartbeat.write_heartbeat(self._run, self._newest)
        except (dist.DistError, OSError) as error:
            # The run goes on: a full disk is reported by those who must write.
            _log.info("no heartbeat: %s", error)

    def _collected_now(self, _: threading.Event) -> Heartbeat | None:
        return self._collected(self._own())

    def _of_file(self, _: threading.Event) -> Heartbeat | None:
        return heartbeat.read_heartbeat(self._run)

    def _collected(self, own: Beat) -> Heartbeat:
        """This rank's beat and the newest ones of others."""
        found = [own]
        if self._store is not None:
            others = (rank for rank in range(self._world.size) if rank != own.rank)
            keys = [f"beat/{rank}" for rank in others]
            if not self._store.check(keys):  # at the start
                keys = [key for key in keys if self._store.check([key])]
            if keys:
                found += heartbeat.beats_of([json.loads(text) for text in self._store.multi_get(keys)])
        beats = tuple(sorted(found, key=lambda beat: beat.rank))
        return Heartbeat(own.time, self.interval_s, beats)


class LastWords:
    """What ranks last said they do, for the message about a lost one.

    Args:
        beats: of this rank; None: it sends none yet.
    """

    def __init__(self, beats: BeatThread | None) -> None:
        self._heartbeat = beats.newest() if beats else None
        self._own, self._now = (beats.rank, beats.now) if beats else (0, 0.0)

    def about(self, rank: int) -> str:
        """What a rank that is not there did last, in brackets; "": unknown."""
        beat = next((beat for beat in self._beats if beat.rank == rank), None)
        return f" (last seen {heartbeat.clock(beat.time)}: {beat.text})" if beat else ""

    def hung(self, missing: Collection[int]) -> str:
        """A clause on the ranks that send no beats, or on the one that is behind; "": no such rank is known.

        Args:
            missing: numbers of the ranks that have ended or cannot be reached.
        """
        found = self._heartbeat
        if found is None:
            return ""
        if self._now - found.time > found.stale_s:  # of the file: rank 0, which writes it, is silent
            silent = [beat for beat in found.beats if beat.rank == 0]
        else:
            silent = found.silent()
        silent = [beat for beat in silent if beat.rank not in (self._own, *missing)]
        named = [f"{beat.name} is silent since {heartbeat.clock(beat.time)}, {beat.text}" for beat in silent]
        if named:
            more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
            return ", ".join(named[:_NAMED]) + more
        if missing or (last := found.behind(self._own)) is None:
            return ""
        return f"{last.name} is behind, {last.text}"

    @property
    def _beats(self) -> tuple[Beat, ...]:
        return self._heartbeat.beats if self._heartbeat else ()
