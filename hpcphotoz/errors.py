"""The one exception a user is meant to see, and a hint for it."""

import difflib
from collections.abc import Iterable


class BadInput(Exception):
    """Input that cannot be used: the message is one line that says what, where, and what to do.

    The command line prints it and exits with status 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """ " (did you mean X?)" with the known word that is most like `word`; empty where none is."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; libraries append whole logs to it."""
    return (str(error).strip().splitlines() or [""])[0]
