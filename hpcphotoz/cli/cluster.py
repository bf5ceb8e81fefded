"""The command `launch`; the only importer of hpcphotoz.launch."""

import argparse
import sys
from dataclasses import fields
from typing import Any

from hpcphotoz.cli.parser import Commands, command, memory
from hpcphotoz.cli.training import configuration, parse_train
from hpcphotoz.errors import BadInput


def launch(options: argparse.Namespace) -> int:
    """Run `train` on a cluster, or here with one process a rank: launch WHERE [...] -- train CONFIG ..."""
    from hpcphotoz.launch import slurm
    from hpcphotoz.launch.job import TrainJob

    if not options.after or options.after[0] != "train":
        raise BadInput(
            "launch: give the run after `--`, e.g. launch slurm --nodes 2 -- train CONFIG --data D --out RUN"
        )
    words = parse_train(options.after)
    job = TrainJob.of(
        configuration(words),
        words.data,
        words.out,
        profile=words.profile,
        device=words.device,
        command=options.words,
    )
    given = {field.name: getattr(options, field.name) for field in fields(slurm.LaunchPlan)}
    chosen: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None
    }
    plan = slurm.LaunchPlan(**chosen)
    if options.dry_run:
        if options.where == "local":
            raise BadInput(
                "launch local --dry-run: nothing to show; `launch slurm --dry-run` prints the sbatch script"
            )
        print(slurm.dry_run(plan, job), end="")
        return 0
    if options.where == "local":
        return slurm.run_local(plan, job)
    submitted = slurm.submit(plan, job, lambda text: print(f"hpcphotoz: warning: {text}", file=sys.stderr))
    print(f"job {submitted.job_id}, logs in {submitted.logs}/{submitted.job_id}_<rank>_log.out")
    return 0


def add(commands: Commands) -> None:
    """Add the parser of `launch`."""
    p = command(commands, "launch", launch)
    p.add_argument(
        "where",
        choices=("local", "slurm"),
        metavar="local|slurm",
        help="local: this machine; slurm: sbatch, one task a rank",
    )
    p.add_argument("--nodes", type=int, help="nodes (default 1)")
    p.add_argument("--tasks-per-node", type=int, help="ranks a node (default: one a GPU, or one)")
    p.add_argument(
        "--gpus-per-node",
        type=int,
        help="GPUs a node (default 0: slurm gives none; local takes those that are visible)",
    )
    p.add_argument("--cpus-per-task", type=int, help="CPUs a rank (default 2)")
    p.add_argument("--mem-gb", type=memory, help="memory a node in GB (default: the partition's)")
    p.add_argument(
        "--time-minutes", type=int, help="time limit in minutes (default 60); a run goes on after it"
    )
    p.add_argument(
        "--signal-delay-s", type=int, help="seconds before the limit at which to save (default 120)"
    )
    p.add_argument("--max-requeues", type=int, help="restarts after time limits and preemptions (default 10)")
    for name in ("partition", "account", "qos", "constraint", "exclude", "job-name"):
        p.add_argument(f"--{name}", help=f"Slurm's {name}")
    p.add_argument(
        "--setup", action="append", help="a shell line before the start, e.g. 'module load cuda'; repeatable"
    )
    p.add_argument("--extra", action="append", help="a further sbatch option, key=value or key; repeatable")
    p.add_argument("--dry-run", action="store_true", help="print the sbatch script; submit and write nothing")
