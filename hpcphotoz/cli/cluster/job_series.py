"""Launches of several jobs: chains, sweeps, and jobs after others."""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpcphotoz.cli.parser import Parser, count
from hpcphotoz.errors import BadInput

if TYPE_CHECKING:
    from hpcphotoz.launch.job import TrainJob
    from hpcphotoz.launch.jobs.sweep import PlannedSweep
    from hpcphotoz.launch.request.plan import LaunchPlan

    # The job after `--`, with the values of swept options.
    MakeJob = Callable[[argparse.Namespace, Mapping[str, str]], TrainJob]


def warn(text: str) -> None:
    """Print a warning of a submission."""
    print(f"hpcphotoz: warning: {text}", file=sys.stderr)


def print_follow(run: Path) -> None:
    """Print the command that follows a run."""
    from hpcphotoz.launch.jobs.active import command

    print(f"follow: {command('status', run)} --watch")


def dependency(options: argparse.Namespace) -> str:
    """sbatch's --dependency for --after; raises BadInput for options that do not go together."""
    from hpcphotoz.launch.jobs.after import dependency

    if options.sweep and options.chain is not None:
        raise BadInput("--chain with --sweep: give one of them; each job of a sweep is requeued by itself")
    if options.at_most is not None and not options.sweep:
        raise BadInput("--at-most: is for --sweep: how many of its runs go on at the same time")
    return dependency(options.after_runs or [])


def chain(options: argparse.Namespace, plan: "LaunchPlan", job: "TrainJob", dependency: str) -> int:
    """Queue a chain."""
    from hpcphotoz.launch.follow.runs import register_run
    from hpcphotoz.launch.jobs.chain import dry_run, submit_chain

    if options.dry_run:
        print(dry_run(plan, job, options.chain, dependency), end="")
        return 0
    queued = submit_chain(plan, job, options.chain, warn, dependency)
    register_run(Path(job.out))
    print(
        f"jobs {', '.join(queued)}, each after the one before; logs in {job.out}/launch/<job>_<rank>_log.out"
    )
    print_follow(Path(job.out))
    return 0


def sweep(options: argparse.Namespace, plan: "LaunchPlan", make: "MakeJob", dependency: str) -> int:
    """Queue a sweep."""
    from hpcphotoz.launch.follow.runs import register_run
    from hpcphotoz.launch.jobs.sweep import dry_run, submit_sweep

    planned, at_most = _planned(options, make, origin_is_there=not dependency), options.at_most or 0
    if options.dry_run:
        print(dry_run(plan, planned, at_most, dependency), end="")
        return 0
    queued = submit_sweep(plan, planned, at_most, warn, dependency)
    print(f"{planned.folder}: {planned.summary()}")
    if queued:
        register_run(planned.folder)
        job = queued[0].partition("_")[0]
        print(f"job {job}, logs in {planned.folder}/launch/<job>_<rank>_log.out")
        print(f"results: hpcphotoz compare {planned.folder}")
    return 0


def sweep_locally(options: argparse.Namespace, plan: "LaunchPlan", make: "MakeJob") -> int:
    """Run a sweep on this machine."""
    from hpcphotoz.launch.follow.runs import register_run
    from hpcphotoz.launch.jobs.sweep import run_sweep_locally

    planned = _planned(options, make)
    print(f"{planned.folder}: {planned.summary()}")
    register_run(planned.folder)
    return run_sweep_locally(plan, planned)


def _planned(options: argparse.Namespace, make: "MakeJob", origin_is_there: bool = True) -> "PlannedSweep":
    from hpcphotoz.launch.jobs.grid import parse_sweep
    from hpcphotoz.launch.jobs.sweep import plan_sweep

    runs = parse_sweep(options.sweep)
    jobs = {run.name: make(options, run.values) for run in runs}
    folder = Path(next(iter(jobs.values())).out)
    placed = {name: replace(job, out=str(folder / name)) for name, job in jobs.items()}
    return plan_sweep(folder, runs, placed, origin_is_there)


def add_sweep(p: Parser) -> None:
    """Add the option --sweep."""
    values = (
        "train once for each combination of values, in folders of --out: attack.eps=0.25,0.5 run.seed=0:5 "
        "(0,1,2,3,4); the same command goes on with runs that are not finished"
    )
    p.add_argument("--sweep", nargs="+", metavar="SECTION.KEY=VALUES", help=values)


def add(p: Parser) -> None:
    """Add the options that only Slurm understands."""
    p.add_argument("--at-most", type=count, metavar="N", help="runs of a sweep at the same time")
    jobs = "queue N jobs for one run, each after the one before, for queues with a short time limit"
    p.add_argument("--chain", type=count, metavar="N", help=jobs)
    wait = "begin when the newest job of this run or sweep, or this job, has ended well; repeatable"
    p.add_argument("--after", dest="after_runs", action="append", metavar="RUN|JOB", help=wait)
