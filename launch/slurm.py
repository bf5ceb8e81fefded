"""Submit a training run to a Slurm cluster.

All files of a launch are in RUN/launch, or SWEEP/launch, which must be on a file system that the nodes share:

    <job>_submission.sh        the sbatch script
    <job>.json                 what was submitted, and when
    <job>_submitted.pkl        the job, such as a `TrainJob`; of a task of an array, <job> is <array>_<index>
    <job>_<rank>_log.out       output and errors of one rank, continued after a restart
    <job>_<rank>_result.pkl    written when a rank has ended and will not be requeued
    chain-<token>.ended        how a chain has ended, for its jobs that are still queued
    code-<hash>/               the snapshot of the code that runs
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpcphotoz.launch.jobs import submission
from hpcphotoz.launch.jobs.active import refuse_active
from hpcphotoz.launch.jobs.partition import warn_of_limits
from hpcphotoz.launch.jobs.submission import with_dependency
from hpcphotoz.launch.preparation import (
    Job,
    check_folders,
    folders_of,
    import_submitit,
    launch_folder,
    with_placement,
)
from hpcphotoz.launch.request.plan import LaunchPlan
from hpcphotoz.output import say


@dataclass(frozen=True)
class SubmittedJob:
    """A job that Slurm has accepted."""

    job_id: str
    logs: Path  # RUN/launch: `<job_id>_<rank>_log.out`


def dry_run(plan: LaunchPlan, job: Job, dependency: str = "") -> str:
    """The sbatch script that `submit` would hand to Slurm; needs no Slurm here and writes nothing.

    Raises:
        BadInput: submitit is not installed, no such dataset, or a run folder that cannot be used.
    """
    import_submitit()
    launch = launch_folder(job)
    check_folders(job, origin_is_there=not dependency)
    return submission.script(with_dependency(plan, dependency), launch, folders_of(job))


def submit(
    plan: LaunchPlan, job: Job, report: Callable[[str], None] = say, dependency: str = ""
) -> SubmittedJob:
    """Queue the run on Slurm, from a snapshot of the present code.

    Args:
        plan: what to ask the cluster for.
        job: what to run.
        report: called with a message if environment variables that would override the plan are left out, and
            if the partition is too small for the job, or its time limit too short.
        dependency: sbatch's --dependency, such as "afterok:17"; "": the job begins when there is room. With
            one, the weights of `job.start_from` are read when the job begins, and not now.

    Raises:
        BadInput: submitit or sbatch is missing, no such dataset, a run folder that cannot be used, a run that
            a job or another process works on, or sbatch refused (its own message, and what to do).
    """
    import_submitit()
    launch = launch_folder(job)
    check_folders(job, origin_is_there=not dependency)  # now, not after a day in the queue
    refuse_active(Path(job.out), dependency, chain=job.kind == "train")
    warn_of_limits(plan, report)
    found = submission.submit(
        with_dependency(plan, dependency),
        launch,
        folders_of(job),
        lambda code: [with_placement(job, plan, code)],
        report,
    )
    submission.record(plan, job, launch, found[0], report)
    return SubmittedJob(found[0], launch)
