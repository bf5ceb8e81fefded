"""Freed memory stays in the process, where the C library can do that and no variable forbids it."""

import platform
import subprocess
import sys

import pytest

# Counts pages fetched from the system in ten rounds of allocating and freeing 20 MB, like layers do.
CODE = """
import resource, sys
from hpcphotoz.memory import keep_freed_memory
import numpy as np
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
for count in (1, 10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        parts = [np.ones(20 << 20, np.uint8) for _ in range(4)]
        del parts
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **environment: str) -> tuple[str, int]:
    found = subprocess.run(
        [sys.executable, "-c", CODE, how],
        env={"PATH": "", "PYTHONPATH": ".", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    done, pages = found.stdout.split()
    return done, int(pages)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_reused_without_the_system() -> None:
    _, usual = faults("leave")
    done, kept = faults("keep")
    assert done == "True" and kept < usual / 4
    chosen, _ = faults("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert chosen == "False"
