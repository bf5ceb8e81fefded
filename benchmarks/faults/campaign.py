"""Trains one run through a plan of faults: starts it again after each, and counts what was seen."""

import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.disk import SmallDisk, damage
from benchmarks.faults.job import Job
from benchmarks.faults.plan import FULL_DISK, HANG, MEETING, PAUSE, START, Fault, Layout
from benchmarks.faults.records import StartRecord
from benchmarks.faults.strike import Struck, patience_s, strike
from hpcphotoz.errors import BadInput
from hpcphotoz.training.run import checkpoint

_OWN_START = (START, MEETING)  # moments that a running start has behind it
_TRIES = 3  # of a fault, where starts end before it
_END_S = 600.0  # in which a start without faults ends
_FAILED = (1, 2)  # exit statuses of ranks that end because of another, or of a disk
_NO_ROOM = "No space left on device"
TOLD = ": skipped"


@dataclass
class Campaign:
    """A run that is trained through faults.

    Attributes:
        struck: how each fault was taken.
        findings: what should not have been, in words.
    """

    run: Path  # run folder
    folder: Path  # of records and output
    words: Callable[[Layout], Sequence[str]]  # command line of `hpcphotoz`
    timeout_s: float  # run.timeout_s
    disk: SmallDisk | None  # where the run folder is; None: no full disks
    chance: random.Random  # how checkpoints are damaged
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        self.struck: list[Struck] = []
        self.findings: list[str] = []
        self.records: list[StartRecord] = []
        self.layouts: list[Layout] = []
        self.counts = Counter[str]()
        self._torn: Path | None = None  # the damaged checkpoint that no start has told of
        self._damaged = set[Path]()  # by this campaign, and not written anew since
        self._stack = ExitStack()
        self._job: Job | None = None

    def endure(self, plan: Sequence[Fault], last: Layout) -> None:
        """Train to the end: every fault in turn, then a start without faults."""
        try:
            for fault in plan:
                self._endure(fault)
            self._finish(last)
        finally:
            self._stack.close()

    def _endure(self, fault: Fault) -> None:
        if fault.kind == FULL_DISK and self.disk is None:
            self.counts["disk_full_left_out"] += 1
            return
        for _ in range(_TRIES):
            if self._job is not None and (fault.when in _OWN_START or fault.kind == HANG):
                self._end_job("ended for the next fault", kill=True)
            job = self._job or self._start(fault.layout)
            struck = strike(job, fault, self.timeout_s, self.disk)
            if struck is not None:
                self._note(struck)
                if not struck.goes_on:
                    self._end_job()
                    self._after(fault)
                return
            finished = not job.ended(range(job.world_size), patience_s(self.timeout_s)) and _all_zero(job)
            self._end_job(None if finished else "ended before the fault")
            if finished:
                break
        self.findings.append(f"a fault did not come to strike: {fault}")

    def _start(self, layout: Layout) -> Job:
        number = len(self.records)
        self._stack = ExitStack()
        words = self.words(layout)
        self._job = self._stack.enter_context(Job(self.folder, number, layout.world_size, words))
        self.layouts.append(layout)
        return self._job

    def _end_job(self, finding: str | None = None, kill: bool = False) -> None:
        """Take down the running start, whatever is left of it, and what it has said."""
        job = self._job
        assert job is not None
        alive = job.alive
        self._stack.close()
        job.record.update()
        self.records.append(job.record)
        self._job = None
        said = [job.said(rank) for rank in range(job.world_size)]
        if any("Traceback (most recent call last)" in text for text in said):
            self.findings.append(f"start {job.number}: a traceback: {_last_line(said)}")
        if finding and not kill:
            lines = f"statuses {job.statuses}, alive {alive}: {_last_line(said)}"
            self.findings.append(f"start {job.number}: {finding}: {lines}")
        if self._torn is not None and job.record.resumed is not None:
            if any(TOLD in text and self._torn.name in text for text in said):
                self.counts["torn_told"] += 1
            else:
                self.findings.append(f"start {job.number}: says nothing of the damaged {self._torn.name}")
            self._torn = None

    def _note(self, struck: Struck) -> None:
        self.struck.append(struck)
        fault, hung = struck.fault, struck.hung
        self.say(
            f"start {struck.start}: {fault.kind} at {fault.when}, step {struck.step + 1}, rank {struck.rank}"
            f"{', in a save' * struck.in_save}: {'goes on' if struck.goes_on else 'ended'} after"
            f" {struck.end_s:.1f} s{f', HUNG: {hung}' if hung else ''}"
        )
        found, others = list[str](), [rank for rank in range(len(struck.statuses)) if rank != struck.rank]
        if hung:
            found.append(f"ranks {hung} hung")
        elif fault.kind == PAUSE and not struck.goes_on:
            found.append(f"the run did not go on, exit statuses {struck.statuses}")
        elif not struck.goes_on and set(struck.statuses) - {*_FAILED, -signal.SIGKILL}:
            found.append(f"exit statuses {struck.statuses}")
        if struck.named is False:
            found.append(f"nobody names rank {struck.rank}")
        ranks = range(len(struck.statuses))
        if fault.kind == FULL_DISK and not any(_NO_ROOM in self._said(rank) for rank in ranks):
            found.append("nobody says that the disk is full")
        if found:
            said = " | ".join(_last_line([self._said(rank)]) for rank in others or [struck.rank])
            self.findings.append(f"start {struck.start}: {', '.join(found)} after {fault}: {said}")

    def _said(self, rank: int) -> str:
        assert self._job is not None
        return self._job.said(rank)

    def _after(self, fault: Fault) -> None:
        """After a start has ended: what was saved loads, every file of it; the newest may be damaged."""
        found = checkpoint.paths(self.run)
        good = {path for path in found if _loads(path)}
        self._damaged -= good
        for path in sorted({*found} - good - self._damaged):
            self.findings.append(f"{path.name} does not load after {fault}")
        steps = sorted({checkpoint.step_of(path) for path in good})
        if found and not steps:
            self.findings.append(f"no checkpoint loads after {fault}")
        if fault.torn and len(steps) > 1 and self._torn is None:
            self._torn = next(path for path in found if checkpoint.step_of(path) == steps[-1])
            self._damaged.add(self._torn)
            self.say(f"  {self._torn.name}: {damage(self._torn, self.chance)}")
            self.counts["torn"] += 1

    def _finish(self, layout: Layout) -> None:
        for _ in range(_TRIES):
            job = self._job or self._start(layout)
            hung = job.ended(range(job.world_size), _END_S)
            finished = not hung and _all_zero(job)
            self._end_job(None if finished else f"did not finish, alive: {hung}")
            if finished:
                return
        self.findings.append("the run was not finished")


def _loads(path: Path) -> bool:
    try:
        checkpoint.load(path)
    except BadInput:
        return False
    return True


def _all_zero(job: Job) -> bool:
    return set(job.statuses) == {0}


def _last_line(texts: Sequence[str]) -> str:
    """The last line that the first rank with any has written."""
    return next((lines[-1] for text in texts if (lines := text.splitlines())), "nothing was said")
