"""Imports of libraries that only reading and simulating images needs."""

from collections.abc import Iterator
from contextlib import contextmanager

from hpcphotoz.errors import BadInput


@contextmanager
def sources_extra() -> Iterator[None]:
    """Turns a failed import in the `with` body into one line that says what to install: a BadInput."""
    try:
        yield
    except ImportError as error:
        raise BadInput(f"{error}: this command needs `pip install 'hpcphotoz[sources]'`") from None
