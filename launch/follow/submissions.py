"""Records of submissions, RUN/launch/<job>.json: which Slurm jobs belong to a run.

The runs of a sweep have theirs in SWEEP/sweep.json, and their logs in SWEEP/launch.
"""

import json
import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from hpcphotoz.atomic import write_text

_RECORD = re.compile(r"(\d+(?:_\d+)?)\.json")
SWEEP_FILE = "sweep.json"
_END_OF_TIME = 1e11  # seconds since 1970: a later time is of a damaged file
_SCRIPT = re.compile(r"(\d+)_submission\.sh")  # of versions before the records


@dataclass(frozen=True)
class Submission:
    """A job that was submitted for a run."""

    job_id: str  # "12"; "12_3" of an array
    time: float  # seconds since 1970
    kind: str = "train"
    command: tuple[str, ...] = ()
    nodes: int = 0  # 0: not recorded
    tasks: int = 0
    cluster: str = ""  # "": not recorded
    host: str = ""  # from which it was submitted
    launch: str = ""  # folder of its logs; not in the record, which is in it
    cancelled: float = 0.0  # when `cancel` has cancelled it, in seconds since 1970; 0: it has not

    @property
    def when(self) -> str:
        """The time, as in provenance.json."""
        return stamp(self.time)

    @property
    def after(self) -> str:
        """The runs and jobs that it was to wait for, as `--after` names them; "": none, or not recorded."""
        given, words = "--after", list(self.command[: _end_of_options(self.command)])
        found = [word.removeprefix(f"{given}=") for word in words if word.startswith(f"{given}=")]
        found += [after for word, after in pairwise(words) if word == given]
        return ", ".join(f"job {one}" if one.isdigit() else one for one in found)


def record_submission(
    launch: Path, job_id: str, command: Sequence[str], nodes: int, tasks: int, kind: str = "train"
) -> None:
    """Write the record of a job just submitted.

    Args:
        launch: RUN/launch of the run that the job belongs to; it exists.
        job_id: "12", or "12_3" of an array.
        command: words of the command line.
        nodes, tasks: of the job, in all.
        kind: the command that it runs.

    Raises:
        OSError: it cannot be written.
    """
    cluster = os.environ.get("SLURM_CLUSTERS", os.environ.get("SLURM_CLUSTER_NAME", ""))
    facts = job_id, time.time(), kind, tuple(command), nodes, tasks, cluster, socket.gethostname()
    _write(launch, Submission(*facts))


def record_cancelled(one: Submission) -> None:
    """Write into the record of a job that it was cancelled; Slurm itself soon forgets that.

    Raises:
        OSError: it cannot be written.
    """
    _write(Path(one.launch), replace(one, cancelled=time.time()))


def _write(launch: Path, one: Submission) -> None:
    record = asdict(one)
    del record["launch"]
    write_text(launch / f"{one.job_id}.json", json.dumps(record) + "\n")


def read_submissions(run: Path) -> list[Submission]:
    """The submissions of a run, the earliest first; one that cannot be read has its id and time alone."""
    found, launch = _of_sweep(run), run / "launch"
    if not (run / SWEEP_FILE).exists():  # the scripts of a sweep are those of its runs
        for name in _names(launch):
            if match := _SCRIPT.fullmatch(name):
                script = Submission(match[1], _mtime(launch / name), launch=str(launch))
                found.setdefault(match[1], script)
            elif match := _RECORD.fullmatch(name):
                found[match[1]] = replace(_read(launch / name, match[1]), launch=str(launch))
    return sorted(found.values(), key=lambda one: (one.time, _number(one.job_id)))


def sweep_entries(folder: Path) -> dict[str, str | None]:
    """Names of the runs of a sweep, with the job that was last submitted for each; empty: it holds none."""
    try:
        runs = json.loads((folder / SWEEP_FILE).read_bytes())["runs"]
        # A name from a file is not to lead out of the folder.
        names = {one["folder"]: one["job"] for one in runs if Path(one["folder"]).name == one["folder"]}
        return {name: job for name, job in names.items() if name not in ("", ".", "..")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def seconds(recorded: object) -> float:
    """Seconds since 1970 of a recorded time: a number, or text as 2026-01-31T12:00:00+0100; 0: neither."""
    if isinstance(recorded, int | float):
        return float(recorded) if 0 <= recorded < _END_OF_TIME else 0.0
    try:
        return datetime.fromisoformat(str(recorded)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def stamp(at: float) -> str:
    """Seconds since 1970 as text, as in provenance.json."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(at))


def _of_sweep(run: Path) -> dict[str, Submission]:
    """The job of a run in a sweep; empty: it is in none, or has no job."""
    sweep = Path(os.path.abspath(run)).parent
    job_id = sweep_entries(sweep).get(os.path.basename(os.path.abspath(run)))
    if not isinstance(job_id, str) or not re.fullmatch(r"\d+(_\d+)?", job_id):
        return {}
    launch = sweep / "launch"
    when = _mtime(launch / f"{job_id.partition('_')[0]}_submission.sh")
    record = launch / f"{job_id}.json"  # `cancel` alone writes one
    one = _read(record, job_id) if record.exists() else Submission(job_id, when)
    return {job_id: replace(one, launch=str(launch))}


def _read(path: Path, job_id: str) -> Submission:
    try:
        facts = json.loads(path.read_text())
        known = {name: facts[name] for name in Submission.__dataclass_fields__ if name in facts}
        one = Submission(**{**known, "job_id": job_id, "command": tuple(known.get("command", ()))})
        if isinstance(one.time, int | float) and 0 <= one.time < _END_OF_TIME:
            return one
    except (OSError, ValueError, TypeError, RecursionError):
        pass  # cut off, or of a later version
    return Submission(job_id, _mtime(path))


def _end_of_options(command: Sequence[str]) -> int:
    """Position of the `--` of `launch` in a command line."""
    return command.index("--") if "--" in command else len(command)


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _number(job_id: str) -> tuple[int, ...]:
    return tuple(map(int, job_id.split("_")))
