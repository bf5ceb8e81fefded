"""Imports of libraries that only reading and simulating images needs."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from hpcphotoz.errors import BadInput


class MissingPackage(BadInput):
    """A package that reading or simulating images needs is not installed."""


def sources_extra() -> AbstractContextManager[None]:
    """Turns a failed import in the `with` body into one line that says what to install."""
    return _extra("sources")


def arrays_extra() -> AbstractContextManager[None]:
    """As `sources_extra`, of the libraries that read Zarr, Parquet and Arrow."""
    return _extra("arrays")


def dust_extra() -> AbstractContextManager[None]:
    """As `sources_extra`, of the library that reads maps of Galactic dust."""
    return _extra("dust")


@contextmanager
def _extra(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingPackage(f"{error}: this command needs `pip install 'hpcphotoz[{name}]'`") from None
