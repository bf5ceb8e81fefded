"""The command line: one thin function a command."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from hpcphotoz import __version__, cli_data, cli_networks, config
from hpcphotoz.cli_parser import Parser, add_device, command, memory, path
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.parallel import refuse_ranks

_FOR_RANKS = ("train", "ingest", "simulate")  # any other command would do and write everything once a rank


def run(arguments: Sequence[str]) -> int:
    """Parse a command line and run its command; returns the exit status.

    Raises:
        BadInput: words that are not understood, or what a command cannot use.
    """
    words, after = list(arguments), None
    if words[:1] == ["launch"] and "--" in words:
        cut = words.index("--")
        words, after = words[:cut], words[cut + 1 :]
    parser = _parser()
    if not words:
        parser.print_help()
        return 0
    parser.refuse_unknown(words)
    options, rest = parser.parse_known_args(words)
    if rest and options.command != "train":
        raise BadInput(f"{' '.join(rest)}: not understood (see hpcphotoz {options.command} --help)")
    if options.command not in _FOR_RANKS:
        refuse_ranks(
            f"{options.command} is for one process: start it once, without srun, mpiexec or torchrun"
        )
    options.rest, options.after, options.words = rest, after, ("hpcphotoz", *arguments)
    status: int = options.function(options)
    return status


def train(options: argparse.Namespace) -> int:
    """Train one network on this process's share of the ranks."""
    from hpcphotoz.training.group import RankLost
    from hpcphotoz.training.trainer import Diverged, train

    settings = config.load(options.config, _overrides(options))
    try:
        train(settings, options.data, options.out, options.profile, options.device)
    except (Diverged, RankLost) as error:
        print(f"hpcphotoz: error: {error}", file=sys.stderr)
        return 1
    return 0


def launch(options: argparse.Namespace) -> int:
    """Run `train` on a cluster, or here with one process a rank: launch [...] -- train CONFIG --data D --out
    RUN.
    """
    from dataclasses import fields

    from hpcphotoz.launch import slurm
    from hpcphotoz.launch.job import TrainJob

    if not options.after or options.after[0] != "train":
        raise BadInput(
            "launch: give the run after `--`, e.g. launch slurm --nodes 2 -- train CONFIG --data D --out RUN"
        )
    parser = _parser()
    parser.refuse_unknown(options.after)
    words, rest = parser.parse_known_args(options.after)
    words.rest = rest
    job = TrainJob.of(
        config.load(words.config, _overrides(words)),
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


def _overrides(options: argparse.Namespace) -> dict[str, str]:
    given = {name: value for name, value in vars(options).items() if "." in name}
    rest = list(options.rest)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--") or not (equals or rest):
            raise BadInput(f"{word}: not understood; options of the configuration are --section.key value")
        given[name[2:]] = value if equals else rest.pop(0)
    return given


def _parser() -> Parser:
    parser = Parser(
        prog="hpcphotoz", description="Adversarially trained photometric redshifts.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"hpcphotoz {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    cli_data.add(commands)

    p = command(commands, "train", train)
    p.add_argument("config", help=f"TOML file, or a recipe: {', '.join(config.recipes())}")
    p.add_argument("--data", type=path, required=True, help="dataset folder")
    p.add_argument("--out", type=path, required=True, help="run folder; one that holds this run is resumed")
    p.add_argument("--where", dest="data.where", default=argparse.SUPPRESS, help="short for --data.where")
    p.add_argument(
        "--profile",
        action="store_true",
        help="write where the time of a step goes: OUT/profile/trace.json (Perfetto) and summary.txt",
    )
    add_device(p)
    group = p.add_argument_group("configuration (overrides the TOML file)")
    for name, (default, text) in config.options().items():
        help_text = f"{text} (default {default})".replace("%", "%%")
        group.add_argument(f"--{name}", dest=name, default=argparse.SUPPRESS, metavar="X", help=help_text)

    cli_networks.add(commands)

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
    return parser
