"""Numbers the equal-area pixels of the sphere, HEALPix (Gorski et al. 2005, ApJ 622, 759).

Written with numpy alone: the split of a training depends on it, and training must start on a node that has
only torch, numpy and h5py. The tests compare it with astropy_healpix.
"""

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
MAX_NSIDE = 8192  # 26 arcsec a pixel


def nested_pixel(ra: Floats, dec: Floats, nside: int) -> Int64Array:
    """The HEALPix pixel of each position in the NESTED scheme, (N,) from 0 to 12 nside^2 - 1.

    The sphere is cut into twelve faces of nside x nside pixels. On a face, a pixel counts x to the north-east
    and y to the north-west, both from the face's southern corner; its number interleaves their bits.

    Args:
        ra: (N,) deg, finite; 0 and 360 are the same.
        dec: (N,) deg, -90 to 90.
        nside: pixels along the side of a face, a power of two from 1 to MAX_NSIDE.
    """
    z = np.sin(np.radians(dec))
    turn = np.mod(ra / 90, 4)  # right ascension in quarter turns
    turn = np.where(turn >= 4, 0, turn)  # the remainder of -1e-20 is rounded to 4
    face, x, y = (np.empty(len(z), np.int64) for _ in range(3))
    belt = np.abs(z) <= 2 / 3
    face[belt], x[belt], y[belt] = _equatorial(z[belt], turn[belt], nside)
    cap = ~belt
    face[cap], x[cap], y[cap] = _polar(dec[cap], turn[cap], nside)
    return face * nside**2 + _spread_bits(x) + 2 * _spread_bits(y)


def _equatorial(z: Floats, turn: Floats, nside: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Face and place on it for |z| <= 2/3, where lines of constant x or y are straight in (turn, z)."""
    rising = np.floor(nside * (0.5 + turn - 0.75 * z)).astype(np.int64)
    falling = np.floor(nside * (0.5 + turn + 0.75 * z)).astype(np.int64)
    left, right = rising // nside, falling // nside
    # Faces 0 to 3 are in the north, 4 to 7 at the equator, 8 to 11 in the south.
    face = np.where(left == right, left % 4 + 4, np.where(left < right, left % 4, right % 4 + 8))
    return face, falling % nside, nside - 1 - rising % nside


def _polar(dec: Floats, turn: Floats, nside: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Face and place on it for |z| > 2/3, where pixels shrink in right ascension towards the pole."""
    quarter = turn.astype(np.int64)
    # sqrt(3 (1 - |z|)), without the cancellation at the pole; 0 there and 1 at |z| = 2/3.
    distance = np.sqrt(6) * np.sin(np.radians(90 - np.abs(dec)) / 2)
    east = np.minimum(np.floor(nside * distance * (turn - quarter)).astype(np.int64), nside - 1)
    west = np.minimum(np.floor(nside * distance * (1 - turn + quarter)).astype(np.int64), nside - 1)
    north = dec > 0
    x, y = np.where(north, nside - 1 - west, east), np.where(north, nside - 1 - east, west)
    return np.where(north, quarter, quarter + 8), x, y


def _spread_bits(number: Int64Array) -> Int64Array:
    """Move bit k of each number below 2^16 to bit 2 k."""
    for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        number = (number | number << shift) & mask
    return number
