"""Reads FITS files as surveys ship them: plain, `.gz` or `.bz2`. Every defect is a one-line error."""

import bz2
import gzip
import io
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.optional_imports import sources_extra

with sources_extra():
    from astropy.io import fits
    from astropy.io.fits.verify import VerifyError
    from astropy.utils.exceptions import AstropyWarning

_READ_ERRORS = (
    *(OSError, EOFError, zlib.error, ValueError, TypeError, IndexError, KeyError),
    *(AstropyWarning, VerifyError),
)


@contextmanager
def open_fits(path: Path) -> Iterator[Any]:
    """Opens a file for the `with` body and yields its HDU list; the file is read whole.

    Raises:
        BadInput: the file is missing, truncated or not FITS, also if that shows only in the body.
    """
    with _open_unpacked(path) as file:
        # A truncated file is only a warning to astropy; so is a header card that is merely untidy.
        warnings.filterwarnings("error", ".*truncated", AstropyWarning)
        with fits.open(io.BytesIO(file.read())) as hdus:
            yield hdus


def read_header(path: Path) -> Any:
    """Returns the first HDU's header; no more of the file is read and unpacked.

    Raises:
        BadInput: the file is missing, truncated within the header, or not FITS.
    """
    with _open_unpacked(path) as file:
        header = fits.Header.fromfile(file)
        if "SIMPLE" not in header:
            raise OSError("no SIMPLE keyword")
        return header


def header_numbers(header: Any, keys: tuple[str, ...], path: Path, expected: str) -> dict[str, float]:
    """Returns the values of these keywords.

    Raises:
        BadInput: a keyword is absent, or its value is not a number.
    """
    lacking = [key for key in keys if key not in header]
    if lacking:
        raise BadInput(f"{path}: its header lacks {', '.join(lacking)}: expected {expected}")
    values: dict[str, float] = {}
    for key in keys:
        try:
            values[key] = float(header[key])
        except (TypeError, ValueError):
            raise BadInput(f"{path}: {key} = '{header[key]}' is not a number: expected {expected}") from None
    return values


@contextmanager
def _open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for the `with` body; what goes wrong there is one line, and astropy's warnings are off."""
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
    try:
        with openers.get(path.suffix, open)(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            yield file
    except _READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"{path}: not a readable FITS file ({reason}): fetch it again") from None
