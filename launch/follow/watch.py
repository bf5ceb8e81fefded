"""Shows runs until they have ended: a live table at a terminal, a line for each change elsewhere."""

import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.follow.reasons import stopped_because
from hpcphotoz.launch.follow.status import RunStatus, have_ended, read_statuses
from hpcphotoz.output import say
from hpcphotoz.progress import FINISHED, terminal

INTERRUPTED = 130
_STYLES = {"running": "cyan", "pending": "yellow", "requeued": "yellow", "finished": "green"}
_BAR, _LEAST_FOR_BARS = 12, 100  # columns
_TENTHS = 10  # of a run: a change of the step that is worth a line

Read = Callable[[Sequence[Path]], tuple[list[RunStatus], str]]


def watch(
    runs: Sequence[Path],
    every_s: float,
    console: Console | None = None,
    read: Read = read_statuses,
    wait: Callable[[float], None] = time.sleep,
) -> int:
    """Show the states of runs until all have ended, or until Ctrl-C, which leaves the runs alone.

    Args:
        runs: run folders.
        every_s: seconds between two looks; each asks Slurm once for all runs.
        console: where to show them; standard output by default.
        read: gives their states, and why Slurm could not be asked.
        wait: waits some seconds.

    Returns:
        The exit status of the run; of several the greatest. 130 after Ctrl-C.

    Raises:
        BadInput: no run has begun in any of the folders.
    """
    console = console or terminal(sys.stdout)
    try:
        if console.is_terminal and not console.is_dumb_terminal:
            found = _live(runs, every_s, console, read, wait)
        else:
            found = _lines(runs, every_s, read, wait)
    except KeyboardInterrupt:
        say("hpcphotoz: no longer shown; the runs go on (`hpcphotoz cancel RUN` ends one)", sys.stderr)
        return INTERRUPTED
    for state in found:
        for line in state.failure_lines if len(found) == 1 else []:
            say(printable(line))
    return max(state.exit_status for state in found)


def _live(
    runs: Sequence[Path], every_s: float, console: Console, read: Read, wait: Callable[[float], None]
) -> list[RunStatus]:
    found, problem = _read(runs, read)
    answered = False
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(table(found, problem, console.width), refresh=True)
            answered = answered or not problem
            if have_ended(found, answered, problem):
                return found
            wait(every_s)
            found, problem = _read(runs, read)


def _lines(
    runs: Sequence[Path], every_s: float, read: Read, wait: Callable[[float], None]
) -> list[RunStatus]:
    shown: dict[str, object] = {}
    said = answered = False
    while True:
        found, problem = _read(runs, read)
        answered = answered or not problem
        if problem and not said:
            said = True
            say(f"hpcphotoz: warning: {printable(problem)}", sys.stderr)
        for state in found:
            if shown.get(state.run) != (now := _what_counts(state)):
                shown[state.run] = now
                say(f"{time.strftime('%H:%M:%S')} {printable(state.text)}")
        if have_ended(found, answered, problem):
            return found
        wait(every_s)


def _read(runs: Sequence[Path], read: Read) -> tuple[list[RunStatus], str]:
    found, problem = read(runs)
    if not found:
        raise BadInput(f"{runs[0]}: no training has begun in this folder: want a run folder")
    return found, problem


def _what_counts(state: RunStatus) -> object:
    """What of a state is worth a line when it changes: of the steps, tenths of the run."""
    total = state.figures.total or 0
    tenth = state.step * _TENTHS // total if total and state.step is not None else state.step is None
    return state.state, state.reason, state.slurm, state.requeues, state.starts, state.later, tenth


def table(states: Sequence[RunStatus], problem: str = "", width: int = 80) -> RenderableType:
    """A table of runs with their figures, and beneath it why one waits or failed.

    Args:
        states: of the runs.
        problem: why Slurm could not be asked.
        width: columns of the terminal; a narrow one has no bars.
    """
    bars = width >= _LEAST_FOR_BARS
    shown = Table(box=None, padding=(0, 2, 0, 0), expand=True)
    shown.add_column("run", no_wrap=True, overflow="ellipsis", ratio=1)
    shown.add_column("state", no_wrap=True)
    if bars:
        shown.add_column("", width=_BAR)
    for name in ("step", "images/s", "data wait", "ETA", "job"):
        shown.add_column(name, justify="right", no_wrap=True)
    for state in states:
        bar = [_bar(state)] if bars else []
        shown.add_row(
            _name(state), Text(state.state, _STYLES.get(state.state, "red")), *bar, *_figures(state)
        )
    notes = [Text.assemble(_name(state), f": {note}") for state in states if (note := _note(state))]
    beneath = Text(f"{time.strftime('%H:%M:%S')}; Ctrl-C ends this view, not the runs", "dim")
    parts: list[RenderableType] = [shown, *notes, beneath]
    return Group(*parts, *([Text(printable(problem), "yellow")] if problem else []))


def _name(state: RunStatus) -> Text:
    return Text(printable(Path(state.run).resolve().name), "bold")


def _bar(state: RunStatus) -> RenderableType:
    if not state.figures.total or state.step is None:
        return ""
    return ProgressBar(state.figures.total, state.step, width=_BAR, finished_style=FINISHED)


def _figures(state: RunStatus) -> list[str]:
    """Step, images/s, data wait, time to the end and job; rates are of a run that trains."""
    one, job = state.figures, printable(state.slurm_job or "")
    of = f"/{one.total}" if one.total else ""
    step = "-" if state.step is None else f"{state.step}{of}"
    if state.state != "running":
        return [step, "", "", "", job]
    return [
        step,
        "" if one.images_per_s is None else f"{one.images_per_s:,.0f}",
        "" if one.data_wait is None else f"{100 * one.data_wait:.1f} %",
        "" if one.eta_s is None else str(timedelta(seconds=round(one.eta_s))),
        job,
    ]


def _note(state: RunStatus) -> str:
    again = f"requeued {'once' if state.requeues == 1 else f'{state.requeues} times'}"
    parts = [
        stopped_because(state.reason) or "",
        f"expected to begin {state.expected}" if state.expected else "",
        f"job {state.slurm_job} {state.slurm}" if state.slurm else "",
        again if state.requeues else "",
        f"then {', '.join(state.later)}" if state.later else "",
    ]
    return printable("; ".join(part for part in parts if part))


def printable(text: str) -> str:
    """A text with its control characters as escapes."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
