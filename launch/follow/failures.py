"""The rank that failed first in the last start of a run, with its traceback; reads tails of files only."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.follow.submissions import seconds, stamp
from hpcphotoz.launch.requeue.failures import BAD_INPUT, RANK_LOST
from hpcphotoz.launch.requeue.record import KILLED, RequeueRecord, record_file

TAIL = 32_768  # bytes of a log that are read: a traceback has 2 to 5 kB
_SAME_FAILURE_S = 3600.0  # records of one restart further apart are of different jobs
_MOST_RECORDS = 16  # that are read to find the first failure
_RECORD = re.compile(r"(\d+)-rank-(\d+)\.json")
_LOG = re.compile(r"(.+)_(\d+)_log\.out")
_TRACEBACK = "Traceback (most recent call last):"
_START = re.compile(r"^hpcphotoz: start (\d+) on .*$", re.MULTILINE)  # of the batch script, in rank 0's log
_BEGIN = re.compile(r"^rank \d+ of \d+ on .*, restart (\d+)$", re.MULTILINE)
# The first such line names the first rank that ended.
_SRUN = re.compile(r"^srun: error: (\S+): tasks? (\d+)[\d,-]*: (.+)$", re.MULTILINE)
_UNSAID = ", no error recorded"
_RAISED = re.compile(rf"(?:[\w.]+\.)?({BAD_INPUT}|{RANK_LOST}): (.*)")  # the last line of a traceback
_LOG_OF_STARTS = 4 << 20  # bytes of rank 0's log that are read for an earlier start
_TEXT_LIMIT = 20_000  # characters of a traceback that are kept


@dataclass(frozen=True)
class Failure:
    """How one rank failed."""

    rank: int | None  # None: not known
    host: str | None
    time: str | None
    restart: int | None
    error: str  # one line
    traceback: str | None
    log: str | None = None  # file with more
    missed: bool = False  # it has failed because it missed another rank
    bad_input: bool = False  # a mistake of the user

    @property
    def lines(self) -> list[str]:
        """For the user: which rank failed, with the traceback of an error of Python that it began with."""
        on = f" on {self.host}" if self.host else ""
        at = f", {self.time}" if self.time else ""
        again = f", restart {self.restart}" if self.restart else ""
        head = f"{'a rank' if self.rank is None else f'rank {self.rank}'}{on}{at}{again}: {self.error}"
        if self.missed or self.bad_input:
            return [head]
        more = [f"  {line}" for line in self.traceback.rstrip().splitlines()] if self.traceback else []
        return [head, *more, *([f"  log: {self.log}"] if self.log else [])]


def first_failure(run: Path, launch: Path | None, job_id: str | None, since: float = 0.0) -> Failure | None:
    """The earliest failure of the last start: from its records, or else from the logs of its ranks.

    Args:
        run: run folder.
        launch, job_id: folder with the logs of a job, and the job; None: no job's.
        since: what failed before this time (seconds since 1970) is of an earlier start.
    """
    found = next(iter(recorded_failures(run, since)), None)
    if launch is None or job_id is None or (found and not found.missed):
        return found
    # A rank that was killed has no record; those that miss it have.
    found = _named_by_srun(launch, job_id) or found
    return found or next(_failures_by_time(log_files(launch, job_id), since), None)


def recorded_failures(run: Path, since: float = 0.0, most: int | None = _MOST_RECORDS) -> list[Failure]:
    """Failures in RUN/logs/failures of the newest restart that has any, the earliest first.

    Args:
        run, since: as `first_failure`.
        most: records that are read, the earliest by the clock of the file system; None: all.
    """
    found = []
    for name, mtime in _entries(run / "logs" / "failures"):
        if (match := _RECORD.fullmatch(name)) and mtime >= since:
            found.append((mtime, int(match[1]), int(match[2]), name))
    if not found:
        return []
    newest, restart = max(found)[:2]
    # A record is written as its rank fails: the time of the file tells which to read.
    same = sorted(one for one in found if one[1] == restart and newest - one[0] <= _SAME_FAILURE_S)
    read = (_read(run / "logs" / "failures" / name, rank) for _, _, rank, name in same[:most])
    # A rank that misses another one has failed because of it, whatever the clocks of their hosts say.
    return [one for *_, one in sorted(filter(None, read), key=lambda found: found[:2])]


def _named_by_srun(launch: Path, job_id: str) -> Failure | None:
    """The failure of the rank that srun names first in rank 0's log; None: none, as in a local launch."""
    ended = _SRUN.search(last_start(read_tail(launch / f"{job_id}_0_log.out")))
    if ended is None:
        return None
    rank, host, how = int(ended[2]), ended[1], ended[3]
    path = launch / f"{job_id}_{rank}_log.out"
    how = f"killed{_UNSAID}" if how.startswith("Killed") else how
    return _of_log(path, rank, host) or Failure(rank, host, None, None, how, None, str(path))


def logged_failures(launch: Path, job_id: str) -> list[Failure]:
    """The ranks of a job whose logs have a traceback of the last start, by the times of the logs."""
    first, others = _named_by_srun(launch, job_id), _failures_by_time(log_files(launch, job_id), 0.0)
    rest = [one for one in others if first is None or one.rank != first.rank]
    return [*([first] if first else []), *sorted(rest, key=lambda one: one.missed)]


