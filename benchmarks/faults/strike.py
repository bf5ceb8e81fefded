"""Lets one fault strike a running start, and watches how the start ends."""

import re
import signal
import time
from dataclasses import dataclass, field

from benchmarks.faults.disk import SmallDisk
from benchmarks.faults.hold import Hold
from benchmarks.faults.job import Job
from benchmarks.faults.plan import FULL_DISK, HANG, KILL, MEETING, NODE, PAUSE, SAVE, START, VALIDATION, Fault

START_S = 180.0  # in which a start takes its first step, on a machine that does much else
MARGIN_S = 20.0  # beyond the timeout, in which a rank ends that has lost another
# Seconds by which a fault strikes later than the moment it waits for, at most: those of the moment itself.
_DELAY_S = {START: 4.0, MEETING: 0.3, SAVE: 0.01, VALIDATION: 0.1}
_STEP_S = 0.1
_HELD = {SAVE: ("saving", "saved"), VALIDATION: ("validation", "validated")}  # marks of begin and end
_MOMENTS = 8  # for as many it waits, where rank 0 was held to the limit before the fault could strike


@dataclass
class Struck:
    """How a start took a fault."""

    fault: Fault
    start: int  # number of the start
    rank: int
    killed: int = 0  # processes that got SIGKILL
    stopped: int = 0  # processes that got SIGSTOP
    step: int = -1  # last step that was begun before; -1: none
    in_save: bool = False  # rank 0 was writing a checkpoint, and did not end it
    hung: list[int] = field(default_factory=list)  # ranks that did not end, or did not go on, in time
    named: bool | None = None  # a survivor's message names the rank; None: there is no survivor
    statuses: list[int | None] = field(default_factory=list)  # exit status of every rank, as Popen gives it
    end_s: float = 0.0  # from the fault until the other ranks had ended
    goes_on: bool = False  # the start has survived


def names(text: str, rank: int) -> bool:
    """Whether a message of another rank names this one; "rank 0 says which" does not."""
    return re.search(rf"\brank {rank}\b(?! says)", text) is not None


def patience_s(timeout_s: float) -> float:
    """Seconds after which a rank that waits for a lost one hangs; starts and saves may wait twice as long."""
    return 2 * timeout_s + MARGIN_S


def strike(job: Job, fault: Fault, timeout_s: float, disk: SmallDisk | None) -> Struck | None:
    """Wait for the moment of a fault, let it strike, and wait for the end of the start.

    Args:
        job: the start.
        fault: what happens to it.
        timeout_s: run.timeout_s.
        disk: where the run folder is, for a full disk.

    Returns:
        None: a rank ended before the moment came.
    """
    marks = _HELD.get(fault.when)
    hold = Hold(job.record.ranks[0].path, marks[0]) if marks else None
    try:
        if not _comes(job, fault, hold) or len(job.alive) < job.world_size:  # one ended during the delay
            return None
        struck = Struck(fault, job.number, fault.rank_of(job.world_size), step=job.record.step)
        began = time.monotonic()
        _send(job, struck)
    finally:
        if hold:
            hold.let_go()
    others = [rank for rank in range(job.world_size) if rank != struck.rank]
    _watch(job, struck, others, timeout_s, disk)
    struck.end_s = struck.end_s or time.monotonic() - began
    job.record.update()
    struck.in_save = job.record.ranks[0].saving and fault.kind in (KILL, NODE)
    struck.statuses = job.statuses
    if fault.kind in (KILL, HANG) and others:
        struck.named = any(names(job.said(each), struck.rank) for each in others)
    return struck


def _comes(job: Job, fault: Fault, hold: Hold | None) -> bool:
    """Wait until a fault strikes; False: a rank has ended before. Afterwards rank 0 is held, if `hold`."""
    first = job.record.ranks[0]
    for _ in range(_MOMENTS):
        if not _moment(job, fault, hold):
            return False
        time.sleep(fault.delay * _DELAY_S.get(fault.when, _STEP_S))
        job.record.update()
        if hold is None or first.inside(*_HELD[fault.when]):
            return True
    return False


def _moment(job: Job, fault: Fault, hold: Hold | None) -> bool:
    """Wait until a fault may strike, but for its delay; False: a rank has ended before."""
    record = job.record
    if fault.when == START:
        return True
    if fault.when == MEETING:
        rank = fault.rank_of(job.world_size)
        return job.wait(lambda: record.ranks[rank].count("meeting") > 0, START_S)
    if not job.wait(lambda: record.step >= fault.step, START_S):
        return False
    if hold is None:
        return True
    before = record.count("held")
    hold.ask()
    came = job.wait(lambda: record.count("held") > before, START_S)
    hold.let_begin()
    return came


def _send(job: Job, struck: Struck) -> None:
    """Send the signal of a fault, if it has one."""
    kind, rank = struck.fault.kind, struck.rank
    if kind in (PAUSE, HANG):
        struck.stopped += job.send(rank, signal.SIGSTOP)
    for each in (set(job.alive) - {rank}) if kind == NODE else ():
        struck.killed += job.send(each, signal.SIGKILL)
    if kind in (KILL, NODE):
        struck.killed += job.send(rank, signal.SIGKILL)


def _watch(job: Job, struck: Struck, others: list[int], timeout_s: float, disk: SmallDisk | None) -> None:
    """Wait for the end of a start that was struck, or see it go on."""
    fault, rank, began, patience = struck.fault, struck.rank, time.monotonic(), patience_s(timeout_s)
    if fault.kind in (KILL, NODE):
        struck.hung = job.ended([rank, *others], patience)
    elif fault.kind == PAUSE:
        time.sleep(fault.delay * timeout_s / 4)
        job.send(rank, signal.SIGCONT)
        struck.goes_on = _goes_on(job, patience)
        struck.hung = [] if struck.goes_on else job.alive
    elif fault.kind == HANG:
        struck.hung = job.ended(others, patience)
        struck.end_s = time.monotonic() - began
        job.send(rank, signal.SIGCONT)  # it finds that the others have left
        struck.hung += job.ended([rank], patience)
    elif fault.kind == FULL_DISK:
        assert disk is not None
        job.wait(lambda: _ended_on_full(disk, job), patience, while_alive=False)
        struck.hung = job.alive
        disk.empty()


def _ended_on_full(disk: SmallDisk, job: Job) -> bool:
    """Keep the disk full; returns whether all ranks have ended."""
    disk.fill()
    return not job.alive


def _goes_on(job: Job, patience: float) -> bool:
    """Whether a start that was paused takes further steps, or comes to its end."""
    before = job.record.step
    if job.wait(lambda: job.record.step > before + 1, patience):
        return True
    return not job.ended(range(job.world_size), MARGIN_S) and set(job.statuses) == {0}
