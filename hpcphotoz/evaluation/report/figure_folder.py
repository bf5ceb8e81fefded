"""The folder `figures` of a report: PNG files and an index, replaced as a whole."""

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hpcphotoz.atomic import flush_file, fsync_folder
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.report.section import FigureFile

FOLDER, INDEX = "figures", "index.txt"
_TITLE = "The figures of report.html, file: what is to be seen. The next evaluation replaces this folder."


def check_figure_folder(out: Path) -> None:
    """Check that `OUT/figures` can be replaced: it does not exist, or holds nothing but a report's figures.

    Raises:
        BadInput: it is a file, or holds something that no evaluation wrote, which is named.
    """
    folder = out / FOLDER
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise BadInput(f"{folder}: not a folder of figures: choose another folder for the report")
    index = folder / INDEX
    lines = index.read_text(encoding="utf-8", errors="replace").splitlines() if index.is_file() else []
    ours = {INDEX, *(line.split(": ")[0] for line in lines[1:])} if lines[:1] == [_TITLE] else set()
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in ours or not path.is_file())
    if foreign:
        raise BadInput(
            f"{folder / foreign[0]}: exists and was not written by an evaluation: move it, or choose another "
            "folder for the report"
        )


@contextmanager
def replacing_figures(out: Path, figures: Sequence[FigureFile]) -> Iterator[None]:
    """Write figures beside `OUT/figures`, and put them in its place when the block ends without an error.

    Args:
        out: folder of the report.
        figures: of different names.

    Raises:
        BadInput: as `check_figure_folder`.
        OSError: a file cannot be written; the earlier figures stay.
    """
    check_figure_folder(out)
    folder, key = out / FOLDER, secrets.token_hex(8)
    new, old = out / f"{FOLDER}.{key}.tmp", out / f"{FOLDER}.{key}.old.tmp"
    try:
        new.mkdir()
        texts = [f"{figure.file}: {figure.alt}" for figure in figures]
        (new / INDEX).write_text("\n".join([_TITLE, *texts, ""]), encoding="utf-8")
        for figure in figures:
            (new / figure.file).write_bytes(figure.png)
        for path in new.iterdir():
            flush_file(path)
        fsync_folder(new)
        yield
        with suppress(FileNotFoundError):
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except OSError:
            with suppress(FileNotFoundError):
                os.rename(old, folder)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    fsync_folder(out)
