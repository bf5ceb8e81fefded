"""BadInput, the exception for errors that a user can correct, and the hint of its messages."""

import difflib
from collections.abc import Iterable


class BadInput(Exception):
    """Input that cannot be used. The message is one line: what is wrong, where, and what to do.

    The command line prints it and exits with status 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """The hint " (did you mean X?)" with the known word most like `word`; empty if none is similar."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; libraries append whole logs to it."""
    return (str(error).strip().splitlines() or [""])[0]
