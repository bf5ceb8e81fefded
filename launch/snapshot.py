"""Snapshots: a copy of the package beside the run, so that a job runs the code that was submitted."""

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import hpcphotoz
from hpcphotoz.errors import BadInput
from hpcphotoz.provenance import RECORD, commit


def folder(launch: Path) -> Path:
    """The folder of the present code's snapshot under the folder `launch`, made or not; writes nothing.

    Its name contains the code's SHA-256: submissions of the same code share one copy, which never changes.
    """
    return launch / _name(Path(hpcphotoz.__file__).parent)


def check(code: Path) -> None:
    """Raise BadInput unless a snapshot still holds the code that its name is the hash of."""
    if _name(code / "hpcphotoz") != code.name:
        raise BadInput(
            f"{code}: this code was changed since it was submitted: remove the folder, launch again"
        )


def take(launch: Path) -> Path:
    """Copy the package with its linked folders, and return the folder in which to start Python.

    Snapshots (a few hundred kB each) are kept as long as the run folder: a requeued job starts from its own.

    Raises:
        BadInput: a snapshot of this code exists already, and it was changed; or it cannot be written.
    """
    final = folder(launch)
    if final.is_dir():
        check(final)
        return final
    try:
        launch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=launch, prefix=final.name + ".") as partial:
            copy = Path(partial) / "code"
            shutil.copytree(
                Path(hpcphotoz.__file__).parent,
                copy / "hpcphotoz",
                symlinks=False,  # `kernels` and `launch` are links in a checkout, folders in an installation
                # Not by ignore_dangling_symlinks, which looks for `../kernels` from the working directory.
                # With the compiled files of this Python, which holds them against their sources' times and
                # sizes: else the ranks compile the package at the first start, all at once.
                ignore=lambda base, names: [name for name in names if not _is_copied(Path(base) / name)],
            )
            (copy / RECORD).write_text((commit() or "") + "\n")  # the copy is no repository
            final = launch / _name(copy / "hpcphotoz")  # a file may have been changed since the first look
            os.replace(copy, final)
    except OSError as error:
        if not final.is_dir():  # else another submission of the same code made it meanwhile
            raise BadInput(f"{launch}: cannot write the launch folder: {error.strerror}") from None
    return final


def _name(package: Path) -> str:
    digest = hashlib.sha256()
    for path in _files(package):
        digest.update(f"{path.relative_to(package)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return f"code-{digest.hexdigest()[:12]}"


def _files(package: Path) -> list[Path]:
    found = []
    for base, folders, names in os.walk(package, followlinks=True):
        folders[:] = [name for name in folders if not _is_left_out(Path(base) / name)]
        found += [Path(base) / name for name in names if not _is_left_out(Path(base) / name)]
    return sorted(found)


def _is_copied(path: Path) -> bool:
    """Whether a path is part of the code, or a compiled file of this version of Python."""
    if path.parent.name == "__pycache__":
        return path.name.endswith(f".{sys.implementation.cache_tag}.pyc")
    return path.name == "__pycache__" or not _is_left_out(path)


def _is_left_out(path: Path) -> bool:
    """Whether a path is not part of the code: a compiled file, or a link to nothing (as an editor's lock)."""
    return path.name == "__pycache__" or path.suffix == ".pyc" or not path.exists()
