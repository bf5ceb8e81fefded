"""Chains: jobs that go on with one run, each after the one before, where a queue limits the time of a job."""

import secrets
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from hpcphotoz.atomic import write_text
from hpcphotoz.errors import BadInput, first_line
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.jobs import submission
from hpcphotoz.launch.jobs.active import refuse_trained
from hpcphotoz.launch.jobs.after import active_job
from hpcphotoz.launch.jobs.partition import warn_of_limits
from hpcphotoz.launch.jobs.submission import with_dependency
from hpcphotoz.launch.preparation import (
    check_folders,
    folders_of,
    import_submitit,
    launch_folder,
    with_placement,
)
from hpcphotoz.launch.request.plan import LaunchPlan
from hpcphotoz.output import say

_LONGEST = 100  # jobs
_FINAL = ("BadInput", "Diverged")  # another job of the chain would fail in the same way


@dataclass(frozen=True)
class ChainJob(TrainJob):
    """A job of a chain: writes how the run has ended, so that later jobs of the chain end at once.

    Args:
        ended: file to write, which the batch scripts of the chain look for before they start a rank.
    """

    ended: str = ""

    def __call__(self) -> str:
        """Train as `TrainJob`; raises what it raises."""
        try:
            outcome = super().__call__()
        except Exception as error:
            if type(error).__name__ in _FINAL:  # Diverged is of a module that imports torch
                self._write(f"1 the run failed: {first_line(error)}")
            raise
        if outcome == "finished":
            self._write("0 the run is finished")
        return outcome

    def _write(self, text: str) -> None:
        try:
            write_text(Path(self.ended), text.encode("unicode_escape").decode() + "\n")
        except OSError as error:  # the next job then finds out for itself
            say(f"{self.ended}: cannot write how the chain has ended: {error.strerror}")


def dry_run(plan: LaunchPlan, job: TrainJob, jobs: int, dependency: str = "") -> str:
    """The script of the first job of a chain, and how the others follow; arguments as `submit_chain`."""
    launch = launch_folder(job)
    _check(job, jobs, dependency)
    text = submission.script(
        with_dependency(_of_chain(plan, _marker(launch)), dependency), launch, folders_of(job)
    )
    return f"{text}\n# {jobs} jobs with this script, each with --dependency=afterany:<the job before>\n"


def submit_chain(
    plan: LaunchPlan,
    job: TrainJob,
    jobs: int,
    report: Callable[[str], None] = say,
    dependency: str = "",
) -> list[str]:
    """Queue several jobs that train one run: each begins when the one before has ended, and resumes the run.

    A job that reaches its time limit saves and is not requeued: the next one goes on. After a preemption it
    is requeued. A chain for a run that has a job in the queue begins after that. Jobs that find the run
    finished end at once with status 0, and those that find it failed by bad input or divergence with status
    1; neither starts a rank.

    Args:
        plan: what to ask the cluster for, for each job.
        job: what to train.
        jobs: how many, 2 to 100.
        report: as `slurm.submit`.
        dependency: of the first job.

    Returns:
        Their ids, in order.

    Raises:
        BadInput: as `slurm.submit`; if sbatch refuses a later one, the message says which ones are queued.
    """
    launch = launch_folder(job)
    _check(job, jobs, dependency)
    if active := active_job(Path(job.out)):
        report(f"{job.out}: job {active} of this run is queued or runs: the chain begins after it")
        dependency = ",".join(filter(None, (dependency, f"afterany:{active}")))
    else:
        refuse_trained(Path(job.out))
    warn_of_limits(plan, report)
    ended = _marker(launch)
    of_chain = _of_chain(plan, ended)

    def placed(code: Path) -> Sequence[submission.Job]:
        one = with_placement(job, plan, code)
        given = {field.name: getattr(one, field.name) for field in fields(one)}
        return [ChainJob(**given | {"requeue_at_time_limit": False}, ended=str(ended))]

    queued: list[str] = []
    for number in range(jobs):
        after = f"afterany:{queued[-1]}" if queued else dependency
        try:
            one = with_dependency(of_chain, after)
            queued += submission.submit(one, launch, folders_of(job), placed, report)
        except BadInput as error:
            if not queued:
                raise
            raise BadInput(
                f"job {number + 1} of {jobs}: {error}; queued are {', '.join(queued)}, which go on as a "
                f"chain of {number}: launch again with --chain {jobs - number} to add the others to it, or "
                f"cancel: scancel {' '.join(queued)}"
            ) from None
        submission.record(plan, job, launch, queued[-1], report)
        report = _ignore  # of variables that are left out, once
    return queued


def _check(job: TrainJob, jobs: int, dependency: str) -> None:
    import_submitit()
    if not 1 <= jobs <= _LONGEST:
        raise BadInput(f"--chain {jobs}: want 1 to {_LONGEST} jobs")
    check_folders(job, origin_is_there=not dependency)


def _marker(launch: Path) -> Path:
    return launch / f"chain-{secrets.token_hex(4)}.ended"


def _of_chain(plan: LaunchPlan, ended: Path) -> LaunchPlan:
    """The plan with a first line of the batch script that ends the job if the chain has ended.

    The batch script decides, and not each rank: a shared file system may show a new file to some nodes only.
    """
    path = shlex.quote(str(ended))
    end = f'read -r status reason < {path}; echo "hpcphotoz: $reason"; exit "$status"'
    return replace(plan, setup=(f"if [ -f {path} ]; then {end}; fi", *plan.setup))


def _ignore(text: str) -> None:
    """Report nothing."""
