"""Options of `launch slurm` that ask the cluster for something."""

from hpcphotoz.cli.parser import Parser

# Options that have another name now, and what to write instead.
_RENAMED = {
    "--time-minutes": "is now --time, in Slurm's form: --time 240, --time 4:00:00 or --time 1-12:00:00",
    "--mem-gb": "is now --mem, with its unit: --mem 64G",
}


def add(p: Parser) -> None:
    """Add the options that only Slurm understands."""
    profile = "profile of a cluster, by name or path, e.g. perlmutter; options given here replace those in it"
    p.add_argument("--profile", metavar="NAME", help=f"{profile} (see `hpcphotoz profiles`)")
    p.add_argument("--nodes", type=int, help="nodes (default 1)")
    memory = "memory per node, e.g. 64G; 0: all of the node (default: the partition's)"
    p.add_argument("--mem", metavar="SIZE[K|M|G|T]", help=memory)
    limit = "time limit, as for sbatch: minutes, h:m:s, d-h:m:s ... (default 60); the run is requeued and "
    p.add_argument("--time", metavar="TIME", help=f"{limit}continues")
    delay = "seconds before the limit at which a checkpoint is saved (default 120)"
    p.add_argument("--signal-delay-s", type=int, help=delay)
    p.add_argument("--max-requeues", type=int, help="requeues in a row without progress (default 10)")
    for name in ("partition", "account", "qos", "constraint", "exclude", "job-name"):
        p.add_argument(f"--{name}", help=f"Slurm's {name}")
    _add_python(p)
    srun = "a further srun option, e.g. --srun=--cpu-bind=cores; repeatable"
    p.add_argument("--srun", action="append", metavar="--KEY=VALUE", help=srun)
    extra = "a further sbatch option, key=value or key; repeatable"
    p.add_argument("--extra", action="append", metavar="KEY=VALUE", help=extra)
    p.add_argument("--dry-run", action="store_true", help="print the sbatch script; submit and write nothing")
    p.refused |= _RENAMED


def _add_python(p: Parser) -> None:
    """Options that say which Python runs on the nodes."""
    setup = "shell line to run before the start, e.g. 'module load cuda'; repeatable"
    p.add_argument("--setup", action="append", metavar="LINE", help=setup)
    python = "Python on the nodes (default: this one); `python`: that of a module loaded by --setup"
    p.add_argument("--python", metavar="PATH", help=python)
    p.add_argument("--conda", metavar="ENV", help="conda environment on the nodes, by name or path")
    image = "image of a container in which the ranks run; the data and the run folder are bound"
    p.add_argument("--container", metavar="IMAGE", help=image)
    runtime = "program that starts the container (default apptainer); pyxis: srun's --container-image"
    p.add_argument("--container-runtime", choices=("apptainer", "pyxis"), help=runtime)
