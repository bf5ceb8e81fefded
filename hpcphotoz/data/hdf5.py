"""Reads arrays and attributes of HDF5 files that other programs wrote, within a bound on memory.

An array is read if it holds plain numbers or text, is stored in the file itself, and is reached by a hard
link. A soft or external link, a virtual dataset and external storage lead to bytes in other files, whose
checksums and offsets are not known. Of the filters, those that h5py has built in and whose expansion can be
bounded are undone: shuffle, gzip, fletcher32 and LZF.
"""

import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5z

from hpcphotoz.errors import BadInput

try:
    from isal import isal_zlib
except ImportError:
    isal_zlib = None  # type: ignore[assignment]

Array = npt.NDArray[Any]
HAS_ISAL = isal_zlib is not None
_INFLATE: Any = isal_zlib or zlib
SHUFFLE, GZIP, FLETCHER32, LZF = (h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE, h5z.FILTER_FLETCHER32, 32000)
MAX_GZIP_EXPANSION = 1032  # bytes from one compressed byte
_DECODED_HERE = (SHUFFLE, GZIP, FLETCHER32)  # in the order in which h5py applies them
LARGEST_CHUNK = 1 << 28  # bytes uncompressed; reading holds a few chunks a thread
LARGEST_LZF_CHUNK = 1 << 22  # HDF5 undoes LZF without a limit, and LZF expands by 88 at most
_MAX_ATTRIBUTE_VALUES = 1000  # values of an attribute
# What h5py raises on a damaged file.
HDF5_ERRORS = (OSError, KeyError, RuntimeError, ValueError, IndexError, TypeError)


