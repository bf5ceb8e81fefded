"""Reads FITS files as surveys ship them: plain, tile-compressed (`.fz`), `.gz` or `.bz2`.

Every defect is a one-line error.
"""

import bz2
import gzip
import io
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

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
_PACKED = (".gz", ".bz2")
Window = tuple[slice, slice]  # rows and columns of a frame


@contextmanager
def open_fits(path: Path) -> Iterator[Any]:
    """Opens a file for the `with` body and yields its HDU list.

    A file that is packed as a whole is unpacked into memory; of any other, only what the body uses is read.
    Tiles of a compressed image are unpacked when its data are used.

    Raises:
        BadInput: the file is missing, truncated or not FITS, also if that shows only in the body.
    """
    with _open_unpacked(path) as file:
        # A truncated file is only a warning to astropy; so is a header card that is merely untidy.
        warnings.filterwarnings("error", ".*truncated", AstropyWarning)
        source = io.BytesIO(file.read()) if path.suffix in _PACKED else file
        with fits.open(source, memmap=False) as hdus:
            yield hdus


def read_header(path: Path, hdu: int | str = 0) -> Any:
    """Returns an HDU's header; of a packed file, no more than the first header is unpacked if that is it.

    Args:
        path: the file.
        hdu: the HDU's number, or its EXTNAME.

    Raises:
        BadInput: the file is missing, truncated within the header, not FITS, or has no such HDU.
    """
    if hdu != 0:
        with open_fits(path) as hdus:
            return find_hdu(hdus, hdu, path).header.copy()
    with _open_unpacked(path) as file:
        header = fits.Header.fromfile(file)
        if "SIMPLE" not in header:
            raise OSError("no SIMPLE keyword")
        return header


def find_hdu(hdus: Any, hdu: int | str, path: Path) -> Any:
    """Returns the HDU of that number or EXTNAME.

    Raises:
        BadInput: there is none.
    """
    try:
        return hdus[hdu]
    except (IndexError, KeyError):
        names = ", ".join(one.name or "without a name" for one in hdus)
        raise BadInput(f"{path}: has no HDU {hdu}: it has {names}") from None


def image_number(hdus: Any, path: Path) -> int:
    """Returns the number of the first HDU with a two-dimensional image.

    Raises:
        BadInput: there is none.
    """
    for k, hdu in enumerate(hdus):
        if hdu.is_image and hdu.header.get("NAXIS") == 2:
            return k
    raise BadInput(f"{path}: holds no two-dimensional image: fetch it again")


def read_pixels(
    hdus: Any,
    hdu: int | str,
    path: Path,
    window: Window | None = None,
    shape: tuple[int, int] | None = None,
) -> npt.NDArray[Any]:
    """Returns the pixels (y, x) of an HDU, of the type that they are stored in.

    Args:
        hdus: from `open_fits`.
        hdu: number or EXTNAME.
        path: for messages.
        window: None: all pixels.
        shape: rows and columns expected, those of the image that a map belongs to.

    Raises:
        BadInput: no such HDU, no image in it, or pixels of another shape.
    """
    one = find_hdu(hdus, hdu, path)
    found = one.shape if one.is_image else ()
    if len(found) != 2 or (shape is not None and found != shape):
        wanted = f"its image is of {_size(shape)}" if shape is not None else "expected an image"
        raise BadInput(f"{path}: HDU {hdu} is of {_size(found)}: {wanted}: fetch both again")
    return np.asarray(one.data if window is None else one.section[window])


def read_map(path: Path, shape: tuple[int, int], window: Window | None = None) -> npt.NDArray[Any]:
    """Returns the pixels (y, x) of a file of one map: those of the first HDU with an image.

    Raises:
        BadInput: unreadable, or of another shape.
    """
    with open_fits(path) as hdus:
        return np.array(read_pixels(hdus, image_number(hdus, path), path, window, shape))


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


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape[::-1]) + " pixels" if shape else "no pixels"
