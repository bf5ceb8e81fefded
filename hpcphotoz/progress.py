"""Progress of long work: a bar at a terminal, plain lines elsewhere. Writes to standard error only."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import IO, TextIO, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hpcphotoz.output import say

T = TypeVar("T")
_LINE_EVERY_S = 10.0
# Of a finished bar. rich's own is an RGB green, which 16-colour terminals show in the grey of an empty bar.
FINISHED = "green"


def track(
    items: Iterable[T], what: str, total: int, weight: int | Callable[[T], int] = 1, done: int = 0
) -> Iterator[T]:
    """Yield the items while showing the progress.

    Args:
        items: the iterable.
        what: description of the work with its unit, such as "simulating galaxies".
        total: number of units.
        weight: units per item, or a function of the item; the last item may count fewer.
        done: units that are already done, in a run that is resumed.
    """
    units: Callable[[T], int] = weight if callable(weight) else lambda item: weight
    if sys.stderr.isatty():
        yield from _bar(items, what, total, units, done)
    else:
        yield from _lines(items, what, total, units, done)


def _bar(items: Iterable[T], what: str, total: int, units: Callable[[T], int], done: int) -> Iterator[T]:
    bar = BarColumn(finished_style=FINISHED)
    columns = (TextColumn("{task.description}"), bar, MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal(), redirect_stdout=sys.stdout.isatty()) as progress:
        task = progress.add_task(what, total=total, completed=done)
        for item in items:
            yield item
            progress.update(task, advance=units(item))


def _lines(items: Iterable[T], what: str, total: int, units: Callable[[T], int], done: int) -> Iterator[T]:
    start = last = time.monotonic()
    for item in items:
        yield item
        done = min(done + units(item), total)
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S or done == total:
            last = now
            say(f"{what}: {done}/{total} in {now - start:.0f} s", sys.stderr)


def terminal(stream: TextIO | None = None) -> Console:
    """A console on a stream, standard error by default.

    It never hides the cursor: a process that is killed could not show it.
    """
    return _Console(file=cast(IO[str], _Terminal(stream or sys.stderr)))


class _Console(Console):
    def show_cursor(self, show: bool = True) -> bool:
        return False


class _Terminal:
    """A stream for the bar; if the terminal has gone, output is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream  # the bar replaces sys.stderr while it is shown
        self.encoding = self._stream.encoding

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()
