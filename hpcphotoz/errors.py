"""BadInput, the exception for errors that a user can correct, and the hint of its messages."""

import difflib
import re
from collections.abc import Iterable


class BadInput(Exception):
    """Input that cannot be used. The message is one line: what is wrong, where, and what to do.

    The command line prints it and exits with status 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """The hint " (did you mean X?)" with the known word most like `word`; empty if none is similar.

    That is one that differs in the section alone (--eps, --attack.eps), is spelt alike, or begins with it.
    """
    names = list(known)
    found = [name for name in names if _without_section(name) == _without_section(word)]
    found = found or difflib.get_close_matches(word, names, n=1)
    found = found or [name for name in names if name.startswith(word)]
    return f" (did you mean {found[0]}?)" if found else ""


def _without_section(name: str) -> str:
    return name.lstrip("-").rpartition(".")[2]


def out_of_memory(error: BaseException) -> str | None:
    """The words for memory that the system or a GPU did not give; None: another error.

    torch's allocator for CPUs raises a RuntimeError: "... DefaultCPUAllocator: can't allocate memory: you
    tried to allocate 2199023254528 bytes. Error code 12 (Cannot allocate memory)". That for GPUs raises
    torch.OutOfMemoryError: "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity ...".
    """
    text = first_line(error)
    if isinstance(error, MemoryError):
        return f"out of memory {text}".rstrip()
    if type(error).__name__ == "OutOfMemoryError":  # of torch, which this module does not import
        size = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
        what = f": torch asked for {size[1]} more" if size else ""
        return f"out of the GPU's memory{what}: take a smaller compute.micro_batch, batch or network"
    if not isinstance(error, RuntimeError) or "can't allocate memory" not in text:
        return None
    size = re.search(r"(\d+) bytes", text)
    what = f": torch asked for {int(size[1]) / 1e9:,.0f} GB at once" if size else ""
    return f"out of memory{what}: take a smaller network or batch, or fewer bins"


def first_line(error: BaseException) -> str:
    """The first line of an error's message; libraries append whole logs to it."""
    return (str(error).strip().splitlines() or [""])[0]
