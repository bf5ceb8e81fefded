"""Hands jobs to sbatch: one script for one job or for a job array, with a pickle for each."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcphotoz.atomic import making_folder
from hpcphotoz.errors import BadInput
from hpcphotoz.launch import snapshot
from hpcphotoz.launch.command_job import CommandJob
from hpcphotoz.launch.environment import outside_any_job, overriding_variables
from hpcphotoz.launch.executor import slurm_executor
from hpcphotoz.launch.follow.submissions import record_submission
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.jobs.partition import refusal
from hpcphotoz.launch.preparation import import_submitit
from hpcphotoz.launch.request.plan import LaunchPlan

Job = Callable[[], Any]  # what a job runs on each rank; with a method `checkpoint`, it is requeued
_UNUSED = r"[0-9a-f]{32}\.pkl|\.submission_file_[0-9a-f]{32}\.sh"  # what a refused submission leaves


def with_dependency(plan: LaunchPlan, dependency: str) -> LaunchPlan:
    """The plan of a job that begins after others; "" is no dependency.

    A job whose dependency can no longer be satisfied is removed from the queue: it would be pending for ever.
    """
    if not dependency:
        return plan
    return replace(plan, dependency=dependency)


def script(plan: LaunchPlan, launch: Path, folders: Sequence[Path], count: int = 1, at_most: int = 0) -> str:
    """The sbatch script that `submit` would hand to Slurm; needs no Slurm here and writes nothing.

    Args:
        plan, launch, folders, at_most: as `submit`.
        count: number of jobs.

    Raises:
        BadInput: submitit is not installed.
    """
    import_submitit()
    return _text(_executor(plan, launch, snapshot.folder(launch), folders, count, at_most))


def submit(
    plan: LaunchPlan,
    launch: Path,
    folders: Sequence[Path],
    jobs: Callable[[Path], Sequence[Job]],
    report: Callable[[str], None],
    at_most: int = 0,
) -> list[str]:
    """Queue jobs that run from a snapshot of the present code; several are one job array.

    Args:
        plan: what to ask the cluster for, each job by itself.
        launch: folder of scripts, logs, pickles and the snapshot.
        folders: that the jobs read and write, absolute; a container has to see them.
        jobs: called with the folder of the snapshot; gives the jobs.
        report: called with a message if environment variables that would override the plan are left out.
        at_most: number of jobs of an array that run at the same time; 0: as many as there is room for.

    Returns:
        The id of each: `<job>`, or `<array>_<index>`.

    Raises:
        BadInput: submitit, sbatch or srun is missing, or sbatch refused (its own message, and what to do).
    """
    submitit = import_submitit()
    for command in ("sbatch", "srun"):
        if shutil.which(command) is None:
            raise BadInput(
                f"{command}: not found; submit on a login node of the cluster, or use `launch local`"
            )
    with making_folder(launch):
        before = set(launch.iterdir())
        code = snapshot.take(launch)
        queued = jobs(code)
        executor = _executor(plan, launch, code, folders, len(queued), at_most)
        overriding = overriding_variables(_text(executor), os.environ)
        if overriding:
            report(f"{', '.join(overriding)} of the environment: left out, the options of this launch hold")
        try:
            # submitit also prints sbatch's error message, which is reported below.
            with outside_any_job(overriding), contextlib.redirect_stderr(io.StringIO()):
                return _submit_pickles(executor, queued)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            for left in set(launch.iterdir()) - before:
                if re.fullmatch(_UNUSED, left.name):
                    left.unlink()
            if set(launch.iterdir()) - before == {code}:  # else another submission may have begun with it
                shutil.rmtree(code)
            raise BadInput(refusal(plan, str(error))) from None


def record(
    plan: LaunchPlan, job: TrainJob | CommandJob, launch: Path, job_id: str, report: Callable[[str], None]
) -> None:
    """Write the record of a job of a run, for `status`; arguments as `submit`."""
    try:
        tasks = plan.nodes * plan.ranks_per_node
        record_submission(launch, job_id, job.command, plan.nodes, tasks, job.kind)
    except OSError as error:  # the job is queued all the same, and `status` knows it by its script
        report(f"{launch}/{job_id}.json: cannot be written: {error.strerror}")


def _executor(
    plan: LaunchPlan, launch: Path, code: Path, folders: Sequence[Path], count: int, at_most: int
) -> Any:
    executor = slurm_executor(plan, launch, code, folders)
    if count > 1:
        executor.parameters |= {"map_count": count, "array_parallelism": at_most or count}
    return executor


def _text(executor: Any) -> str:
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def _submit_pickles(executor: Any, jobs: Sequence[Job]) -> list[str]:
    """submitit's own submission, for an array too.

    Its `submit_array` makes a plain SlurmExecutor for the array, without what `slurm_executor` changes.
    """
    import submitit

    if len(jobs) == 1:
        return [str(executor.submit(jobs[0]).job_id)]
    paths = []
    for number, job in enumerate(jobs):
        delayed = submitit.helpers.DelayedSubmission(job)
        delayed.set_timeout(executor.parameters["time"], executor.max_num_timeout)
        # The name is that of submitit's own files, which a refusal removes.
        paths.append(executor.folder / f"{os.urandom(12).hex()}{number:08x}.pkl")
        delayed.dump(paths[-1])
    array = executor._submit_command(executor._submitit_command_str).job_id
    for number, path in enumerate(paths):  # a task waits 60 s for its pickle
        path.rename(executor.folder / f"{array}_{number}_submitted.pkl")
    return [f"{array}_{number}" for number in range(len(jobs))]
