"""Drops files from the page cache, and counts which of their pages are in it (Linux)."""

import ctypes
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

_LEFT = (
    0.01  # of the pages of a folder that may stay: the kernel keeps a page that is being written or mapped
)


def cold(read: Callable[[], float], folder: Path) -> Callable[[], float]:
    """A reader whose files in a folder are dropped from the page cache before each pass.

    Raises:
        RuntimeError: files stay in the page cache, or came into it by another way before the pass began.
    """

    def read_cold() -> float:
        left = drop(sorted(path for path in folder.rglob("*") if path.is_file()))
        if left > _LEFT:
            raise RuntimeError(f"{folder}: {left:.1%} of the pages stay in the page cache: not a cold pass")
        return read()

    return read_cold


def drop(paths: Iterable[Path]) -> float:
    """Drop files from the page cache; returns the fraction of their pages that are still there."""
    pages = resident = 0
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(number)  # a page that is not on the disk yet is not dropped
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(number)
        found = pages_in_cache(path)
        pages, resident = pages + len(found), resident + int(found.sum())
    return resident / max(pages, 1)


def pages_in_cache(path: Path) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Which pages of a file are in the page cache, by mincore: (pages,).

    Raises:
        OSError: mincore refuses.
    """
    size = path.stat().st_size
    found = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    if size:
        mapped = np.memmap(path, np.uint8, "r")
        libc = ctypes.CDLL(None, use_errno=True)
        begin, into = ctypes.c_void_p(mapped.ctypes.data), ctypes.c_void_p(found.ctypes.data)
        if libc.mincore(begin, ctypes.c_size_t(size), into):
            raise OSError(ctypes.get_errno(), "mincore", str(path))
    return (found & 1).astype(np.bool_)
