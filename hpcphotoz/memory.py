"""What the C library does with memory that is given back to it."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 2**30  # one allocation that is kept


def keep_freed_memory() -> bool:
    """Keep freed memory in this process instead of handing it back to the system (glibc's mallopt).

    A network on a CPU frees and takes tens of MB at every layer; by default each is fetched from the system
    and cleared anew. Gradients of the small CNN took 1.2 to 1.3 times as long. The process stays at its peak
    memory. Not on import: it is the whole program's choice. The commands `train`, `attack`, `evaluate` and
    `predict` make it where there is no GPU.

    Returns:
        Whether it was done: not without glibc, nor where MALLOC_TRIM_THRESHOLD_ or MALLOC_MMAP_THRESHOLD_
        is set, which then holds.
    """
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    # Older glibc takes no more than 32 MB here; and to set either ends its own adapting, so not one alone.
    taken = any(mallopt(_MMAP_THRESHOLD, size) for size in (_LARGEST, 2**25))
    return taken and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
