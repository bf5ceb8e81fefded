"""The command line: one thin function for each command."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hpcphotoz import __version__
from hpcphotoz.cli import data, evaluate, inspect, networks, training
from hpcphotoz.cli.cluster import cancel, launch, logs, profiles, status
from hpcphotoz.cli.command_ranks import sharing_ranks
from hpcphotoz.cli.parser import Parser
from hpcphotoz.cli.prediction import predict
from hpcphotoz.cli.runs import compare
from hpcphotoz.errors import BadInput
from hpcphotoz.ranks import RankLost
from hpcphotoz.sources.mpi import refuse_ranks

# Commands that divide their work over ranks. Others would repeat everything on each rank.
_SHARED = ("predict", "evaluate", "ingest", "simulate")
_FOR_RANKS = ("train", *_SHARED)
_TAKE_OPTIONS = ("train", "config")  # --section.key, of the configuration


def run(arguments: Sequence[str]) -> int:
    """Parse a command line and run its command; returns the exit status.

    Raises:
        BadInput: words that are not understood, or input that a command cannot use.
    """
    words, after = launch.cut(list(arguments))
    if not words:
        _parser().print_help()
        return 0
    options = parse(words)
    if options.command not in _FOR_RANKS:
        refuse_ranks(
            f"{options.command} is for one process: start it once, without srun, mpiexec or torchrun"
        )
    options.after, options.words = after, ("hpcphotoz", *arguments)
    if options.command in _SHARED:
        return _share(options)
    status: int = options.function(options)
    return status


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options of a command line, with the words that may be options of the configuration in `rest`.

    Raises:
        BadInput: words that are not understood.
    """
    parser = _parser()
    parser.refuse_unknown(words)
    options, rest = parser.parse_known_args(list(words))
    options.rest = rest
    if rest and options.command not in _TAKE_OPTIONS:
        raise BadInput(f"{' '.join(rest)}: not understood (see hpcphotoz {options.command} --help)")
    return options


def command_names() -> list[str]:
    """The names of all commands."""
    (commands,) = (one for one in _parser()._actions if isinstance(one, argparse._SubParsersAction))
    return list(commands.choices)


def _share(options: argparse.Namespace) -> int:
    """Run a command whose work the ranks of a launcher divide; status 1: another rank was lost."""
    try:
        with sharing_ranks(options.words, options.out or Path()) as options.ranks:
            status: int = options.function(options)
            return status
    except RankLost as error:
        print(f"hpcphotoz: error: {error}", file=sys.stderr)
        return 1


def _parser() -> Parser:
    parser = Parser(
        prog="hpcphotoz", description="Adversarially trained photometric redshifts.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"hpcphotoz {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    data.add(commands)
    inspect.add(commands)
    training.add_config(commands)
    training.add_train(commands)
    networks.add(commands)
    predict.add(commands)
    evaluate.add(commands)
    launch.add(commands)
    profiles.add(commands)
    status.add(commands)
    logs.add(commands)
    cancel.add(commands)
    compare.add(commands)
    return parser
