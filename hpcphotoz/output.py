"""Writing to standard output and error, which may be closed, full, or of a limited encoding."""

import os
import sys

TYPE_CHECKING = False  # importing typing would double the time in which Ctrl-C gives a traceback
if TYPE_CHECKING:
    from typing import TextIO


def prepare() -> None:
    """Make the standard streams usable: call it once, as a program starts.

    Characters that the terminal's encoding lacks are printed as escapes. A descriptor that the caller closed
    is opened on /dev/null: otherwise the next file would get its number, and whatever libraries print.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(text: str, stream: "TextIO | None" = None) -> None:
    """Print a line; if it cannot be written, the program continues.

    Args:
        text: the line.
        stream: standard output by default. After a failure it writes to /dev/null, and a warning is logged.
    """
    stream = sys.stdout if stream is None else stream
    try:
        print(text, file=stream, flush=True)
    except OSError as error:
        discard(stream)
        import logging

        logging.getLogger(__name__).warning("%s: %s; continuing without it", _name(stream), error.strerror)


def number_of(n: int, one: str, many: str = "") -> str:
    """A number with its noun, such as "1 shard" or "2 shards".

    Args:
        n: the number.
        one: the noun in the singular.
        many: the plural, if it is not `one` with an s.
    """
    return f"{n} {one if n == 1 else many or one + 's'}"


def flush() -> None:
    """Flush both streams; at exit the interpreter would do it too late to report an error.

    Raises:
        OSError: standard output cannot be written; the error's `filename` names the stream.
    """
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except OSError as error:
            discard(stream)
            if stream is sys.stdout:
                error.filename = _name(stream)
                raise


def discard(stream: "TextIO") -> None:
    """Redirect a stream that cannot be written to /dev/null."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # not a file of the system, or closed
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)


def _name(stream: "TextIO") -> str:
    return "standard error" if stream is sys.stderr else "standard output"