def killed_before(run: Path, launch: Path, job_id: str, restart: int | None) -> Failure | None:
    """The rank that a signal killed in a start after which the job was requeued, by the record of requeues.

    Args:
        run: run folder.
        launch, job_id: as `first_failure`.
        restart: the start that has ended.
    """
    try:
        entry = None if restart is None else RequeueRecord.read(record_file(run, job_id)).find(restart)
    except (BadInput, OSError):
        return None
    if entry is None or entry.reason != KILLED or entry.error:
        return None
    text = read_tail(launch / f"{job_id}_0_log.out", _LOG_OF_STARTS)
    begins = list(_START.finditer(text))
    own = [one for one in begins if int(one[1]) == restart]
    after = [one.start() for one in begins if own and one.start() > own[-1].start()]
    ended = _SRUN.search(text, own[-1].end(), after[0] if after else len(text)) if own else None
    rank, host = (int(ended[2]), ended[1]) if ended else (None, entry.node)
    return Failure(rank, host, entry.time, restart, f"killed{_UNSAID}", None)


def _failures_by_time(logs: Sequence[tuple[int, Path]], since: float) -> Iterator[Failure]:
    """Failures in logs, by the time at which each was last written.

    A rank that fails writes no more, and those that wait for it fail later.
    """
    for mtime, rank, path in sorted((modified(path), rank, path) for rank, path in logs):
        if mtime >= since and (found := _of_log(path, rank, None)):
            yield found


def log_files(launch: Path, job_id: str) -> list[tuple[int, Path]]:
    """The logs of a job's ranks, in order of rank."""
    found = (_LOG.fullmatch(name) for name, _ in _entries(launch))
    return sorted((int(match[2]), launch / match[0]) for match in found if match and match[1] == job_id)


def read_tail(path: Path, size: int = TAIL, end: int | None = None) -> str:
    """The last `size` bytes of a file, without the line that the cut splits; "": it cannot be read.

    Args:
        path: the file.
        size: number of bytes.
        end: position before which they are; None: the end of the file.
    """
    try:
        with path.open("rb") as file:
            length = file.seek(0 if end is None else end, os.SEEK_END if end is None else os.SEEK_SET)
            file.seek(max(0, length - size))
            content = file.read(min(size, length))
    except OSError:
        return ""
    text = content.decode(errors="replace")
    return text.partition("\n")[2] if length > size and "\n" in text else text


def last_start(log: str) -> str:
    """What a rank's log holds of its last start."""
    begins = list(_START.finditer(log)) or list(_BEGIN.finditer(log))
    return log[begins[-1].start() :] if begins else log


def traceback_in(log: str) -> str | None:
    """The first traceback of a text that reaches its error, with those that it was raised from."""
    begin = log.find(_TRACEBACK)
    if begin < 0:
        return None
    return "\n".join(_traceback_lines(log[begin:].splitlines()))[:_TEXT_LIMIT]


def _traceback_lines(lines: Sequence[str]) -> Iterator[str]:
    """Lines from a traceback's title to its error; chained ones ("During handling ...") follow."""
    inside = True
    for number, line in enumerate(lines):
        if line == _TRACEBACK:
            inside = True
        elif not inside and line and not line.startswith(("During handling", "The above exception")):
            return
        yield line
        if inside and number and line and not line.startswith(" ") and line != _TRACEBACK:
            inside = False  # the line of the error


def _of_log(path: Path, rank: int, host: str | None) -> Failure | None:
    text = last_start(read_tail(path))
    found = traceback_in(text)
    if not found:
        return None
    error = next((line for line in reversed(found.rstrip().splitlines()) if line.strip()), "")
    restart = _BEGIN.search(text)
    about = rank, host, stamp(modified(path)), int(restart[1]) if restart else None
    raised = _RAISED.fullmatch(error)
    if raised and raised[1] == BAD_INPUT:
        return Failure(*about, raised[2], None, str(path), bad_input=True)
    return Failure(*about, error, found.rstrip(), str(path), missed=raised is not None)


def _read(path: Path, rank: int) -> tuple[bool, float, Failure] | None:
    """A record: whether the rank missed another one, its time in seconds since 1970, and the failure."""
    try:
        facts = json.loads(path.read_text())
        at, text = seconds(facts["time"]), str(facts.get("traceback") or "")[-_TEXT_LIMIT:]
        about = facts.get("host"), stamp(at), facts.get("restart"), " ".join(str(facts["error"]).split())
        missed, mistaken = facts.get("kind") == RANK_LOST, facts.get("kind") == BAD_INPUT
        text = "" if mistaken else text
        return missed, at, Failure(rank, *about, text or None, missed=missed, bad_input=mistaken)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # being written, or torn by a kill


def modified(path: Path) -> float:
    """When a file was last written, in seconds since 1970; 0: it cannot be told."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _entries(folder: Path) -> list[tuple[str, float]]:
    """Names and times of the files of a folder; empty: there is none."""
    try:
        with os.scandir(folder) as found:
            return [(entry.name, entry.stat().st_mtime) for entry in found]
    except OSError:
        return []
