"""Mask planes of SDSS DR7.

`fpM-RRRRRR-BC-FFFF.fit[.gz]` flags the pixels of a corrected frame that are not to be trusted. HDU k + 1 is
the plane of value k in the last HDU's table of names. A plane is a list of object masks; the column `s` of a
mask holds its spans as triples of big-endian int16: row, first and last column, from 0.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.surveys.fits import open_fits

# Planes of pixels that were filled in instead of measured, or that are not sky, whatever galaxy is there.
# INTERP contains SATUR and CR, and also the camera's dead columns, 11 to 19 of 2048 in u, g, r and i: it
# would lose one 64-pixel stamp in three, for columns that the survey interpolated well. NOTCHECKED is the
# frame's edge.
BAD_PLANES = ("SATUR", "CR", "GHOST")
_PREFIX = "S_MASK_"
MaskFlags = npt.NDArray[np.uint8]  # (y, x), bit k: plane k


def read_mask(path: Path, shape: tuple[int, int], planes: Sequence[str] = BAD_PLANES) -> MaskFlags:
    """Reads mask planes: an image (y, x) with bit k set where plane k of these flags the pixel.

    Args:
        path: the fpM file of the frame's band.
        shape: rows and columns of the frame.
        planes: at most eight of INTERP, SATUR, NOTCHECKED, OBJECT, BRIGHTOBJECT, BINOBJECT, CATOBJECT,
            SUBTRACTED, GHOST, CR.

    Raises:
        BadInput: unreadable, not mask planes, a plane that the file does not have, or a span outside `shape`.
    """
    flags = np.zeros(shape, np.uint8)
    with open_fits(path) as hdus:
        values = _plane_numbers(hdus, path)
        for k, plane in enumerate(planes):
            if plane not in values:
                raise BadInput(f"{path}: no mask plane {plane}: it has {', '.join(values)}")
            for y, start, stop in _spans(hdus[values[plane] + 1].data, shape, path):
                flags[y, start:stop] |= 1 << k
    return flags


def _plane_numbers(hdus: Any, path: Path) -> dict[str, int]:
    """Returns the number of each plane by its name."""
    table = hdus[-1].data
    names = getattr(getattr(table, "dtype", None), "names", None) or ()
    if not {"attributeName", "Value"} <= set(names):
        raise BadInput(f"{path}: its last HDU names no mask planes: expected an fpM file of SDSS DR7")
    pairs = zip(table["attributeName"], table["Value"], strict=True)
    found = {str(name).removeprefix(_PREFIX): int(k) for name, k in pairs if str(name).startswith(_PREFIX)}
    if max(found.values(), default=0) + 2 > len(hdus) - 1:
        raise BadInput(f"{path}: {len(hdus) - 2} mask planes but {len(found)} names: fetch it again")
    return found


def _spans(table: Any, shape: tuple[int, int], path: Path) -> npt.NDArray[np.intp]:
    """Returns row, first column and the column after the last of each span of a plane."""
    if table is None or not len(table):
        return np.zeros((0, 3), np.intp)
    if not {"nspan", "row0", "col0", "s"} <= set(table.dtype.names):
        raise BadInput(f"{path}: a mask plane without columns nspan, row0, col0, s: expected an fpM file")
    spans = np.frombuffer(b"".join(np.asarray(s, np.uint8).tobytes() for s in table["s"]), ">i2")
    if spans.size != 3 * int(table["nspan"].sum()):
        raise BadInput(f"{path}: {spans.size} span values for {table['nspan'].sum()} spans: fetch it again")
    if np.any(table["row0"]) or np.any(table["col0"]):
        raise BadInput(f"{path}: a mask with an offset (row0, col0): only masks of whole frames are read")
    row, first, last = spans.reshape(-1, 3).T.astype(np.intp)
    # A NOTCHECKED span of run 6377 camcol 4 field 399 in g starts at column -1: cut it off, do not refuse it.
    first = np.maximum(first, 0)
    if row.min() < 0 or row.max() >= shape[0] or last.max() >= shape[1]:
        raise BadInput(f"{path}: a masked pixel outside the frame of {shape[1]} x {shape[0]} pixels")
    return np.stack([row, first, last + 1], axis=1)
