"""Logs of a run's ranks: the newest file of a rank, its last lines, and what is written from then on."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.follow.failures import (
    TAIL,
    Failure,
    first_failure,
    killed_before,
    logged_failures,
    read_tail,
    recorded_failures,
)
from hpcphotoz.launch.follow.status import have_ended, read_status, read_statuses
from hpcphotoz.launch.follow.submissions import read_submissions
from hpcphotoz.provenance import read_starts

_POLL_S = 0.5
_STATUS_EVERY = 10  # polls between two looks at the state of the run
_LINE = 120  # bytes, of a usual line
_MOST = 64 << 20  # bytes of a tail


def newest_log(run: Path, rank: int) -> Path:
    """The newest log of a rank: of its output in RUN/launch, or else RUN/logs/rank-N.log.

    Raises:
        BadInput: there is none.
    """
    folders = {run / "launch", *(Path(one.launch) for one in read_submissions(run))}
    jobs = {one.job_id for one in read_submissions(run)}
    found = [path for folder in folders for path in folder.glob(f"*_{rank}_log.out")]
    of_others = {path for path in found if path.parent != run / "launch"}
    found = [
        one for one in found if one not in of_others or one.name.removesuffix(f"_{rank}_log.out") in jobs
    ]
    found = found or [path for path in (run / "logs" / f"rank-{rank}.log",) if path.exists()]
    if not found:
        raise BadInput(_no_log(run, rank))
    return max(found, key=lambda path: path.stat().st_mtime)


def _no_log(run: Path, rank: int) -> str:
    """Why there is no log of a rank, for the user."""
    ranks = max((one.tasks for one in read_submissions(run)[-1:]), default=0)
    ranks = ranks or next((size for one in reversed(read_starts(run)) if (size := one.get("world_size"))), 0)
    if 0 < ranks <= rank:
        has = "has rank 0 alone" if ranks == 1 else f"has ranks 0 {'and' if ranks == 2 else 'to'} {ranks - 1}"
        return f"{run}: {has}: there is no rank {rank}"
    found = read_status(run)
    if found.state in ("pending", "requeued"):
        why = f": the job is {found.state}: job {found.slurm_job} {found.reason}"
    else:
        why = ""
    return f"{run}: rank {rank} has written no log yet{why}"


def last_lines(path: Path, count: int, end: int | None = None) -> list[str]:
    """The last lines of a log of any size, or of what of it is before the position `end`."""
    size = count * _LINE
    while True:
        lines = read_tail(path, size, end).splitlines()
        if len(lines) > count or size >= min(_MOST, path.stat().st_size):
            return lines[-count:]
        size *= 4


def follow(run: Path, rank: int, count: int, wait: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """The last lines of a rank's log, and those that are written until the run has ended.

    Args:
        run: run folder.
        rank: whose log.
        count: number of lines to begin with.
        wait: waits some seconds.
    """
    path, rest, polls, answered = newest_log(run, rank), b"", 0, False
    position = _whole_lines(path)
    yield from last_lines(path, count, position)
    while True:
        ended = False
        if polls % _STATUS_EVERY == 0:
            states, problem = read_statuses([run])
            answered = answered or not problem
            ended = have_ended(states, answered, problem)
        if path.stat().st_size < position:  # it was cut, and begins anew
            position, rest = 0, b""
        content = _read_from(path, position)
        position += len(content)
        *lines, rest = (rest + content).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
        newest = newest_log(run, rank)
        if newest != path:  # the next job of the run
            path, position, rest = newest, 0, b""
            yield f"==> {path} <=="
        elif ended:
            if rest:
                yield rest.decode(errors="replace")
            return
        polls += 1
        wait(_POLL_S)


def failures_of(run: Path) -> list[Failure]:
    """All ranks that failed in the last start that has any failure, the first to fail first."""
    found = recorded_failures(run, most=None)
    for one in reversed(read_submissions(run)):
        if found and not found[0].missed:
            break
        first = first_failure(run, Path(one.launch), one.job_id)
        if found and (first is None or first.missed):
            first = killed_before(run, Path(one.launch), one.job_id, found[0].restart) or first
        if found and first:  # a rank that was killed
            return [first, *(each for each in found if each.rank != first.rank)]
        found = found or logged_failures(Path(one.launch), one.job_id)
    return found


def error_lines(failures: list[Failure]) -> list[str]:
    """Failures as lines; a traceback that several ranks share is given once."""
    lines: list[str] = []
    seen: dict[str | None, int | None] = {}
    for one in failures:
        head, *more = one.lines
        if one.traceback in seen and more and one.traceback:
            more = [f"  traceback: that of rank {seen[one.traceback]}"]
        if more:
            seen.setdefault(one.traceback, one.rank)
        lines += [head, *more]
    return lines


def _whole_lines(path: Path) -> int:
    """The position in a log after its last whole line."""
    size = path.stat().st_size
    begin = max(0, size - TAIL)
    written = _read_from(path, begin)[: size - begin]
    return begin + written.rfind(b"\n") + 1 if b"\n" in written or not begin else size


def _read_from(path: Path, position: int) -> bytes:
    """What a file holds from a position on."""
    with path.open("rb") as file:
        file.seek(position)
        return file.read(_MOST)
