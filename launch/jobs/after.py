"""The jobs that others wait for: that of `--after RUN`, and the queued one that a chain goes on from."""

import re
from collections.abc import Sequence
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.follow.queue import QueuedJob, read_queue
from hpcphotoz.launch.follow.status import read_status
from hpcphotoz.launch.follow.submissions import read_submissions, sweep_entries


def active_job(run: Path) -> str | None:
    """The newest job of a run that is queued or runs; None: there is none.

    Raises:
        BadInput: Slurm cannot be asked.
    """
    submitted = read_submissions(run)
    active = {job.job_id: job for job in ask_slurm([one.job_id for one in submitted]) if not job.ended}
    own = [one.job_id for one in submitted if one.job_id in active and active[one.job_id].is_of(one)]
    return own[-1] if own else None


def ask_slurm(job_ids: Sequence[str]) -> list[QueuedJob]:
    """The jobs, or tasks of arrays, that Slurm still knows.

    Raises:
        BadInput: it cannot be asked.
    """
    queue = read_queue(job_ids)
    if queue.problem:
        raise BadInput(f"{queue.problem.partition(': the run folder')[0]}: cannot tell which jobs are queued")
    return list(queue.jobs.values())


def dependency(after: Sequence[str]) -> str:
    """sbatch's --dependency for the runs, sweeps or job ids of `--after`; "": all of them are finished.

    Raises:
        BadInput: nothing is queued that could finish one of them, or Slurm cannot be asked.
    """
    found = [job for name in after for job in _jobs_to_wait_for(name)]
    return f"afterok:{':'.join(dict.fromkeys(found))}" if found else ""


def _jobs_to_wait_for(name: str) -> list[str]:
    run = Path(name)
    if re.fullmatch(r"\d+(_\d+)?", name) and not run.exists():
        return [_known_job(name)]
    if not run.is_dir():
        raise BadInput(f"--after {name}: no such run folder, nor a job id")
    runs = [run / entry for entry in sweep_entries(run)] or [run]
    return [job for one in runs if (job := _job_to_wait_for(one))]


def _known_job(name: str) -> str:
    known = [job for job in ask_slurm([name]) if job.job_id == name or job.job_id.startswith(f"{name}_")]
    if not known:
        raise BadInput(
            f"--after {name}: Slurm knows no such job (it forgets ended ones): give the run folder"
        )
    if bad := sorted({job.state for job in known if job.ended and job.state != "COMPLETED"}):
        raise BadInput(f"--after {name}: this job is {', '.join(bad)}: the new one would never begin")
    return name


def _job_to_wait_for(run: Path) -> str | None:
    """The job of a run that is to end first; None: the run is finished."""
    if job := active_job(run):
        return job
    try:
        status = read_status(run)
    except BadInput:
        raise BadInput(
            f"--after {run}: no job of it is queued, and it has not begun: launch it first"
        ) from None
    if status.state == "finished":
        return None
    raise BadInput(f"--after {run}: no job of it is queued; {status.text}: launch it again first")
