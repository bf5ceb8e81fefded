"""The commands `train` and `config`."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hpcphotoz.cli.parser import Commands, Parser, add_device, command, condition, path
from hpcphotoz.cli.runs.summary import print_lines
from hpcphotoz.config import Config
from hpcphotoz.config import load as config
from hpcphotoz.errors import BadInput
from hpcphotoz.node.prepare import prepare_rank
from hpcphotoz.world import detect, under_torchrun

if TYPE_CHECKING:
    from hpcphotoz.data.datasets import Datasets


def train(options: argparse.Namespace) -> int:
    """Train a network; under torchrun, srun or mpiexec, as one of its ranks. Status 75: stopped and saved."""
    prepare_rank(detect())  # before torch is imported
    from hpcphotoz.launch.follow.runs import register_run
    from hpcphotoz.training.loop import Diverged, Outcome
    from hpcphotoz.training.monitoring.lost_ranks import RankLost
    from hpcphotoz.training.run.signals import ignore_stops
    from hpcphotoz.training.trainer import train

    settings = configuration(options)
    if options.rehearse is not None:
        return _rehearse(settings, options)
    try:
        where = datasets(options), options.out, options.profile, options.device
        if detect().is_first:
            register_run(options.out)
        outcome = train(settings, *where, start_from=options.start_from, stage=stage(options))
    except (Diverged, RankLost) as error:
        print(f"hpcphotoz: error: {error}", file=sys.stderr)
        return 1
    ignore_stops()
    return os.EX_TEMPFAIL if outcome is Outcome.STOPPED and not under_torchrun() else 0


def _rehearse(settings: Config, options: argparse.Namespace) -> int:
    """Rehearse the run; status 1: something does not fit or agree."""
    from hpcphotoz.training.rehearsal.problems import problems
    from hpcphotoz.training.rehearsal.ranks import RehearsedRanks
    from hpcphotoz.training.rehearsal.rehearse import rehearse
    from hpcphotoz.training.rehearsal.report import report_lines

    ranks = RehearsedRanks.parse(options.rehearse)
    for name, given in (("--profile", options.profile), ("--stage", options.stage is not None)):
        if given:
            raise BadInput(f"{name}: a rehearsal writes nothing: leave out {name} or --rehearse")
    found = rehearse(settings, datasets(options), options.out, ranks, options.device, options.start_from)
    print_lines(report_lines(found))
    return 1 if problems(found) else 0


def show_config(options: argparse.Namespace) -> int:
    """Print a complete commented configuration: that of a recipe, or of a file of any version."""
    settings = config.load(options.config, _overrides(options), convert=True)
    title = f"Made from {options.config}. Train with: hpcphotoz train THIS_FILE --data DATASET --out RUN"
    print(config.commented_toml(settings, title), end="")
    return 0


def configuration(options: argparse.Namespace, swept: Mapping[str, str] | None = None) -> Config:
    """The configuration that a command line gives: a file or recipe, and --section.key overrides.

    Args:
        options: of the command line.
        swept: values of further options, by `section.key`; raises BadInput for one that is in both.
    """
    given = _overrides(options)
    if twice := given.keys() & (swept or {}):
        name = min(twice)
        raise BadInput(f"--sweep {name}: --{name} is given after `train` too: give it once")
    return config.load(options.config, given | dict(swept or {}))


def datasets(options: argparse.Namespace) -> "Datasets":
    """The datasets that a command line gives; raises BadInput as `Datasets.parse`."""
    from hpcphotoz.data.datasets import Datasets

    return Datasets.parse(options.data)


def stage(options: argparse.Namespace) -> str | None:
    """The absolute folder of --stage; "": the option without a folder; None: no such option."""
    if options.stage is None:
        return None
    return str(options.stage.absolute()) if options.stage else ""


def parse_train(words: Sequence[str]) -> argparse.Namespace:
    """The options of a launched command line whose first word is `train`; raises BadInput as `Parser`."""
    parser = Parser(prog="hpcphotoz", allow_abbrev=False)
    add_train(parser.add_subparsers(dest="command", required=True))
    parser.refuse_unknown(words)
    options, rest = parser.parse_known_args(list(words))
    options.rest = rest
    if options.rehearse is not None:
        raise BadInput(
            "--rehearse: takes one process: start `hpcphotoz train ... --rehearse N` without launch"
        )
    return options


def add_train(commands: Commands) -> None:
    """Add the parser of `train`, its options grouped by section of the configuration."""
    p = command(commands, "train", train)
    p.usage = "%(prog)s CONFIG --data DATASET[:WEIGHT] ... --out RUN [--SECTION.KEY VALUE ...]"
    _add_source(p)
    folders = (
        "dataset folder, or several with weights, such as a:0.7 b:0.3: every global batch holds objects of "
        "each in these shares, rounded to whole objects (the name of a folder is taken as it is, colons "
        "included)"
    )
    p.add_argument(
        "--data", type=_dataset, nargs="+", required=True, metavar="DATASET[:WEIGHT]", help=folders
    )
    help_text = "run folder; one that holds this run is resumed"
    p.add_argument("--out", type=path, required=True, metavar="RUN", help=help_text)
    weights = (
        "begin a new run with the weights of another: a run folder, one of its checkpoints, or a network as "
        ".safetensors; bands, redshift bins and section model must be the same"
    )
    p.add_argument("--from", dest="start_from", type=path, metavar="RUN", help=weights)
    p.add_argument(
        "--where",
        dest="data.where",
        type=condition,
        default=argparse.SUPPRESS,
        metavar="TEXT",
        help="short for --data.where",
    )
    p.add_argument(
        "--split-by",
        dest="data.split_by",
        default=argparse.SUPPRESS,
        metavar="TEXT",
        help="short for --data.split_by",
    )
    copies = (
        "first copy the dataset to a disk of every node, and read it there: to FOLDER, or else to "
        "$SLURM_TMPDIR, $TMPDIR or /tmp; the copies are removed at the end"
    )
    p.add_argument("--stage", type=path, nargs="?", const=False, metavar="FOLDER", help=copies)
    profile = "write where the time of a step goes: OUT/profile/trace.json (Perfetto) and summary.txt"
    p.add_argument("--profile", action="store_true", help=profile)
    rehearsal = (
        "train nothing and write nothing: plan what N ranks would do, take two steps as rank R (0 by "
        "default) and report what does not fit; in one process"
    )
    p.add_argument("--rehearse", metavar="N[:R]", help=rehearsal)
    add_device(p)
    _add_sections(p)


def add_config(commands: Commands) -> None:
    """Add the parser of `config`."""
    p = command(commands, "config", show_config)
    p.usage = "%(prog)s CONFIG [--SECTION.KEY VALUE ...]"
    _add_source(p)
    _add_sections(p)


def _dataset(text: str) -> str:
    path(text)  # refuses an empty one
    return text


def _add_source(parser: Parser) -> None:
    recipes = ", ".join(config.recipes())
    parser.add_argument("config", metavar="CONFIG", help=f"TOML file, or a recipe: {recipes}")


def _add_sections(parser: Parser) -> None:
    options = config.options()
    for section, fields in config.sections().items():
        group = parser.add_argument_group(f"{section}: {config.summary(fields).rstrip('.')}")
        for name, (default, text) in options.items():
            if name.startswith(f"{section}."):
                help_text = f"{text} (default {default or 'none'})".replace("%", "%%")
                group.add_argument(
                    f"--{name}", dest=name, default=argparse.SUPPRESS, metavar="VALUE", help=help_text
                )


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
