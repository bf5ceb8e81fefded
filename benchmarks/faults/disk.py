"""A small disk that can be filled up, and damage to a file as a crash of the file system leaves it."""

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEGABYTES = 64
_BALLAST = "ballast"


class SmallDisk:
    """A mounted disk of memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / _BALLAST

    def fill(self) -> None:
        """Take all that is free, also what was given free since the last call."""
        with self._ballast.open("ab") as file:
            while free := shutil.disk_usage(self.folder).free:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, free)
                except OSError as error:
                    if error.errno != errno.ENOSPC:  # another process was quicker: look again
                        raise
                    return

    def empty(self) -> None:
        """Give back what `fill` has taken."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk | str]:
    """Make a folder and mount a disk of memory there; yields the reason where that cannot be (needs root)."""
    folder.mkdir()
    if os.geteuid():
        yield "mounting a small disk needs root"
        return
    words = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "hpcphotoz-chaos", str(folder)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        why = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        why = str(error)
    if why:
        yield f"no small disk: {why}"
        return
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, timeout=30, check=False)


def damage(path: Path, chance: random.Random) -> str:
    """Cut a file at a random place, or overwrite some of its bytes; says what was done."""
    size = path.stat().st_size
    at = chance.randrange(size)
    if chance.random() < 0.5:
        os.truncate(path, at)
        return f"cut at byte {at} of {size}"
    length = min(64, size - at)
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(length)
        file.seek(at)
        file.write(bytes(byte ^ 0xFF for byte in old))
    return f"{length} bytes changed at byte {at} of {size}"
