"""The command `launch`."""

import argparse
import sys
from dataclasses import fields
from typing import Any

from hpcphotoz.cli.parser import Commands, command, memory
from hpcphotoz.cli.training import configuration, datasets, parse_train, stage
from hpcphotoz.errors import BadInput

_RUN_AFTER = "launch: give the run after `--`, e.g. launch slurm --nodes 2 -- train CONFIG --data D --out RUN"


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


def launch(options: argparse.Namespace) -> int:
    """Run `train` on a Slurm cluster or on this machine, one process per rank."""
    from hpcphotoz.launch import slurm
    from hpcphotoz.launch.job import TrainJob
    from hpcphotoz.launch.local import run_local
    from hpcphotoz.launch.request.plan import LaunchPlan

    if not options.after or options.after[0] != "train":
        raise BadInput(_RUN_AFTER)
    words = parse_train(options.after)
    how = {"profile": words.profile, "device": words.device, "command": tuple(options.words)}
    how["stage"] = stage(words)
    if words.start_from:
        how["start_from"] = str(words.start_from.absolute())
    job = TrainJob.of(configuration(words), datasets(words), words.out, **how)
    given = {field.name: getattr(options, field.name) for field in fields(LaunchPlan)}
    chosen: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None
    }
    plan = LaunchPlan(**chosen)
    if options.dry_run:
        if options.where == "local":
            raise BadInput(
                "launch local --dry-run: nothing to show; `launch slurm --dry-run` prints the sbatch script"
            )
        print(slurm.dry_run(plan, job), end="")
        return 0
    if options.where == "local":
        return run_local(plan, job)
    submitted = slurm.submit(plan, job, lambda text: print(f"hpcphotoz: warning: {text}", file=sys.stderr))
    print(f"job {submitted.job_id}, logs in {submitted.logs}/{submitted.job_id}_<rank>_log.out")
    return 0


def add(commands: Commands) -> None:
    """Add the parser of `launch`."""
    p = command(commands, "launch", launch)
    p.usage = "%(prog)s local|slurm [OPTION ...] -- train CONFIG --data DATASET[:WEIGHT] ... --out RUN [...]"
    where = "local: on this machine; slurm: with sbatch, one task per rank"
    p.add_argument("where", choices=("local", "slurm"), metavar="local|slurm", help=where)
    p.add_argument("--nodes", type=int, help="nodes (default 1)")
    p.add_argument("--tasks-per-node", type=int, help="ranks per node (default: one per GPU, or one)")
    gpus = "GPUs per node (default 0: none from slurm; local uses all that are visible)"
    p.add_argument("--gpus-per-node", type=int, help=gpus)
    p.add_argument("--cpus-per-task", type=int, help="CPUs per rank (default 2)")
    p.add_argument("--mem-gb", type=memory, help="memory per node in GB (default: the partition's)")
    limit = "time limit in minutes (default 60); the run is requeued and continues"
    p.add_argument("--time-minutes", type=int, help=limit)
    delay = "seconds before the limit at which a checkpoint is saved (default 120)"
    p.add_argument("--signal-delay-s", type=int, help=delay)
    p.add_argument("--max-requeues", type=int, help="restarts after time limits and preemptions (default 10)")
    for name in ("partition", "account", "qos", "constraint", "exclude", "job-name"):
        p.add_argument(f"--{name}", help=f"Slurm's {name}")
    setup = "shell line to run before the start, e.g. 'module load cuda'; repeatable"
    p.add_argument("--setup", action="append", help=setup)
    p.add_argument("--extra", action="append", help="a further sbatch option, key=value or key; repeatable")
    p.add_argument("--dry-run", action="store_true", help="print the sbatch script; submit and write nothing")
