"""Shows a run while it trains: a live view at a terminal, plain lines elsewhere. On standard error."""

import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpcphotoz.output import say
from hpcphotoz.progress import FINISHED, terminal
from hpcphotoz.training.reporting.run_progress import RunProgress
from hpcphotoz.training.reporting.sinks import Sink

_LEAST_S = 1.0  # between plain lines
_REFRESHES = 4  # a second, of the live view
_GAP, _LEAST_BAR, _LEAST_NAME = 2, 10, 8  # columns


class RunView(Sink, Protocol):
    """Shows the progress of a run."""

    def track(self, steps: Iterable[int]) -> Iterator[int]:
        """The same steps; each is counted when the next one is asked for."""
        ...


def open_view(progress: RunProgress) -> RunView:
    """A live view if standard error is a terminal that can move its cursor, or plain lines."""
    if sys.stderr.isatty() and not terminal().is_dumb_terminal:
        return LiveView(progress)
    return PlainLines(progress)


class PlainLines:
    """Prints a line for a line of training metrics: the first, the last, and between them one a second."""

    name = "lines of progress"

    def __init__(self, progress: RunProgress) -> None:
        self._progress, self._last = progress, -math.inf

    def track(self, steps: Iterable[int]) -> Iterator[int]:
        """As `RunView.track`."""
        return _counted(steps, self._progress)

    def write(self, line: Mapping[str, Any]) -> None:
        """Print a line of training; others are printed elsewhere, or not at all."""
        one = self._progress
        one.add(line)
        now = one.clock()
        if "part" in line or (now - self._last < _LEAST_S and line["step"] < one.last_step):
            return
        self._last = now
        step = f"step {line['step']} of {one.last_step}, {one.epoch_text}"
        say(f"{one.name}: {step}: {one.training_text}, {one.eta_text}", sys.stderr)

    def close(self) -> None:
        """Nothing to do."""


class LiveView:
    """Draws a bar and the latest figures, four times a second, below what else is printed."""

    name = "live view"

    def __init__(self, progress: RunProgress) -> None:
        self._progress, self._console = progress, terminal()
        self._live = Live(
            console=self._console,
            get_renderable=self._draw,
            refresh_per_second=_REFRESHES,
            redirect_stdout=sys.stdout.isatty(),  # else `train > file` would leave the file empty
        )

    def track(self, steps: Iterable[int]) -> Iterator[int]:
        """As `RunView.track`; the view appears."""
        self._live.start()
        return _counted(steps, self._progress)

    def write(self, line: Mapping[str, Any]) -> None:
        """Show the figures of the line from the next refresh on."""
        self._progress.add(line)

    def close(self) -> None:
        """Draw the last state, which stays on the terminal."""
        self._live.stop()

    def _draw(self) -> RenderableType:
        one, width = self._progress, self._console.width
        lines = [text for text in (one.training_text, one.validation_text) if text]
        texts = (Text(line) for text in lines for line in _lines_of_parts(text, width))
        return Group(self._head(width), *texts)

    def _head(self, width: int) -> RenderableType:
        """Name, epoch, bar, step and time to the end; narrow terminals have the name cut, or no bar."""
        one = self._progress
        epoch, end = one.epoch_text, f"{one.step_text}, {one.eta_text}"
        least = min(cell_len(one.name), _LEAST_NAME)
        room = width - len(f": {epoch}{end}") - 2 * _GAP - _LEAST_BAR
        if room < least:
            beside = width - len(f": {epoch}, {end}")
            name = _cut(one.name, beside if beside >= least else max(width - len(f": {epoch},"), 1))
            return Group(*map(Text, _lines_of_parts(f"{name}: {epoch}, {end}", width)))
        above = Table.grid(padding=(0, _GAP, 0, 0), expand=True)
        for ratio in (None, 1, None):
            above.add_column(no_wrap=True, ratio=ratio)
        bar = ProgressBar(total=one.last_step, completed=one.step, finished_style=FINISHED)
        above.add_row(Text(f"{_cut(one.name, room)}: {epoch}"), bar, Text(end))
        return above


def _cut(name: str, columns: int) -> str:
    text = Text(name)
    text.truncate(columns, overflow="ellipsis")
    return text.plain


def _lines_of_parts(text: str, width: int) -> list[str]:
    """A text in lines of at most `width` columns, broken after commas, so that no figure is cut."""
    lines = [""]
    for part in re.split(r"(?<=,) ", text):
        longer = f"{lines[-1]} {part}".lstrip()
        if cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return [line for line in lines if line]


def _counted(steps: Iterable[int], progress: RunProgress) -> Iterator[int]:
    for step in steps:
        yield step
        progress.reach(step + 1)
