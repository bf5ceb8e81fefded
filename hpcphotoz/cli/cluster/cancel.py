"""The command `cancel`."""

import argparse

from hpcphotoz.cli.parser import Commands, command, path
from hpcphotoz.cli.runs.summary import print_lines


def cancel(options: argparse.Namespace) -> int:
    """Cancel a run: its jobs in Slurm, or its process on this machine; it saves a checkpoint first."""
    from hpcphotoz.launch.follow.cancel import cancel

    print_lines(cancel(options.run))
    return 0


def add(commands: Commands) -> None:
    """Add the parser of `cancel`."""
    p = command(commands, "cancel", cancel)
    run = "run folder, or one with the runs of a sweep: all of them are cancelled"
    p.add_argument("run", type=path, metavar="RUN", help=run)