def open_file(path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    HDF5's file locks are off unless HDF5_USE_FILE_LOCKING is set: they fail on file systems mounted without
    locks (Lustre's -o noflock), and no process writes these files any more. HDF5 requires that all handles
    of a file in one process agree on locking.
    """
    return h5py.File(path, "r", locking=None if "HDF5_USE_FILE_LOCKING" in os.environ else False)


def attribute(owner: h5py.File | h5py.Dataset, name: str) -> Any:
    """Return an attribute of a file or array: a number, a text or a list of them; None where there is none.

    Raises:
        BadInput: it is of another type, for which HDF5 may crash, or longer than any list of bands.
    """
    if name not in owner.attrs:
        return None
    found = h5py.h5a.open(owner.id, name.encode())
    plain = found.get_type().get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING)
    if not plain or math.prod(found.shape or ()) > _MAX_ATTRIBUTE_VALUES:
        raise BadInput(
            f"{owner.file.filename}: attribute '{name}' is no number or text, nor a list of at most "
            f"{_MAX_ATTRIBUTE_VALUES}"
        )
    return owner.attrs[name]


def text_attribute(owner: h5py.File | h5py.Dataset, name: str) -> tuple[str, ...] | None:
    """Return an attribute of a file or an array that is a text or a list of texts; None where there is none.

    Raises:
        BadInput: as `attribute`, or it is of numbers, of several dimensions, or not in UTF-8.
    """
    if (found := attribute(owner, name)) is None:
        return None
    values = np.atleast_1d(found)
    try:
        decoded = [value.decode() if isinstance(value, bytes) else value for value in values.tolist()]
        if values.ndim == 1 and all(isinstance(value, str) and value.encode() for value in decoded):
            return tuple(decoded)
    except UnicodeError:
        pass
    raise BadInput(
        f"{owner.file.filename}: attribute '{name}' {values.tolist()}: want a list of names, in UTF-8"
    )


def checked_array(file: h5py.File, name: str) -> h5py.Dataset:
    """Return an array of a file once it has passed the checks that `read` relies on.

    Raises:
        BadInput: it is missing or no array, is not stored in this file or was never written, holds other than
            plain numbers or text, or takes an unknown filter or too much memory to read.
    """
    where = f"{file.filename}: '{name}'"
    try:
        if not isinstance(link := file.get(name, getlink=True), h5py.HardLink):
            kind = {h5py.SoftLink: "a soft link", h5py.ExternalLink: "an external link"}.get(type(link))
            raise BadInput(f"{where} is {f'{kind}: copy the array there' if kind else 'missing'}")
        data = file[name]
        if not isinstance(data, h5py.Dataset):
            raise BadInput(f"{where} is a group, want an array")
        if problem := _why_refused(data):
            raise BadInput(f"{where} {problem}")
    except HDF5_ERRORS as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"{where} cannot be read ({reason[:200]}): copy or write the file again") from None
    return data


def _why_refused(data: h5py.Dataset) -> str | None:
    """Why an array cannot be read, in words; None where it can."""
    plist, kind = data.id.get_create_plist(), data.dtype.kind
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        return "is a virtual dataset: copy the array into the file"
    if plist.get_external_count():
        return "is stored outside the file: copy the array into the file"
    if kind not in "fiubS" and h5py.check_string_dtype(data.dtype) is None:
        return f"is of type {data.dtype}: want plain numbers or text"
    known = filters(data)
    in_order = tuple(one for one in (SHUFFLE, GZIP, LZF, FLETCHER32) if one in known)
    if known != in_order or {GZIP, LZF} <= set(known):
        names = ", ".join(plist.get_filter(k)[3].decode(errors="replace") for k in range(len(known)))
        return f"has the filters {names or known}: write it with gzip, shuffle, fletcher32, lzf or none"
    if not data.nbytes:
        return None
    size, offset = data.file.id.get_filesize(), None
    if data.chunks is None:
        offset = data.id.get_offset()
        written = data.id.get_storage_size() >= data.nbytes
    else:
        chunk, limit = _chunk_bytes(data), LARGEST_LZF_CHUNK if LZF in known else LARGEST_CHUNK
        if chunk > limit:
            return f"has chunks of {chunk} bytes: write it with chunks of at most {limit}"
        wanted = math.prod(-(-n // c) for n, c in zip(data.shape, data.chunks, strict=True))
        written = data.id.get_num_chunks() == wanted
    if not written:
        return "was never written, or not whole: write it again"
    if (offset or 0) + data.nbytes > size * (MAX_GZIP_EXPANSION if known else 1):
        return f"is {data.dtype}{data.shape}, more than a file of {size} bytes holds: copy or write it again"
    return None


def is_stored_as(data: h5py.Dataset, dtype: npt.DTypeLike | None = None) -> bool:
    """Whether an array's bytes on the disk are those of this numpy type (None: of its own)."""
    wanted = np.dtype(dtype or data.dtype)
    return not wanted.hasobject and bool(data.id.get_type() == h5py.h5t.py_create(wanted))


def read(data: h5py.Dataset, start: int = 0, stop: int | None = None) -> Array:
    """Rows `start` to `stop - 1` of an array that `checked_array` has checked; None: to the end.

    Chunks with gzip are undone here and not by HDF5, which allocates whatever a hostile chunk expands to.

    Raises:
        OSError, RuntimeError, ValueError: damage.
    """
    stop = data.shape[0] if stop is None else min(stop, data.shape[0])
    known = filters(data)
    if not known or start >= stop:
        return np.asarray(data[start:stop])
    ours = not set(known) - set(_DECODED_HERE) and is_stored_as(data)
    out = np.empty((stop - start if ours else 0, *data.shape[1:]), data.dtype)
    for part in data.iter_chunks((slice(start, stop), *map(slice, data.shape[1:]))):
        place = tuple(at.start // size * size for at, size in zip(part, data.chunks, strict=True))
        info = data.id.get_chunk_info_by_coord(place)
        check_stored_size(info.size, _chunk_bytes(data))
        if GZIP not in known and not ours:
            continue
        mask, raw = data.id.read_direct_chunk(place)
        content, shuffled = undo_filters(raw, mask, known, _chunk_bytes(data))
        if ours:
            flat = unshuffle(content, data.dtype.itemsize) if shuffled else content
            chunk = np.frombuffer(flat, data.dtype).reshape(data.chunks)
            wanted = tuple(slice(at.start - k, at.stop - k) for at, k in zip(part, place, strict=True))
            out[(slice(part[0].start - start, part[0].stop - start), *part[1:])] = chunk[wanted]
    return out if ours else np.asarray(data[start:stop])


def _chunk_bytes(data: h5py.Dataset) -> int:
    return int(math.prod(data.chunks) * data.dtype.itemsize)


def filters(data: h5py.Dataset) -> tuple[int, ...]:
    """The filters of an array's chunks, in the order in which they were applied."""
    plist = data.id.get_create_plist()
    return tuple(plist.get_filter(k)[0] for k in range(plist.get_nfilters()))


def check_stored_size(stored: int, size: int) -> None:
    """Raise ValueError for a chunk that is larger than filters can make of `size` bytes: a damaged index."""
    if not 0 < stored <= size + size // 100 + 1024:
        raise ValueError(f"a chunk of {stored} bytes for {size} uncompressed ones")


def undo_filters(raw: Any, mask: int, known: Sequence[int], size: int) -> tuple[Any, bool]:
    """Undo a chunk's gzip and fletcher32 filters; also returns whether `unshuffle` is still to be done.

    Args:
        raw: as stored.
        mask: bit k is set where filter k was not applied.
        known: the filters in the order in which they were applied: of shuffle (always first), gzip and
            fletcher32.
        size: bytes of an uncompressed chunk; expansion stops there.

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
