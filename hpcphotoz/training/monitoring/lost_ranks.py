"""How long a rank waits for others, and the one message when another has died, hangs or is cut off."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from torch import distributed as dist

from hpcphotoz.config import Config
from hpcphotoz.errors import first_line
from hpcphotoz.output import say
from hpcphotoz.ranks import RankLost as RankLost
from hpcphotoz.training.distributed.presence import Presence
from hpcphotoz.training.monitoring.beats import BeatThread, LastWords
from hpcphotoz.training.run.timers import SAVING, VALIDATION, Timers
from hpcphotoz.world import World

_log = logging.getLogger(__name__)


class WaitLimits:
    """How long a rank waits for another: long at the start and around saves and validations, else short.

    A rank compiles in its first step, rank 0 alone waits for a slow file system, and attackers wait for a
    whole validation. Each change concerns the collectives that begin after it; those of a step begin after
    the agreement of all ranks on the step before, so that all of them have left the start by then.

    Args:
        start_s: run.start_timeout_s, in seconds; 0: twice `usual_s`.
        usual_s: run.timeout_s, in seconds.
    """

    def __init__(self, start_s: float, usual_s: float) -> None:
        self.start_s, self.usual_s = start_s or 2 * usual_s, usual_s
        self._groups: list[dist.ProcessGroup] = []
        self._long, self._steps, self._paused = True, 0, False
        self.sections = 0  # sections of steps that have begun

    @property
    def seconds(self) -> float:
        """The limit in force."""
        return self.start_s if self._long else self.usual_s

    @property
    def text(self) -> str:
        """The limit in force, with the name of its option."""
        return f"run.{'start_' if self._long else ''}timeout_s = {self.seconds:g} s"

    def add(self, group: dist.ProcessGroup | None) -> None:
        """Set the limit of a process group, now and at each change; a group without this rank is left out."""
        if isinstance(group, dist.ProcessGroup):
            self._groups.append(group)
            self._apply()

    def lengthen(self) -> None:
        """Wait long from now on, for a save, a validation, or the end."""
        self._set(True)

    def end_start(self) -> None:
        """The start is over: wait as usual from now on."""
        self._set(False)

    def begin_step(self, pauses: bool = False) -> None:
        """A step begins: wait long in the first, after a pause, and where `pauses` says that others pause."""
        self._set(self._steps == 0 or self._paused or pauses)
        self._steps, self._paused = self._steps + 1, False

    @property
    def in_first_step(self) -> bool:
        """Whether the first step of this process has not ended: all ranks wait for its outcome."""
        return self._steps < 2

    def begin_section(self, name: str) -> None:
        """A section of a step begins: in a save or a validation ranks wait long, and in the step after it."""
        self.sections += 1
        if name in (SAVING, VALIDATION):
            self._paused = True
            self.lengthen()

    def _set(self, long: bool) -> None:
        if long != self._long:
            self._long = long
            self._apply()

    def _apply(self) -> None:
        for each in self._groups:
            wait = timedelta(seconds=self.seconds)
            if hasattr(each, "set_timeout"):  # torch 2.13
                each.set_timeout(wait)
            else:
                dist.distributed_c10d._set_pg_timeout(wait, each)


@dataclass
class JoinedRanks:
    """What this rank knows of the others once all have joined."""

    presence: Presence | None  # None: there is one rank
    limits: WaitLimits
    clock_ahead_s: float = 0.0  # of this host, compared with that of rank 0
    beats: list[BeatThread] = field(default_factory=list)  # of the run, as long as it lasts

    @property
    def hosts(self) -> list[str]:
        """Names of the hosts of all ranks, in order."""
        return self.presence.hosts if self.presence else []


joined: list[JoinedRanks] = []  # of the default process group, as long as there is one


@dataclass
class RankMonitor:
    """Tells the other ranks what this one does, and sets how long it waits for them."""

    beats: BeatThread
    limits: WaitLimits

    def begin_step(self) -> None:
        """A step of a rank that trains begins."""
        self.limits.begin_step()
        self.beats.work.begin_step()

    def begin_attack(self, step: int, batches: int, config: Config) -> None:
        """A step of an attacker begins, whose messages may have to wait for a save or a validation.

        Args:
            step: counted from 0.
            batches: steps of an epoch.
            config: options of the run; learners are up to `overlap.max_staleness` steps behind.
        """
        steps = range(max(step - config.overlap.max_staleness, 1), step + 1)
        pauses = any(t % batches == 0 or t % config.run.checkpoint_steps == 0 for t in steps)
        self.limits.begin_step(pauses)


@contextmanager
def monitoring(run: Path, world: World, timers: Timers, limits: WaitLimits) -> Iterator[RankMonitor]:
    """Send and write the heartbeats of this rank during the block; arguments as `BeatThread`."""
    ranks = joined[-1] if joined else JoinedRanks(None, limits)
    store = ranks.presence.store if ranks.presence else None
    with BeatThread(run, world, store, timers, limits.usual_s, ranks.clock_ahead_s) as beats:
        timers.listeners.append(limits.begin_section)
        ranks.beats.append(beats)
        try:
            yield RankMonitor(beats, limits)
        finally:
            ranks.beats.remove(beats)


@contextmanager
def detect_lost_ranks(progress_message: Callable[[], str], limits: WaitLimits) -> Iterator[None]:
    """Turn the transport's error about a lost rank into one clear message.

    On a GPU no call fails: the host waits for the device, and the device for the other rank, until NCCL's own
    watchdog aborts the process. There a thread ends the process with status 1 once no section of a step has
    begun for the limit in force, and `progress_message` has stayed the same.

    Raises:
        RankLost: a collective or a message failed or took too long.
    """
    on_gpus = dist.is_available() and dist.is_initialized() and dist.get_backend() == "nccl"
    with _watchdog(progress_message, limits) if on_gpus else nullcontext():
        try:
            yield
        except RuntimeError as error:
            if not _is_transport(error):
                raise
            raise RankLost(_lost(progress_message(), limits, first_line(error))) from error


def _is_transport(error: RuntimeError) -> bool:
    # gloo's errors have no type of their own; their texts name its source files or the failed connection.
    words = "gloo|Connection closed by peer|Connection reset by peer|Timed out waiting|Socket Timeout"
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words.split("|"))


def _lost(progress_message: str, limits: WaitLimits, said: str) -> str:
    lost = f"another rank died, or did not answer for {limits.text} ({said})"
    more = "the newest lines of logs/rank-*.log say more; the same command resumes from the last checkpoint"
    who = [text for ranks in joined if (text := _who(ranks))]
    return ": ".join([progress_message, lost, *who, more])


def _who(ranks: JoinedRanks) -> str:
    """A clause on the ranks that have ended, cannot be reached, or hang; "": there is one rank."""
    if ranks.presence is None:
        return ""
    words = LastWords(ranks.beats[-1] if ranks.beats else None)
    text = ranks.presence.describe_missing(words.about, words.hung)
    ranks.presence.leave()
    return text


@contextmanager
def _watchdog(progress_message: Callable[[], str], limits: WaitLimits) -> Iterator[None]:
    done = threading.Event()

    def watch() -> None:
        seen, since = (progress_message(), limits.sections), time.monotonic()
        # NCCL's watchdog starts to count later, at the collective: this thread is the first to act.
        while not done.wait(min(1.0, limits.usual_s / 10)):
            if (now := (progress_message(), limits.sections)) != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > limits.seconds:
                text = _lost(seen[0], limits, "the GPU waits for it")
                _log.info("%s", text)
                say(f"hpcphotoz: error: {text}", sys.stderr)
                os._exit(1)  # the main thread is inside CUDA, where no exception reaches it

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
