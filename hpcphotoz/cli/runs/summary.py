"""`inspect` of a run folder."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.follow.status import read_status


def inspect_run(options: argparse.Namespace) -> int:
    """Print what a run folder tells of its run."""
    from hpcphotoz.training.summary.metrics_lines import MetricsLines
    from hpcphotoz.training.summary.run_summary import summarise
    from hpcphotoz.training.summary.summary_text import summary_lines

    run: Path = options.folder
    for name in ("verify", "duplicates", "out"):
        if getattr(options, name):
            raise BadInput(f"--{name}: is for datasets; {run} is a run")
    if options.plot:
        check_plot(options.plot)
    facts, lines, status = summarise(run), MetricsLines.read(run), read_status(run)
    if options.plot:
        plot({run.resolve().name: run}, {run.resolve().name: lines}, options.plot)
    if options.json:
        curve = {key: [line.get(key) for line in lines.training] for key in ("step", "loss")}
        print_json({**facts, "state": {**asdict(status), "exit_status": status.exit_status}, "curve": curve})
        return 0
    print_lines([status.text, *summary_lines(facts, lines, status.reason)])
    return 0


def check_plot(out: Path) -> None:
    """Refuse a picture that cannot be written, or drawn; raises BadInput."""
    from hpcphotoz.evaluation.report.pictures.gallery import check_plot_path

    check_plot_path(out)


def plot(runs: Mapping[str, Path], lines: Mapping[str, Any], out: Path) -> None:
    """Write the curves of runs, by their names, as a PNG file."""
    from hpcphotoz.evaluation.report.pictures.run_curves import Panel, Steps, plot_runs
    from hpcphotoz.training.summary.curves import best_step, event_steps, panels, resumed_steps

    found = [Panel(label, curves) for label, curves in panels(lines)]
    if not found:
        raise BadInput(f"--plot {out}: nothing to plot: no line of metrics yet")
    steps = {
        name: Steps(resumed_steps(run), best_step(run, lines[name]), event_steps(lines[name]))
        for name, run in runs.items()
    }
    plot_runs(found, steps, out)


def print_json(facts: Mapping[str, Any]) -> None:
    """Print facts as strict JSON: numbers that are not finite become null."""
    print(json.dumps(_finite(facts), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and value - value != 0 else value


def print_lines(lines: list[str]) -> None:
    """Print lines; control characters, which logs and names may hold, are printed as escapes."""
    for line in lines:
        print(line if line.isprintable() else line.encode("unicode_escape").decode())
