"""Cancels runs: their jobs in Slurm, or the process that trains on this machine."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.follow.queue import Queue, QueuedJob, read_queue
from hpcphotoz.launch.follow.runs import runs_of
from hpcphotoz.launch.follow.status import read_status
from hpcphotoz.launch.follow.submissions import read_submissions, record_cancelled
from hpcphotoz.locks.judgement import is_held, owner_of
from hpcphotoz.locks.owner import LockOwner

_TIMEOUT_S = 60
_STOP = "STOP"  # file in the run folder that stops a run; `training.run.signals` looks for it


def cancel(folder: Path) -> list[str]:
    """Cancel the run of a folder, or all runs of a sweep; what was done, in lines.

    Waiting jobs go first: else those that depend on a running one might begin.

    Raises:
        BadInput: the folder holds no run, or Slurm or the system refuses.
    """
    runs = runs_of(folder)
    holders = {run: _holder(run) for run in runs}
    submitted = {run: {one.job_id: one for one in read_submissions(run)} for run in runs}
    jobs = {run: {*submitted[run]} for run in runs}
    for run, owner in holders.items():
        if owner and owner.slurm_job and not any("_" in job_id for job_id in jobs[run]):
            jobs[run].add(owner.slurm_job)
    queue = read_queue(job_id for ids in jobs.values() for job_id in ids)
    for run, ids in jobs.items():  # without those that another job has the number of
        ids -= {
            one.job_id
            for one in submitted[run].values()
            if one.job_id in queue.jobs and not queue.jobs[one.job_id].is_of(one)
        }
    own = {job_id for ids in jobs.values() for job_id in ids}
    active = [job for job in queue.jobs.values() if job.job_id in own and not job.ended]
    for group in ([job for job in active if job.waits], [job for job in active if not job.waits]):
        _scancel(group)
    lines = [_told(job) for job in active]
    cancelled = {job.job_id for job in active}
    for one in (submitted[run][job_id] for run in runs for job_id in jobs[run] & submitted[run].keys()):
        if one.job_id not in cancelled:
            continue
        try:
            record_cancelled(one)
        except OSError as error:
            lines.append(f"{one.launch}/{one.job_id}.json: cannot be written: {error.strerror}")
    for run in runs:
        owner = holders[run]
        if owner and not any(owner.slurm_job in (job.number, job.job_id) for job in active):
            lines.append(_stop(run, owner))
        elif owner is None and not any(job.job_id in jobs[run] for job in active):
            lines += _nothing(run, queue, bool(jobs[run]))
    return lines


def _holder(run: Path) -> LockOwner | None:
    """The process that trains in a run folder; None: there is none."""
    lock = run / "logs" / "lock"
    return owner_of(lock) if is_held(lock) else None


def _scancel(jobs: Sequence[QueuedJob]) -> None:
    if not jobs:
        return
    words = ["scancel", *(job.job_id for job in jobs)]
    # SCANCEL_STATE and others would leave jobs out, SCANCEL_INTERACTIVE would ask.
    env = {name: value for name, value in os.environ.items() if not name.startswith("SCANCEL_")}
    try:
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise BadInput(f"{' '.join(words)}: {error}") from None
    if done.returncode:
        raise BadInput(f"{' '.join(words)}: {' '.join(done.stderr.split())}")


def _told(job: QueuedJob) -> str:
    if job.waits:
        return f"job {job.job_id}: cancelled while it waited"
    return f"job {job.job_id}: cancelled while it ran: it saves a checkpoint first; the same command goes on"


def _stop(run: Path, owner: LockOwner) -> str:
    """Stop a process that Slurm does not know of."""
    if owner.is_here:
        try:
            os.kill(owner.pid, signal.SIGTERM)
        except ProcessLookupError:
            return f"{run}: nothing to cancel: process {owner.pid} has just ended"
        except PermissionError:
            raise BadInput(
                f"{run}: process {owner.pid} belongs to {owner.user}: only they can stop it"
            ) from None
        return (
            f"{run}: SIGTERM sent to process {owner.pid}: the run saves and stops; the same command goes on"
        )
    (run / _STOP).touch()
    where = f"process {owner.pid} on {owner.host}, which this host cannot signal"
    return f"{run}: file STOP made for {where}: the run saves and stops; remove the file before you go on"


def _nothing(run: Path, queue: Queue, has_jobs: bool) -> list[str]:
    found = read_status(run, queue)
    if queue.problem and has_jobs and found.state != "finished":
        raise BadInput(f"{run}: cannot cancel its jobs: {queue.problem}")
    return [f"nothing to cancel: {found.text}"]
