"""The command `logs`."""

import argparse
import sys

from hpcphotoz.cli.parser import Commands, command, count, path, seed
from hpcphotoz.cli.runs.summary import print_lines
from hpcphotoz.errors import BadInput
from hpcphotoz.output import flush

_LINES = 40


def logs(options: argparse.Namespace) -> int:
    """Print the end of the log of a run's rank, or the ranks that failed with their tracebacks."""
    from hpcphotoz.launch.follow.logs import error_lines, failures_of, follow, last_lines, newest_log
    from hpcphotoz.launch.follow.runs import runs_of
    from hpcphotoz.launch.follow.watch import INTERRUPTED

    runs = runs_of(options.run)
    if runs != [options.run]:
        raise BadInput(f"{options.run}: holds several runs: give one, such as {runs[0]}")
    rank = 0 if options.rank is None else options.rank
    if options.errors:
        if options.follow or options.lines is not None:
            raise BadInput("--errors: prints the tracebacks whole: leave out --follow and --lines")
        found = [one for one in failures_of(options.run) if options.rank in (None, one.rank)]
        print_lines(error_lines(found) or [f"{options.run}: no rank has recorded an error"])
        return 0
    lines = options.lines or _LINES
    if not options.follow:
        print_lines([line.expandtabs() for line in last_lines(newest_log(options.run, rank), lines)])
        return 0
    try:
        for line in follow(options.run, rank, lines):
            print_lines([line.expandtabs()])
            flush()
    except KeyboardInterrupt:
        print("hpcphotoz: no longer followed; the run goes on", file=sys.stderr)
        return INTERRUPTED
    return 0


def add(commands: Commands) -> None:
    """Add the parser of `logs`."""
    p = command(commands, "logs", logs)
    p.add_argument("run", type=path, metavar="RUN", help="run folder")
    p.add_argument("--rank", type=seed, metavar="N", help="whose log (default 0; with --errors all)")
    p.add_argument("--lines", type=count, metavar="N", help=f"lines from the end (default {_LINES})")
    p.add_argument("--follow", action="store_true", help="print what is written until the run has ended")
    p.add_argument("--errors", action="store_true", help="the ranks that failed, with their tracebacks")
