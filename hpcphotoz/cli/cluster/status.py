"""The command `status`."""

import argparse
import json
import sys

from hpcphotoz.cli.parser import Commands, command, count, path
from hpcphotoz.cli.runs.summary import print_lines
from hpcphotoz.errors import BadInput

_NEWEST = 20  # runs that are listed


def status(options: argparse.Namespace) -> int:
    """Tell how runs go or ended. Status 0: finished, running or waiting; 75: stopped; 1: failed or lost."""
    from hpcphotoz.launch.follow.runs import registered_runs, runs_of
    from hpcphotoz.launch.follow.status import read_status, read_statuses

    if options.run is None:
        runs = registered_runs(None if options.all else _NEWEST)
        if not runs:
            print("no runs: `hpcphotoz train` and `hpcphotoz launch` add theirs to this list")
            return 0
    elif options.all:
        raise BadInput("--all: is for the list of all runs: leave out RUN")
    else:
        runs = runs_of(options.run)
    one = options.run is not None and runs == [options.run]
    if options.watch is not None:
        from hpcphotoz.launch.follow.watch import watch

        if options.json:
            raise BadInput("--watch --json: give one of them")
        return watch(runs, options.watch)
    if one:
        found = read_status(options.run)
        print_lines([found.json] if options.json else found.lines)
        _warn(found.problem)
        return found.exit_status
    states, problem = read_statuses(runs)
    if options.json:
        print(json.dumps([state.facts for state in states]))
    else:
        print_lines([state.short for state in states])
    _warn(problem)
    return max((state.exit_status for state in states), default=0) if options.run else 0


def _warn(problem: str) -> None:
    if problem:
        print(f"hpcphotoz: warning: {problem}", file=sys.stderr)


def _interval(text: str) -> int:
    """Parse seconds; a folder's name is one that --watch has taken."""
    try:
        return count(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error} of seconds (write RUN before --watch)") from None


def add(commands: Commands) -> None:
    """Add the parser of `status`."""
    p = command(commands, "status", status)
    run = "run folder, or one with the runs of a sweep (default: your newest runs)"
    p.add_argument("run", type=path, nargs="?", metavar="RUN", help=run)
    p.add_argument("--all", action="store_true", help=f"list all of your runs, not the newest {_NEWEST}")
    p.add_argument("--json", action="store_true", help="print one JSON object instead of the line")
    watched = "show the state until all of these runs have ended, every SECONDS (default 5)"
    p.add_argument("--watch", type=_interval, nargs="?", const=5, metavar="SECONDS", help=watched)
