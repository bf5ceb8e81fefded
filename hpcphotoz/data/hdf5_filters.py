"""Undoes HDF5's gzip, shuffle and fletcher32 filters, within a bound on the output."""

import zlib
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
from h5py import h5z

try:
    from isal import isal_zlib
except ImportError:
    isal_zlib = None  # type: ignore[assignment]

HAS_ISAL = isal_zlib is not None
_INFLATE: Any = isal_zlib or zlib
SHUFFLE, GZIP, FLETCHER32, LZF = (h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE, h5z.FILTER_FLETCHER32, 32000)
MAX_GZIP_EXPANSION = 1032  # bytes from one compressed byte


def filters(data: h5py.Dataset) -> tuple[int, ...]:
    """The filters of an array's chunks, in the order in which they were applied."""
    plist = data.id.get_create_plist()
    return tuple(plist.get_filter(k)[0] for k in range(plist.get_nfilters()))


def check_stored_size(stored: int, size: int) -> None:
    """Refuse a chunk that is larger than filters can make of `size` bytes.

    Raises:
        ValueError: its index is damaged.
    """
    if not 0 < stored <= size + size // 100 + 1024:
        raise ValueError(f"a chunk of {stored} bytes for {size} uncompressed ones")


def undo_filters(raw: Any, mask: int, known: Sequence[int], size: int) -> tuple[Any, bool]:
    """Undo a chunk's gzip and fletcher32 filters.

    Args:
        raw: as stored.
        mask: bit k is set where filter k was not applied.
        known: the filters in the order in which they were applied: of shuffle (always first), gzip and
            fletcher32.
        size: bytes of an uncompressed chunk; expansion stops there.

    Returns:
        The bytes, and whether the shuffle filter is still to be undone (see `unshuffle`).

    Raises:
        ValueError: the chunk is damaged.
    """
    shuffled = False
    for k in reversed(range(len(known))):
        if mask >> k & 1:
            continue
        if known[k] == FLETCHER32:
            raw = _strip_fletcher32(raw)
        elif known[k] == GZIP:
            try:
                inflate = _INFLATE.decompressobj()
                raw = inflate.decompress(raw, size + 1)
            except (zlib.error, _INFLATE.error) as error:
                raise ValueError(str(error)) from None
            if len(raw) <= size and not inflate.eof:
                raise ValueError("gzip stream ends too early")
        shuffled = known[k] == SHUFFLE
    if len(raw) != size:
        raise ValueError(f"{'more' if len(raw) > size else len(raw)} bytes instead of {size}")
    return raw, shuffled


def unshuffle(content: Any, item: int) -> bytes:
    """Undo the shuffle filter, which stores byte k of every number in plane k, and left-over bytes last."""
    raw = np.frombuffer(content, np.uint8)
    whole = len(raw) // item * item
    return raw[:whole].reshape(item, -1).T.tobytes() + raw[whole:].tobytes()


def _strip_fletcher32(raw: Any) -> Any:
    """Check and remove the checksum that HDF5's fletcher32 filter has appended."""
    if len(raw) < 4:
        raise ValueError("no checksum")
    content, stored = memoryview(raw)[:-4], int.from_bytes(memoryview(raw)[-4:], "little")
    words = np.frombuffer(bytes(content) + bytes(len(content) % 2), ">u2").astype(np.int64)
    low, weight = int(words.sum()), np.arange(len(words), 0, -1) % 0xFFFF
    high = int((words * weight % 0xFFFF).sum())
    # Sums of 16-bit words in one's complement, where 0 and 0xffff are the same number.
    if (low - (stored & 0xFFFF)) % 0xFFFF or (high - (stored >> 16)) % 0xFFFF:
        raise ValueError("checksum differs")
    return content
