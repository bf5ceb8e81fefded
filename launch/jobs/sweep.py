"""Sweeps: many runs that differ in some options, as one job array or one after another on this machine."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpcphotoz.atomic import making_folder
from hpcphotoz.config import load as configuration
from hpcphotoz.errors import BadInput
from hpcphotoz.launch.follow.queue import Queue
from hpcphotoz.launch.follow.status import read_status
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.jobs import submission
from hpcphotoz.launch.jobs.after import ask_slurm
from hpcphotoz.launch.jobs.grid import SweepRun
from hpcphotoz.launch.jobs.partition import warn_of_limits
from hpcphotoz.launch.jobs.submission import with_dependency
from hpcphotoz.launch.jobs.sweep_file import Sweep, merged, read_sweep, write_sweep
from hpcphotoz.launch.local import run_local
from hpcphotoz.launch.preparation import (
    check_folders,
    folders_of,
    import_submitit,
    launch_folder,
    with_placement,
)
from hpcphotoz.launch.request.plan import LaunchPlan
from hpcphotoz.output import say


@dataclass(frozen=True)
class PlannedSweep:
    """The runs of a sweep, checked, with those that are left to do.

    Args:
        folder: of the sweep; each run's folder is in it.
        runs: of the sweep, in order.
        jobs: what trains each, by its name.
        before: the sweep that the folder held.
        done: why a run is not launched again, by its name: it is finished, or goes on.
    """

    folder: Path
    runs: Sequence[SweepRun]
    jobs: Mapping[str, TrainJob]
    before: Sweep | None
    done: Mapping[str, str]

    @property
    def left(self) -> list[str]:
        """Names of the runs to launch."""
        return [run.name for run in self.runs if run.name not in self.done]

    @property
    def folders(self) -> tuple[Path, ...]:
        """The absolute folders that the jobs read and write."""
        one = next(iter(self.jobs.values()))
        return folders_of(replace(one, out=str(self.folder.absolute())))

    def table(self) -> list[str]:
        """A line for each run: its number in the job array, its folder, and why it is not launched."""
        numbers = {name: str(number) for number, name in enumerate(self.left)}
        return [
            f"{numbers.get(run.name, '-'):>4}  {self.folder / run.name}"
            + (f"  ({self.done[run.name]})" if run.name in self.done else "")
            for run in self.runs
        ]

    def summary(self) -> str:
        """What of the sweep is launched."""
        kinds = [reason.partition(":")[0] for reason in self.done.values()]
        told = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
        rest = f"; not launched again: {', '.join(told)}" if told else ""
        return f"{len(self.left)} of {len(self.runs)} runs{rest}"


def plan_sweep(
    folder: Path, runs: Sequence[SweepRun], jobs: Mapping[str, TrainJob], origin_is_there: bool = True
) -> PlannedSweep:
    """Check every run of a sweep, and find those that are finished or in the queue; writes nothing.

    Args:
        folder: of the sweep.
        runs, jobs: as `PlannedSweep`; the folder of each is in `folder`.
        origin_is_there: as `check_folders`.

    Raises:
        BadInput: a run cannot start or resume in its folder, or the folder holds a run or another sweep.
    """
    import_submitit()
    if (folder / "config.toml").exists():
        raise BadInput(f"{folder}: holds a run: choose another --out for a sweep")
    before = read_sweep(folder)
    merged(folder, before, runs, {})
    for job in jobs.values():
        launch_folder(job)
        check_folders(job, origin_is_there)
    queued = [entry.job for entry in before.runs if entry.job] if before else []
    queue = Queue({job.job_id: job for job in ask_slurm(queued)})
    done = {name: _reason(job, queue) for name, job in jobs.items()}
    return PlannedSweep(folder, runs, jobs, before, {name: reason for name, reason in done.items() if reason})


def _reason(job: TrainJob, queue: Queue) -> str:
    """Why a run is not launched; "" if it is."""
    run = Path(job.out)
    try:
        status = read_status(run, queue)
    except BadInput:  # it has not begun, or the next start keeps its damaged record aside
        return ""
    if status.goes_on:
        return f"queued or running: {f'job {status.slurm_job}' if status.slurm_job else 'on this machine'}"
    if status.state != "finished":
        return ""
    saved = configuration.load(str(run / "config.toml"), convert=True).run
    now = job.parsed.run
    return "finished" if (saved.epochs, saved.max_steps) == (now.epochs, now.max_steps) else ""


def dry_run(plan: LaunchPlan, sweep: PlannedSweep, at_most: int = 0, dependency: str = "") -> str:
    """The script of a sweep's job array, with its runs as comments; writes nothing."""
    placed = with_dependency(plan, dependency)
    launch, count = sweep.folder.absolute() / "launch", max(1, len(sweep.left))
    text = submission.script(placed, launch, sweep.folders, count, at_most)
    return "\n".join([text, f"# {sweep.summary()}", *(f"# {line}" for line in sweep.table()), ""])


def submit_sweep(
    plan: LaunchPlan,
    sweep: PlannedSweep,
    at_most: int = 0,
    report: Callable[[str], None] = say,
    dependency: str = "",
) -> list[str]:
    """Queue the runs that are left as one job array; each is requeued and resumes by itself.

    Args:
        plan: what to ask the cluster for, for each run.
        sweep: of `plan_sweep`.
        at_most: number of runs at the same time; 0: as many as there is room for.
        report, dependency: as `slurm.submit`.

    Returns:
        The job of each run that was left; none where all are finished or in the queue.

    Raises:
        BadInput: as `slurm.submit`.
    """
    if not sweep.left:
        return []
    launch = sweep.folder.absolute() / "launch"

    def placed(code: Path) -> Sequence[submission.Job]:
        return [with_placement(sweep.jobs[name], plan, code) for name in sweep.left]

    warn_of_limits(plan, report)
    found = submission.submit(
        with_dependency(plan, dependency), launch, sweep.folders, placed, report, at_most
    )
    try:
        write_sweep(sweep.folder, _with_jobs(sweep, dict(zip(sweep.left, found, strict=True))))
    except OSError as error:
        job = found[0].partition("_")[0]
        raise BadInput(
            f"{sweep.folder}/sweep.json: cannot be written: {error.strerror}; job {job} is queued: "
            f"cancel it (scancel {job}), make room, and launch again"
        ) from None
    return found


def run_sweep_locally(plan: LaunchPlan, sweep: PlannedSweep, report: Callable[[str], None] = say) -> int:
    """Train the runs that are left on this machine, one after another; one that fails leaves the others.

    Returns:
        0: all finished; 1: some failed; else, after a stop or a signal, the status of the run it ended.

    Raises:
        BadInput: the folder cannot be written.
    """
    if not sweep.left:
        return 0
    with making_folder(sweep.folder):
        write_sweep(sweep.folder, _with_jobs(sweep, {}))
    failed = []
    for number, name in enumerate(sweep.left, 1):
        report(f"run {number} of {len(sweep.left)}: {sweep.folder / name}")
        try:
            status = run_local(plan, sweep.jobs[name], report)
        except BadInput as error:
            report(f"{sweep.folder / name}: {error}")
            status = 1
        if status == os.EX_TEMPFAIL or status > 128:
            return status
        failed += [name] if status else []
    if failed:
        report(f"{len(failed)} of {len(sweep.left)} runs failed: {', '.join(failed)}")
    return 1 if failed else 0


def _with_jobs(sweep: PlannedSweep, jobs: Mapping[str, str]) -> Sweep:
    return merged(sweep.folder, sweep.before, sweep.runs, jobs)
