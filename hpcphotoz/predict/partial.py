"""What an unfinished prediction keeps: the folder OUT.partial, from which the same command goes on.

    plan.json                   what is predicted; a prediction of anything else does not go on with it
    rows-FIRST-STOP.hdf5        PDFs and columns of the selected objects among these rows of the dataset
    .lock                       while a process predicts

A file of rows appears under its name when it is complete: some seconds of work, or what was complete as an
error or a signal came. Ranks share the rows that are missing, however many there are now and were before.
"""

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hpcphotoz.atomic import atomic_write, write_text
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.batches import BatchTable
from hpcphotoz.locks.lock import lock_file
from hpcphotoz.output import number_of, say
from hpcphotoz.predict.qp_file import writing
from hpcphotoz.ranks import Ranks

Array = npt.NDArray[Any]

_PLAN, _LOCK = "plan.json", ".lock"
_SAID = {  # keys of the plan, for the user
    "dataset": "dataset, subset or batch size",
    "tta": "--tta",
    "weights": "weights of the runs",
    "flag_below": "--flag-below",
    "precision": "--precision",
    "temperature": "calibration",
    "pit": "calibration",
    "pdf": "--pdf",
}
_ROWS = re.compile(r"rows-(\d+)-(\d+)\.hdf5")
_PART_S = 20.0  # what a kill without warning loses of each rank
_PART_OBJECTS = 1 << 14  # in memory at once: 12 MB of 180 bins


@dataclass(frozen=True)
class PartFile:
    """A file of complete rows."""

    path: Path
    rows: range  # of the dataset


def partial_folder(out: Path) -> Path:
    """The folder that keeps an unfinished prediction."""
    return out.with_name(f"{out.name}.partial")


@contextmanager
def unfinished(out: Path, plan: Mapping[str, Any], ranks: Ranks) -> Iterator[Path]:
    """Context with the folder of an unfinished prediction: made or taken over, and removed at its end.

    After an error the folder stays, which is said in one line, unless no row in it is complete.

    Args:
        out: the file that is to be made.
        plan: what is predicted, as JSON.
        ranks: those that predict; the folder is on a file system of all.

    Raises:
        BadInput: the folder holds a prediction of something else, is in use, or cannot be written.
    """
    folder = partial_folder(out)
    if ranks.rank:
        ranks.on_first_rank(lambda: None)
        yield folder
        return
    try:
        with _locked(folder, out):
            ranks.on_first_rank(lambda: _begin(folder, plan))
            try:
                yield folder
            except BaseException:
                if complete_rows(folder):
                    kept = "keeps what is complete: the same command goes on"
                    say(f"hpcphotoz: {folder}: {kept}", sys.stderr)
                else:
                    (folder / _PLAN).unlink(missing_ok=True)
                raise
            for path in folder.iterdir():
                if not path.name.startswith(_LOCK):
                    path.unlink()
    finally:
        with suppress(OSError):  # not empty
            folder.rmdir()


def complete_rows(folder: Path) -> list[PartFile]:
    """The files of complete rows in a folder, in the order of the rows."""
    with suppress(FileNotFoundError):
        names = [(path, _ROWS.fullmatch(path.name)) for path in folder.iterdir()]
        found = [PartFile(path, range(int(name[1]), int(name[2]))) for path, name in names if name]
        return sorted(found, key=lambda part: part.rows.start)
    return []


def rows_of_ranks(table: BatchTable, parts: Sequence[PartFile], ranks: int) -> list[list[range]]:
    """The batches that each rank is to predict, by number: runs of consecutive ones that no file has.

    Ranks get the same number of objects, up to a batch.
    """
    missing = table.objects > 0
    for part in parts:
        first, stop = np.searchsorted(table.first, [part.rows.start, part.rows.stop])
        missing[first:stop] = False
    numbers = np.flatnonzero(missing)
    objects = np.cumsum(table.objects[numbers])
    total = int(objects[-1]) if len(objects) else 0
    cuts = [int(np.searchsorted(objects, -(-rank * total // ranks))) + 1 for rank in range(1, ranks)]
    done = np.cumsum((table.objects > 0) & ~missing)  # a batch without an object does not end a run
    found = []
    for mine in np.split(numbers, cuts):
        runs = np.split(mine, np.flatnonzero(np.diff(done[mine])) + 1)
        found.append([range(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)])
    return found


class PartWriter:
    """Collects the PDFs and columns of consecutive batches, and writes them to files of complete rows.

    Args:
        folder: of the unfinished prediction.
        table: the batches of the dataset.
        out: the file that is to be made, for messages.
    """

    def __init__(self, folder: Path, table: BatchTable, out: Path) -> None:
        self._folder, self._table, self._out = folder, table, out
        self._arrays: dict[str, list[Array]] = {}
        self._run, self._first, self._last = range(0), 0, 0  # batches
        self._objects, self._begun = 0, 0.0

    def add(self, run: range, number: int, arrays: Mapping[str, Array]) -> None:
        """Add a batch: its run, its number, and arrays (n, ...) by name."""
        if self._objects and number not in self._run:
            self.flush()
        if not self._objects:
            self._run, self._first, self._begun = run, number, time.monotonic()
        for name, values in arrays.items():
            self._arrays.setdefault(name, []).append(values)
        self._last = number
        self._objects += len(values)
        if self._objects >= _PART_OBJECTS or time.monotonic() - self._begun >= _PART_S:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last file."""
        if not self._objects:
            return
        rows = int(self._table.first[self._first]), int(self._table.stop[self._last])
        with writing(self._out), atomic_write(self._folder / f"rows-{rows[0]}-{rows[1]}.hdf5") as path:
            with h5py.File(path, "w") as file:
                for name, values in self._arrays.items():
                    file[name] = np.concatenate(values)
        self._arrays, self._objects = {}, 0

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()
            return
        with suppress(BadInput):  # a full disk, or a folder that rank 0 has removed: the first error counts
            self.flush()


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise BadInput(f"{out}: cannot be written: {folder}: {error.strerror}") from None
    busy = f"{folder}: another process is predicting into it"
    with lock_file(folder / _LOCK, busy, "wait, or choose another --out"):
        yield


def _begin(folder: Path, plan: Mapping[str, Any]) -> None:
    """Compare the plan with that of the folder, and write it into one without complete rows."""
    for path in folder.glob("*.tmp"):
        if not path.name.startswith(_LOCK):
            path.unlink()
    parts, given = complete_rows(folder), json.loads(json.dumps(plan))
    try:
        before = json.loads((folder / _PLAN).read_bytes())
    except (FileNotFoundError, ValueError):  # removed, as no row was complete when another rank ended later
        before = {}
    if not (before and parts):
        for part in parts:
            part.path.unlink()
        write_text(folder / _PLAN, json.dumps(plan, indent=1) + "\n")
    elif before != given:
        keys = [key for key in given if before.get(key) != given[key]]
        *most, last = dict.fromkeys(_SAID.get(key, key) for key in keys) or ["version"]
        other = f"{', '.join(most)} and {last}" if most else last
        raise BadInput(
            f"{folder}: holds an unfinished prediction that differs in {other}: give the same command to go "
            "on, or delete the folder"
        )
    else:
        say(f"hpcphotoz: {folder}: goes on after {number_of(len(parts), 'file')} of rows", sys.stderr)
