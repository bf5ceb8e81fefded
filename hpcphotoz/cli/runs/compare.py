"""The command `compare`: the difference of two runs, or a table of many."""

import argparse
from pathlib import Path
from typing import Any

from hpcphotoz.cli.parser import Commands, command, path
from hpcphotoz.cli.runs.summary import check_plot, plot, print_json, print_lines
from hpcphotoz.errors import BadInput


def compare(options: argparse.Namespace) -> int:
    """Print how two runs differ; or, of a sweep or more runs, a table of results, best first."""
    from hpcphotoz.launch.jobs.sweep_file import is_sweep

    runs: list[Path] = options.runs
    if len(runs) == 2 and not any(map(is_sweep, runs)):
        return _compare_two(options, runs[0], runs[1])
    if options.plot:
        raise BadInput(f"--plot {options.plot}: is for two runs")
    return _print_table(options, runs)


def _print_table(options: argparse.Namespace, runs: list[Path]) -> int:
    from hpcphotoz.launch.jobs.sweep_file import read_sweep
    from hpcphotoz.training.summary.run_table import run_table, table_lines

    sweep = read_sweep(runs[0]) if len(runs) == 1 else None
    facts = [one for run in runs for one in _facts(run, alone=sweep is not None)]
    if len(runs) == 1 and sweep is None:
        raise BadInput(f"{runs[0]}: one run: give OTHER runs too, or the folder of a sweep")
    rows = run_table(facts, sweep.keys if sweep else None)
    if options.json:
        print_json({"runs": rows})
    else:
        print_lines(table_lines(rows))
    return 0


def _facts(folder: Path, alone: bool) -> list[dict[str, Any]]:
    """The figures of a run, or of each run of a sweep."""
    from hpcphotoz.launch.follow.queue import read_queue
    from hpcphotoz.launch.follow.status import read_status
    from hpcphotoz.launch.jobs.sweep_file import read_sweep
    from hpcphotoz.training.summary.run_summary import read_config
    from hpcphotoz.training.summary.run_table import run_facts

    sweep = read_sweep(folder)
    if sweep is None:
        read_config(folder)  # refuses what is not a run
        return [run_facts(str(folder), folder, read_status(folder).state)]
    found, queue = [], read_queue(entry.job for entry in sweep.runs if entry.job)
    for entry in sweep.runs:
        run = folder / entry.folder
        begun = entry.job or (run / "provenance.json").exists()
        state = read_status(run, queue).state if begun else "pending"
        # Beside other runs all options are compared, and not only the swept ones.
        name, values = (entry.folder, entry.values) if alone else (str(run), None)
        found.append(run_facts(name, run, state, values))
    return found


def _compare_two(options: argparse.Namespace, one: Path, other: Path) -> int:
    """Print how two runs differ: options, data, versions, loss curves, validations, speed, weights."""
    from hpcphotoz.training.summary.comparison import compare
    from hpcphotoz.training.summary.comparison_text import comparison_lines
    from hpcphotoz.training.summary.metrics_lines import MetricsLines

    pair = one, other
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
    p.add_argument(
        "runs", type=path, nargs="+", metavar="RUN", help="two run folders, more, or that of a sweep"
    )
    p.add_argument("--plot", type=path, metavar="FILE.png", help="plot the curves of two into this PNG file")
    p.add_argument("--json", action="store_true", help="print JSON instead")
