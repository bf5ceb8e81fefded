"""Reads and writes sweep.json: the runs of a sweep, their values, folders and jobs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hpcphotoz.atomic import write_text
from hpcphotoz.errors import BadInput
from hpcphotoz.launch.follow.submissions import SWEEP_FILE
from hpcphotoz.launch.jobs.grid import SweepRun, comparable


@dataclass(frozen=True)
class Entry:
    """A run of a sweep as its file has it."""

    folder: str  # under that of the sweep
    values: Mapping[str, str]  # of the swept options, as text
    job: str | None  # that was last submitted for it; None: none, as in a sweep on one machine


@dataclass(frozen=True)
class Sweep:
    """A sweep: its swept options and all runs that were ever submitted."""

    keys: tuple[str, ...]
    runs: tuple[Entry, ...]


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds a sweep."""
    return (folder / SWEEP_FILE).is_file()


def read_sweep(folder: Path) -> Sweep | None:
    """The sweep of a folder; None: there is none.

    Raises:
        BadInput: its file is damaged.
    """
    path = folder / SWEEP_FILE
    try:
        found = json.loads(path.read_bytes())
        runs = [Entry(str(one["folder"]), dict(one["values"]), one["job"]) for one in found["runs"]]
        # A name from a file is not to lead out of the folder.
        if any(Path(one.folder).name != one.folder or one.folder in (".", "..") for one in runs):
            raise ValueError
        return Sweep(tuple(found["keys"]), tuple(runs))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadInput(f"{path}: damaged: remove it and launch the sweep again; its runs go on") from None


def _comparable(values: Mapping[str, str]) -> frozenset[tuple[str, object]]:
    """What tells the values of runs apart: neither the order of the options, nor how a number is written."""
    return frozenset((key, comparable(key, value)) for key, value in values.items())


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Write sweep.json whole or not at all."""
    write_text(folder / SWEEP_FILE, json.dumps(asdict(sweep), indent=1) + "\n")


def merged(folder: Path, before: Sweep | None, runs: Sequence[SweepRun], jobs: Mapping[str, str]) -> Sweep:
    """The sweep with the runs of this submission added to those of earlier ones.

    Args:
        folder: of the sweep, for the message.
        before: the sweep that the folder holds.
        runs: of this submission.
        jobs: their jobs by folder name; runs without one keep the job that they had.

    Raises:
        BadInput: the folder holds a sweep of other options, or a run of it the same values in another folder.
    """
    keys = tuple(runs[0].values)
    if before and before.keys != keys:  # another order gives the same values other folders
        theirs = ", ".join(before.keys)
        raise BadInput(
            f"{folder}: holds a sweep of {theirs}: sweep these options in this order, or choose another --out"
        )
    found = {entry.folder: entry for entry in (before.runs if before else ())}
    same = {_comparable(entry.values): entry for entry in found.values()}
    for run in runs:
        entry = same.get(_comparable(run.values))
        if entry and entry.folder != run.name:
            raise BadInput(
                f"{folder}: its run {entry.folder} has the values of {run.name}: write options and values as "
                "in the launch before"
            )
        entry = found.get(run.name, Entry(run.name, run.values, None))
        found[run.name] = replace(entry, job=jobs.get(run.name, entry.job))
    return Sweep(before.keys if before else keys, tuple(found.values()))
