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

<<<<<<< HEAD
from hpcphotoz.atomic import making_folder
from hpcphotoz.errors import BadInput
from hpcphotoz.launch import snapshot
from hpcphotoz.launch.environment import outside_any_job, overriding_variables
from hpcphotoz.launch.executor import slurm_executor
from hpcphotoz.launch.follow.submissions import record_submission
=======
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.jobs import submission
from hpcphotoz.launch.jobs.submission import with_dependency
>>>>>>> main
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


<<<<<<< HEAD
def dry_run(plan: LaunchPlan, job: Job) -> str:
=======
def dry_run(plan: LaunchPlan, job: TrainJob, dependency: str = "") -> str:
>>>>>>> main
    """The sbatch script that `submit` would hand to Slurm; needs no Slurm here and writes nothing.

    Raises:
        BadInput: submitit is not installed, no such dataset, or a run folder that cannot be used.
    """
    import_submitit()
    launch = launch_folder(job)
    check_folders(job, origin_is_there=not dependency)
    return submission.script(with_dependency(plan, dependency), launch, folders_of(job))


<<<<<<< HEAD
def submit(plan: LaunchPlan, job: Job, report: Callable[[str], None] = say) -> SubmittedJob:
=======
def submit(
    plan: LaunchPlan, job: TrainJob, report: Callable[[str], None] = say, dependency: str = ""
) -> SubmittedJob:
>>>>>>> main
    """Queue the run on Slurm, from a snapshot of the present code.

    Args:
        plan: what to ask the cluster for.
        job: what to run.
        report: called with a message if environment variables that would override the plan are left out.
        dependency: sbatch's --dependency, such as "afterok:17"; "": the job begins when there is room. With
            one, the weights of `job.start_from` are read when the job begins, and not now.

    Raises:
        BadInput: submitit or sbatch is missing, no such dataset, a run folder that cannot be used, or sbatch
            refused (its own message).
    """
<<<<<<< HEAD
    submitit, launch = import_submitit(), launch_folder(job)
    for command in ("sbatch", "srun"):
        if shutil.which(command) is None:
            raise BadInput(
                f"{command}: not found; submit on a login node of the cluster, or use `launch local`"
            )
    check_folders(job)  # now, not after a day in the queue
    with making_folder(launch):
        before = set(launch.iterdir())
        code = snapshot.take(launch)
        executor = slurm_executor(plan, launch, code, folders_of(job))
        script = executor._make_submission_file_text(executor._submitit_command_str, "")
        overriding = overriding_variables(script, os.environ)
        if overriding:
            report(f"{', '.join(overriding)} of the environment: left out, the options of this launch hold")
        try:
            # submitit also prints sbatch's error message, which is reported below.
            with outside_any_job(overriding), contextlib.redirect_stderr(io.StringIO()):
                submitted = executor.submit(with_placement(job, plan, code))
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            for left in set(launch.iterdir()) - before:
                if re.fullmatch(r"[0-9a-f]{32}\.pkl|\.submission_file_[0-9a-f]{32}\.sh", left.name):
                    left.unlink()
            if set(launch.iterdir()) - before == {code}:  # else another submission may have begun with it
                shutil.rmtree(code)
            raise BadInput(f"sbatch refused the job: {' '.join(str(error).split())}") from None
        try:
            tasks = plan.nodes * plan.ranks_per_node
            record_submission(launch, submitted.job_id, job.command, plan.nodes, tasks, job.kind)
        except OSError as error:  # the job is queued all the same, and `status` knows it by its script
            report(f"{launch}/{submitted.job_id}.json: cannot be written: {error.strerror}")
        return SubmittedJob(submitted.job_id, launch)
=======
    import_submitit()
    launch = launch_folder(job)
    check_folders(job, origin_is_there=not dependency)  # now, not after a day in the queue
    found = submission.submit(
        with_dependency(plan, dependency),
        launch,
        folders_of(job),
        lambda code: [with_placement(job, plan, code)],
        report,
    )
    submission.record(plan, job, launch, found[0], report)
    return SubmittedJob(found[0], launch)
>>>>>>> main
