"""What Slurm knows of jobs, by one call of squeue for all of them; never sacct, which many clusters lack."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from hpcphotoz.launch.follow.failures import modified
from hpcphotoz.launch.follow.folder_state import FolderState
from hpcphotoz.launch.follow.reasons import ENDED, WAITING
from hpcphotoz.launch.follow.submissions import Submission, seconds

_TIMEOUT_S = 30
_PREFIX = re.compile(r"^(squeue: )?(error: )?")
_CLOCKS_S = 300.0  # by which the clocks of a login node and of Slurm may differ
# With a suffix and no width, squeue cuts no field. The last one alone is free text of a user.
_FIELDS = (
    *("JobArrayID", "JobID", "State", "Reason", "StartTime", "RestartCnt", "exit_code"),
    *("NodeList", "SubmitTime", "WorkDir"),
)
_UNKNOWN = ("N/A", "Unknown", "None", "(null)", "")


@dataclass(frozen=True)
class QueuedJob:
    """A job that Slurm knows: it waits, runs, or ended a few minutes ago (Slurm's MinJobAge)."""

    job_id: str  # "12"; "12_3" of an array
    number: str  # SLURM_JOB_ID in the job: of an array, another number for each of its jobs
    state: str  # Slurm's word, such as PENDING
    reason: str  # why it waits
    start: datetime | None  # of a waiting job the estimate
    restarts: int
    exit_status: int  # as wait(2) gives it
    nodes: str
    submitted: datetime | None
    folder: str = ""  # in which it starts; "": not known

    def is_of(self, submission: Submission) -> bool:
        """Whether it is the job that was submitted, and not another of the same number.

        Numbers begin anew when a cluster is set up again, each cluster has its own, and a copy of a run
        folder has the records of the original.
        """
        if self.submitted and self.submitted.timestamp() < submission.time - _CLOCKS_S:
            return False
        folder = Path(self.folder)
        try:
            return self.folder in _UNKNOWN or os.path.samefile(folder.parent, submission.launch)
        except OSError:  # the run was moved since, or has another path on this host
            return folder.name.startswith("code-")

    @property
    def waits(self) -> bool:
        """Whether it waits in the queue."""
        return self.state in WAITING

    @property
    def ended(self) -> bool:
        """Whether it has ended for good."""
        return self.state in ENDED


@dataclass(frozen=True)
class Queue:
    """Answer of Slurm."""

    jobs: Mapping[str, QueuedJob] = field(default_factory=dict)  # by job id; unknown ones are not there
    problem: str = ""  # why Slurm could not be asked, for the user; "": it has answered


def read_queue(job_ids: Iterable[str]) -> Queue:
    """Ask Slurm about jobs, once for all of them; no job, no question."""
    wanted = sorted(set(job_ids))
    if not wanted:
        return Queue()
    if shutil.which("squeue") is None:
        return Queue(problem="no squeue here: the run folder alone tells; ask on a login node of the cluster")
    words = ["squeue", "--noheader", "--states=all", "--array", f"--jobs={','.join(wanted)}"]
    words.append("--Format=" + ",".join(f"{name}:|" for name in _FIELDS))
    # SQUEUE_USERS and others would filter; a user's SLURM_TIME_FORMAT may be "relative".
    env = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    env["SLURM_TIME_FORMAT"] = "standard"
    try:
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Queue(problem=f"squeue gave no answer in {_TIMEOUT_S} s: the run folder alone tells")
    except OSError as error:
        return Queue(problem=f"squeue: {error.strerror}: the run folder alone tells")
    if done.returncode and "Invalid job id" not in done.stderr:
        lines = (_PREFIX.sub("", " ".join(line.split())) for line in done.stderr.splitlines())
        said = "; ".join(line for line in lines if line) or f"exit status {done.returncode}"
        return Queue(problem=f"squeue: {said}: the run folder alone tells")
    try:
        jobs = [_parse(line) for line in done.stdout.splitlines() if line.strip()]
    except ValueError as error:
        return Queue(problem=f"squeue: not understood: {error}: the run folder alone tells")
    return Queue({job.job_id: job for job in jobs})


class KnownJob:
    """A submission, what Slurm knows of it, and the starts of the run that it made."""

    def __init__(self, submission: Submission, queued: QueuedJob | None, folder: FolderState | None) -> None:
        self.submission, self.queued = submission, queued if queued and queued.is_of(submission) else None
        self.launch = Path(submission.launch)
        self.id, starts = submission.job_id, folder.starts if folder else []
        ids = {self.id, self.queued.number if self.queued else self.id}
        self.starts = [start for start in starts if start.get("slurm_job") in ids]
        if "_" in self.id and not self.queued:  # SLURM_JOB_ID of an array's job is not known
            self.starts = [start for start in starts if seconds(start.get("time")) >= submission.time]

    @property
    def last_sign(self) -> float:
        """When rank 0 wrote its last line, in seconds since 1970; else when the job was submitted."""
        return modified(self.launch / f"{self.id}_0_log.out") or self.submission.time

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` has cancelled it."""
        return self.submission.cancelled > 0

    @property
    def requeues(self) -> int:
        return max(self.queued.restarts if self.queued else 0, len(self.starts) - 1)


def _parse(line: str) -> QueuedJob:
    """One line of squeue; raises ValueError if it has other fields than were asked for."""
    values = [value.strip() for value in line.split("|", len(_FIELDS) - 1)]
    if len(values) != len(_FIELDS) or not values[-1].endswith("|"):
        raise ValueError(repr(line))
    job_id, number, state, reason, start, restarts, exit_status, nodes, submitted, folder = values
    if not job_id[:1].isdigit() or not state:
        raise ValueError(repr(line))
    counts, began = (_count(restarts), _count(exit_status)), _time(start)
    return QueuedJob(job_id, number, state, reason, began, *counts, nodes, _time(submitted), folder[:-1])


def _count(text: str) -> int:
    return 0 if text in _UNKNOWN else int(text)


def _time(text: str) -> datetime | None:
    """A time of Slurm, which is local, with its zone; None: not known."""
    return None if text in _UNKNOWN else datetime.fromisoformat(text).astimezone()
