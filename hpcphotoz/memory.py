"""Lets the C library keep freed memory, which speeds up networks on CPUs."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 2**30  # bytes of the largest allocation that is kept


def keep_freed_memory() -> bool:
    """Keep freed memory in this process instead of returning it to the system (mallopt of glibc).

    A network on a CPU allocates and frees tens of MB at every layer. By default the system provides and
    clears this memory anew each time, and gradients of the small CNN took 1.2 to 1.3 times as long. With this
    setting the process stays at its peak memory. It is not set on import, because it affects the whole
    program; the commands `train`, `attack`, `evaluate` and `predict` set it if there is no GPU.

    Returns:
        Whether it was set. It is not without glibc, nor if the user has set MALLOC_TRIM_THRESHOLD_ or
        MALLOC_MMAP_THRESHOLD_.
    """
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    # Older glibc accepts at most 32 MB here. Both thresholds are set, because glibc adapts neither any more
    # once one is set.
    accepted = any(mallopt(_MMAP_THRESHOLD, size) for size in (_LARGEST, 2**25))
    return accepted and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
