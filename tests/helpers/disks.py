"""Small disks of the tests: mounted as root, skipped with the reason elsewhere."""

import subprocess
from pathlib import Path

import pytest


class SmallDisk:
    """A tmpfs at a folder, unmounted by `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._mounted = folder, False

    def mount(self, options: str) -> Path:
        """Mount it with the options of a tmpfs, such as size=8m; returns the folder."""
        self.folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        if done.returncode:
            pytest.skip(f"a disk of its own needs root and mount: {done.stderr.strip()}")
        self._mounted = True
        return self.folder

    def make_read_only(self) -> None:
        """Let nothing be written to it any more."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True, timeout=60)

    def close(self) -> None:
        """Unmount it."""
        if self._mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True, timeout=60)
