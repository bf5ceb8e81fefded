"""The folder of a report: what it may hold before, and how a new report replaces the earlier one.

All files are written into `OUT/.report.tmp` and flushed first. Then the earlier report moves out of the way,
`report.html` first, and the new one moves in, `report.html` last. When the process is killed at any instant,
OUT holds files of one report alone, and a `report.html` only if all of them are there. A lock keeps other
processes away meanwhile, so that the next evaluation can remove what a killed one left.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hpcphotoz.atomic import check_output_folder, flush_file, fsync_folder
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.report.page import TITLE
from hpcphotoz.evaluation.report.section import FigureFile
from hpcphotoz.locks.lock import lock_file

PAGE, SUMMARY, RADII = "report.html", "metrics.json", "certified_radii.csv"
FIGURES, INDEX = "figures", "index.txt"
_MARKS = {PAGE: f"<title>{TITLE}", SUMMARY: '"robustness_curves"', RADII: "run,object_id,z_spec,z_smooth,"}
_INDEX_TITLE = (
    "The figures of report.html, file: what is to be seen. The next evaluation replaces this folder."
)
_STAGING, _LOCK = ".report.tmp", ".report.lock"
_WAIT_S = 60.0  # for another process that is writing its report, after hours of work of this one


def check_report_folder(out: Path) -> None:
    """Check that a report can be written to a folder; create nothing.

    Raises:
        BadInput: the folder cannot be made or written, is a dataset or a run, or holds a `report.html`,
            `metrics.json`, `certified_radii.csv` or file in `figures` that no evaluation wrote.
    """
    for name, what in (("manifest.json", "a dataset"), ("checkpoints", "a run")):
        if (out / name).exists():
            raise BadInput(f"{out}: is {what}: choose another folder for the report")
    for name, mark in _MARKS.items():
        path = out / name
        try:
            ours = not path.exists() or mark in path.read_text(encoding="utf-8", errors="replace")
        except OSError:  # a folder, or a file that may not be read
            ours = False
        if not ours:
            raise BadInput(
                f"{path}: exists and was not written by an evaluation: choose another folder for the report"
            )
    _check_figures(out / FIGURES)
    check_output_folder(out)


def _check_figures(folder: Path) -> None:
    """Raise BadInput for a folder of figures with something in it that no evaluation wrote."""
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise BadInput(f"{folder}: not a folder of figures: choose another folder for the report")
    index = folder / INDEX
    lines = index.read_text(encoding="utf-8", errors="replace").splitlines() if index.is_file() else []
    ours = {INDEX, *(line.split(": ")[0] for line in lines[1:])} if lines[:1] == [_INDEX_TITLE] else set()
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in ours or not path.is_file())
    if foreign:
        raise BadInput(
            f"{folder / foreign[0]}: exists and was not written by an evaluation: move it, or choose another "
            "folder for the report"
        )


def replace_report(out: Path, texts: Mapping[str, str], figures: Sequence[FigureFile]) -> None:
    """Write a report into a folder, in the place of an earlier one.

    Args:
        out: the folder, which exists.
        texts: by name: `PAGE`, `SUMMARY`, and any of `RADII`.
        figures: of different names.

    Raises:
        BadInput: as `check_report_folder`, or another process is writing a report there all the time.
        OSError: a file cannot be written; the earlier report stays.
    """
    busy = f"{out}: another process is writing a report in it"
    with lock_file(out / _LOCK, busy, "choose another folder for the report", _WAIT_S):
        check_report_folder(out)
        staging = out / _STAGING
        shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
        try:
            new, old = staging / "new", staging / "old"
            for folder in (staging, new, old, new / FIGURES):
                folder.mkdir()
            _write(new, texts, figures)
            _swap(out, new, old)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        fsync_folder(out)


def _write(folder: Path, texts: Mapping[str, str], figures: Sequence[FigureFile]) -> None:
    """Write all files of a report, and flush them to the disk."""
    index = "\n".join([_INDEX_TITLE, *(f"{figure.file}: {figure.alt}" for figure in figures), ""])
    for name, text in {**texts, f"{FIGURES}/{INDEX}": index}.items():
        (folder / name).write_text(text, encoding="utf-8")
    for figure in figures:
        (folder / FIGURES / figure.file).write_bytes(figure.png)
    for path in folder.rglob("*"):
        if path.is_file():
            flush_file(path)
    fsync_folder(folder / FIGURES)
    fsync_folder(folder)


def _swap(out: Path, new: Path, old: Path) -> None:
    """Move the earlier report to `old`, `PAGE` first, and that in `new` into its place, `PAGE` last."""
    names = (PAGE, SUMMARY, RADII, FIGURES)
    moves = [(out / name, old / name) for name in names]
    moves += [(new / name, out / name) for name in reversed(names)]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            with suppress(FileNotFoundError):
                os.rename(source, target)
                done.append((source, target))
    except OSError:
        for source, target in reversed(done):
            os.rename(target, source)
        raise
