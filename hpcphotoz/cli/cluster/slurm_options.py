"""Options of `launch slurm` that ask the cluster for something."""

from hpcphotoz.cli.parser import Parser, memory


def add(p: Parser) -> None:
    """Add the options that only Slurm understands."""
    p.add_argument("--nodes", type=int, help="nodes (default 1)")
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
