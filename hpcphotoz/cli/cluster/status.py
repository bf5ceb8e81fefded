"""The command `status`."""

import argparse

from hpcphotoz.cli.parser import Commands, command, path


def status(options: argparse.Namespace) -> int:
    """Tell how a run ended. Exit status 0: it finished, or is running; 75: stopped; 1: failed or lost."""
    from hpcphotoz.launch.follow.status import read_status

    found = read_status(options.run)
    print(found.json if options.json else found.text)
    return found.exit_status


def add(commands: Commands) -> None:
    """Add the parser of `status`."""
    p = command(commands, "status", status)
    p.add_argument("run", type=path, metavar="RUN", help="run folder")
    p.add_argument("--json", action="store_true", help="print one JSON object instead of the line")
