"""The command `compare`: the difference of two runs."""

import argparse

from hpcphotoz.cli.parser import Commands, command, path
from hpcphotoz.cli.runs.summary import check_plot, plot, print_json, print_lines
from hpcphotoz.errors import BadInput


def compare(options: argparse.Namespace) -> int:
    """Print how two runs differ: options, data, versions, loss curves, validations, speed, weights."""
    from hpcphotoz.training.summary.comparison import compare
    from hpcphotoz.training.summary.comparison_text import comparison_lines
    from hpcphotoz.training.summary.metrics_lines import MetricsLines

    pair = options.run, options.other
    if options.plot:
        check_plot(options.plot)
    facts, lines = compare(*pair), [MetricsLines.read(run) for run in pair]
    if options.plot:
        names = [run.resolve().name for run in pair]
        if names[0] == names[1]:
            names = [str(run) for run in pair]
        if names[0] == names[1]:
            raise BadInput(f"--plot {options.plot}: {names[0]} is given twice: nothing to compare")
        plot(dict(zip(names, pair, strict=True)), dict(zip(names, lines, strict=True)), options.plot)
    if options.json:
        print_json(facts)
    else:
        print_lines(comparison_lines(facts, lines))
    return 0


def add(commands: Commands) -> None:
    """Add the parser of `compare`."""
    p = command(commands, "compare", compare)
    p.add_argument("run", type=path, metavar="RUN", help="run folder")
    p.add_argument("other", type=path, metavar="OTHER", help="run folder that is compared with it")
    p.add_argument("--plot", type=path, metavar="FILE.png", help="plot the curves of both into this PNG file")
    p.add_argument("--json", action="store_true", help="print the differences as JSON")
