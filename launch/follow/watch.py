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
from hpcphotoz.launch.follow.status import RunStatus, read_statuses
from hpcphotoz.output import say
from hpcphotoz.progress import FINISHED

INTERRUPTED = 130
_STYLES = {"running": "cyan", "pending": "yellow", "requeued": "yellow", "finished": "green"}
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
    console = console or Console()
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
    with Live(table(found, problem), console=console, auto_refresh=False) as live:
        while True:
            live.update(table(found, problem), refresh=True)
            if not any(state.goes_on for state in found):
                return found
            wait(every_s)
            found, problem = _read(runs, read)


def _lines(
    runs: Sequence[Path], every_s: float, read: Read, wait: Callable[[float], None]
) -> list[RunStatus]:
    shown: dict[str, object] = {}
    said = False
    while True:
        found, problem = _read(runs, read)
        if problem and not said:
            said = True
            say(f"hpcphotoz: warning: {printable(problem)}", sys.stderr)
        for state in found:
            if shown.get(state.run) != (now := _what_counts(state)):
                shown[state.run] = now
                say(f"{time.strftime('%H:%M:%S')} {printable(state.text)}")
        if not any(state.goes_on for state in found):
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


def table(states: Sequence[RunStatus], problem: str = "") -> RenderableType:
    """A table of runs: name, state, bar, figures, and why one waits or failed."""
    shown = Table(box=None, padding=(0, 1), expand=True)
    for name, more in (("run", {"overflow": "ellipsis", "ratio": 2}), ("state", {})):
        shown.add_column(name, no_wrap=True, **more)  # type: ignore[arg-type]
    shown.add_column("", width=12)
    for name in ("step", "images/s", "data wait", "ETA"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("", ratio=4, overflow="fold")
    for state in states:
        figures, total = state.figures, state.figures.total
        going = state.state == "running"
        step = "-" if state.step is None else f"{state.step}/{total}" if total else str(state.step)
        bar = (
            ProgressBar(total=total, completed=state.step, width=12, finished_style=FINISHED)
            if total and state.step is not None
            else ""
        )
        shown.add_row(
            Text(printable(Path(state.run).resolve().name)),
            Text(state.state, _STYLES.get(state.state, "red")),
            bar,
            step,
            f"{figures.images_per_s:,.0f}" if going and figures.images_per_s is not None else "",
            f"{100 * figures.data_wait:.1f} %" if going and figures.data_wait is not None else "",
            str(timedelta(seconds=round(figures.eta_s))) if going and figures.eta_s is not None else "",
            Text(printable(_note(state))),
        )
    beneath = f"{time.strftime('%H:%M:%S')}, Ctrl-C ends this view, not the runs"
    parts: list[RenderableType] = [shown, Text(beneath, "dim")]
    return Group(*parts, *([Text(printable(problem), "yellow")] if problem else []))


def _note(state: RunStatus) -> str:
    again = f"requeued {'once' if state.requeues == 1 else f'{state.requeues} times'}"
    parts = [
        f"job {state.slurm_job}" if state.slurm_job else "",
        state.reason or "",
        f"expected {state.expected}" if state.expected else "",
        state.slurm or "",
        again if state.requeues else "",
        f"then {', '.join(state.later)}" if state.later else "",
    ]
    return "; ".join(part for part in parts if part)


def printable(text: str) -> str:
    """A text with its control characters as escapes."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
