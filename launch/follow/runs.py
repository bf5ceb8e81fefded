"""Which run folders a folder stands for: itself, or those of a sweep under it."""

import os
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.follow.submissions import read_submissions
from hpcphotoz.locks.judgement import look_at
from hpcphotoz.provenance import is_damaged, read_starts


def runs_of(folder: Path) -> list[Path]:
    """The folder if it is a run, or the runs that are folders in it, by name.

    Raises:
        BadInput: it is neither.
    """
    if _is_run(folder):
        return [folder]
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        raise BadInput(f"{folder}: {error.strerror}: want a run folder") from None
    runs = [folder / name for name in names if _is_run(folder / name)]
    # A job that was submitted for the folder itself, and has not begun, is told of too.
    if not runs and read_submissions(folder):
        return [folder]
    if not runs:
        raise BadInput(f"{folder}: no training has begun in this folder: want a run folder")
    return runs


def _is_run(folder: Path) -> bool:
    """Whether a training has begun in a folder, or begins, or is submitted."""
    try:
        if (folder / "sweep.json").is_file():
            return False
        begun = is_damaged(folder) or bool(read_starts(folder)) or look_at(folder / "logs" / "lock")
    except OSError:
        return False
    return bool(begun or read_submissions(folder))
