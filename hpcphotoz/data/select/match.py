"""Matches the objects of two catalogues by their positions on the sky."""

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.select.duplicates import unit_vectors
from hpcphotoz.data.select.groups import has_position
from hpcphotoz.errors import BadInput

Array = npt.NDArray[np.float64]


def match_positions(
    one: tuple[Array, Array], other: tuple[Array, Array], arcsec: float
) -> npt.NDArray[np.int64]:
    """Pairs of objects that are each other's nearest neighbour and closer than a separation.

    Args:
        one, other: ra and dec of the objects of each catalogue, deg; objects without a position are in no
            pair.
        arcsec: the separation.

    Returns:
        (P, 2) places in both catalogues, ascending in the first.

    Raises:
        BadInput: scipy is not installed.
    """
    try:
        from scipy.spatial import cKDTree
    except ImportError as error:
        raise BadInput(f"{error}: matching needs `pip install 'hpcphotoz[sources]'`") from None
    places = [np.flatnonzero(has_position(*positions)) for positions in (one, other)]
    if not all(map(len, places)):
        return np.zeros((0, 2), np.int64)
    trees = [
        cKDTree(unit_vectors(ra[place], dec[place]))
        for (ra, dec), place in zip((one, other), places, strict=True)
    ]
    chord, nearest = trees[1].query(trees[0].data)
    back = trees[0].query(trees[1].data)[1]
    close = 2 * np.degrees(np.arcsin(np.minimum(chord / 2, 1))) * 3600 < arcsec
    found = np.flatnonzero(close & (back[nearest] == np.arange(len(nearest))))
    return np.column_stack([places[0][found], places[1][nearest[found]]]).astype(np.int64)
