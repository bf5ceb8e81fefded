"""The commands `launch local` and `launch slurm`."""

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from hpcphotoz.cli.cluster import doctor, job_series, slurm_options
from hpcphotoz.cli.cluster.launched_command import command_job
from hpcphotoz.cli.parser import Commands, Parser, command
from hpcphotoz.cli.training import configuration, datasets, parse_train, stage
from hpcphotoz.errors import BadInput, nearest

if TYPE_CHECKING:
    from hpcphotoz.launch.command_job import CommandJob
    from hpcphotoz.launch.job import TrainJob
    from hpcphotoz.launch.request.plan import LaunchPlan

_RUN_AFTER = "launch: give the run after `--`, e.g. launch slurm --nodes 2 -- train CONFIG --data D --out RUN"
_THEN = "[OPTION ...] -- train CONFIG --data DATASET[:WEIGHT] ... --out RUN [...]"
_LAUNCHED = "predict, evaluate, attack, ingest, simulate"


def cut(words: list[str]) -> tuple[list[str], list[str] | None]:
    """A command line cut at the `--` of `launch`: what is before it, and the run after it, if there is one.

    Raises:
        BadInput: the words of a run without `--` before them.
    """
    if words[:1] != ["launch"]:
        return words, None
    if "--" in words:
        place = words.index("--")
        return words[:place], words[place + 1 :]
    if {"train", "--data", "--out"} & {word.partition("=")[0] for word in words}:
        raise BadInput(_RUN_AFTER)
    return words, None


def local(options: argparse.Namespace) -> int:
    """Run `train`, or another command, on this machine, one process per rank."""
    from hpcphotoz.launch.command_job import check_ranks
    from hpcphotoz.launch.follow.runs import register_run
    from hpcphotoz.launch.local import run_local

    plan = _plan(options)
    if options.sweep:
        return job_series.sweep_locally(options, plan, _train_job)
    job = _job(options)
    check_ranks(job.kind, plan.nodes * plan.ranks_per_node)
    if job.kind == "train":  # the others have no run folder
        register_run(Path(job.out))
    return run_local(plan, job)


def slurm(options: argparse.Namespace) -> int:
    """Run `train`, or another command, on a Slurm cluster, one task per rank."""
    from hpcphotoz.launch import slurm
    from hpcphotoz.launch.command_job import check_ranks
    from hpcphotoz.launch.follow.runs import register_run

    plan, dependency = _plan(options), job_series.dependency(options)
    if options.sweep:
        return job_series.sweep(options, plan, _train_job, dependency)
    if options.chain is not None:
        return job_series.chain(options, plan, _train_job(options), dependency)
    job = _job(options, inputs_are_there=not dependency)
    check_ranks(job.kind, plan.nodes * plan.ranks_per_node)
    if options.dry_run:
        print(slurm.dry_run(plan, job, dependency), end="")
        return 0
    submitted = slurm.submit(plan, job, job_series.warn, dependency)
    register_run(Path(job.out))
    print(f"job {submitted.job_id}, logs in {submitted.logs}/{submitted.job_id}_<rank>_log.out")
    job_series.print_follow(Path(job.out))
    return 0


def _job(options: argparse.Namespace, inputs_are_there: bool = True) -> "TrainJob | CommandJob":
    """The run, or another command, after `--`."""
    if options.after and options.after[0] in _LAUNCHED.split(", "):
        return command_job(options.after, options.words, inputs_are_there)
    return _train_job(options)


def _train_job(options: argparse.Namespace, swept: Mapping[str, str] | None = None) -> "TrainJob":
    """The run after `--`, with the values of swept options."""
    from hpcphotoz.launch.job import TrainJob

    if options.after and options.after[0] in _LAUNCHED.split(", "):
        raise BadInput(f"launch: --sweep and --chain are for train, not for {options.after[0]}")
    if not options.after or options.after[0] != "train":
        raise BadInput(_not_launched(options.after))
    words = parse_train(options.after)
    how = {"profile": words.profile, "device": words.device, "command": tuple(options.words)}
    how["stage"] = stage(words)
    if words.start_from:
        how["start_from"] = str(words.start_from.absolute())
    return TrainJob.of(configuration(words, swept), datasets(words), words.out, **how)


def _not_launched(words: list[str] | None) -> str:
    """Why the words after `--` cannot be launched."""
    from hpcphotoz.cli import command_names

    if not words or words[0].startswith("-"):
        return f"{_RUN_AFTER}; also launched: {_LAUNCHED}"
    word, known = words[0], command_names()
    if word in known:
        return f"launch: {word} is for one process: run it here; launched are train, {_LAUNCHED}"
    return f"{word}: unknown command{nearest(word, known)}; launched are train, {_LAUNCHED}"


def _plan(options: argparse.Namespace) -> "LaunchPlan":
    """The options before `--`, on top of the profile's."""
    from hpcphotoz.launch.request.plan import LaunchPlan
    from hpcphotoz.launch.request.profile import load_profile, plan_of

    name = getattr(options, "profile", None)
    given = {field.name: getattr(options, field.name, None) for field in fields(LaunchPlan)}
    return plan_of(given, load_profile(name) if name else None)


def add(commands: Commands) -> None:
    """Add the parsers of `launch local` and `launch slurm`."""
    launches = "run `train`, or another command, on a cluster or on this machine"
    p = commands.add_parser("launch", help=launches, allow_abbrev=False)
    kinds = p.add_subparsers(dest="kind", required=True, metavar="local|slurm|doctor")

    here = command(kinds, "local", local)
    here.usage = f"%(prog)s {_THEN}"
    _add_ranks(here, "GPUs to use (default: all that are visible)")

    cluster = command(kinds, "slurm", slurm)
    cluster.usage = f"%(prog)s {_THEN}"
    _add_ranks(cluster, "GPUs per node, e.g. 4 or h100:4 (default 0: none)")
    slurm_options.add(cluster)
    job_series.add(cluster)
    doctor.add(kinds)

    for name in cluster.options():
        p.refused.setdefault(name, f"give it after the kind of launch: launch slurm {name} ...")
        if name not in here.options():
            here.refused[name] = "means nothing on this machine: leave it out, or use `launch slurm`"


def _add_ranks(p: Parser, gpus: str) -> None:
    """Options of every kind of launch."""
    p.add_argument("--tasks-per-node", type=int, help="ranks per node (default: one per GPU, or one)")
    p.add_argument("--gpus-per-node", metavar="[TYPE:]N", help=gpus)
    p.add_argument("--cpus-per-task", type=int, help="CPUs per rank (default 2)")
    job_series.add_sweep(p)
