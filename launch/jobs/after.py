"""The jobs that others wait for: that of `--after RUN`, and the queued one that a chain goes on from."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.follow.status import read_status

SWEEP_FILE = "sweep.json"
_ENDED = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY REVOKED TIMEOUT".split()
)


def job_states(jobs: Sequence[str]) -> dict[str, str]:
    """The state of each job that Slurm still knows: of an array, of each task, as `<array>_<index>`.

    Raises:
        BadInput: squeue is not installed, or fails.
    """
    if not jobs:
        return {}
    if shutil.which("squeue") is None:
        raise BadInput("squeue: not found: ask for jobs on a login node of the cluster")
    arrays = sorted({job.partition("_")[0] for job in jobs})
    words = [
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        "--format=%i %T",
        f"--jobs={','.join(arrays)}",
    ]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(f"squeue: {error}") from None
    if done.returncode and "Invalid job id" not in done.stderr:  # of one that Slurm has forgotten
        raise BadInput(f"squeue: {' '.join(done.stderr.split())}")
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip())


def is_active(job: str, states: dict[str, str]) -> bool:
    """Whether a job, or any task of an array, is queued or runs."""
    return any(
        state not in _ENDED for name, state in states.items() if name == job or name.startswith(f"{job}_")
    )


def newest_job(run: Path) -> str | None:
    """The job that was last submitted for a run or a sweep; None: there is no record of one."""
    found = [
        (path.stat().st_mtime, name.group(1))
        for path in (run / "launch").glob("*_submission.sh")
        if (name := re.fullmatch(r"(\d+)_submission\.sh", path.name))
    ]
    record = run.absolute().parent / SWEEP_FILE
    try:
        for entry in json.loads(record.read_bytes())["runs"]:
            if entry["folder"] == run.absolute().name and entry["job"]:
                found.append((record.stat().st_mtime, str(entry["job"])))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no sweep, or one whose record cannot be read: `compare` and the next launch say so
    return max(found)[1] if found else None


def active_job(run: Path) -> str | None:
    """The newest job of a run if it is queued or runs."""
    job = newest_job(run)
    return job if job and is_active(job, job_states([job])) else None


def dependency(after: Sequence[str]) -> str:
    """sbatch's --dependency for the runs, sweeps or job ids of `--after`; "": all of them are finished.

    Raises:
        BadInput: nothing is queued that could finish one of them.
    """
    found = [job for name in after if (job := _job_to_wait_for(name))]
    return f"afterok:{':'.join(dict.fromkeys(found))}" if found else ""


def _job_to_wait_for(name: str) -> str | None:
    run = Path(name)
    if re.fullmatch(r"\d+(_\d+)?", name) and not run.exists():
        states = {k: s for k, s in job_states([name]).items() if k == name or k.startswith(f"{name}_")}
        if not states:
            raise BadInput(
                f"--after {name}: Slurm knows no such job (it forgets ended ones): give the run folder"
            )
        if bad := sorted({state for state in states.values() if state in _ENDED and state != "COMPLETED"}):
            raise BadInput(f"--after {name}: this job is {', '.join(bad)}: the new one would never begin")
        return name
    if not run.is_dir():
        raise BadInput(f"--after {name}: no such run folder, nor a job id")
    if job := active_job(run):
        return job
    if (run / SWEEP_FILE).is_file():
        raise BadInput(
            f"--after {name}: no job of this sweep is queued: name its runs that are finished, or none"
        )
    try:
        status = read_status(run)
    except BadInput:
        raise BadInput(
            f"--after {name}: no job of it is queued, and it has not begun: launch it first"
        ) from None
    if status.state == "finished":
        return None
    raise BadInput(f"--after {name}: no job of it is queued; {status.text}: launch it again first")
