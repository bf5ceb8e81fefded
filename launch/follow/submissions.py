"""Records of submissions, RUN/launch/<job>.json: which Slurm jobs belong to a run."""

import json
import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from hpcphotoz.atomic import write_text

_RECORD = re.compile(r"(\d+(?:_\d+)?)\.json")
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

    @property
    def when(self) -> str:
        """The time, as in provenance.json."""
        return stamp(self.time)


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
    write_text(launch / f"{job_id}.json", json.dumps(asdict(Submission(*facts))) + "\n")


def read_submissions(run: Path) -> list[Submission]:
    """The submissions of a run, the earliest first; one that cannot be read has its id and time alone."""
    found: dict[str, Submission] = {}
    try:
        entries = list(os.scandir(run / "launch"))
    except OSError:
        return []
    for entry in entries:
        if match := _SCRIPT.fullmatch(entry.name):
            found.setdefault(match[1], Submission(match[1], entry.stat().st_mtime))
        elif match := _RECORD.fullmatch(entry.name):
            found[match[1]] = _read(Path(entry.path), match[1])
    arrays = {job_id.partition("_")[0] for job_id in found if "_" in job_id}
    kept = [one for job_id, one in found.items() if job_id not in arrays]
    return sorted(kept, key=lambda one: (one.time, _number(one.job_id)))


def seconds(recorded: object) -> float:
    """Seconds since 1970 of a recorded time: a number, or text as 2026-01-31T12:00:00+0100; 0: neither."""
    if isinstance(recorded, int | float):
        return float(recorded)
    try:
        return datetime.fromisoformat(str(recorded)).timestamp()
    except ValueError:
        return 0.0


def stamp(at: float) -> str:
    """Seconds since 1970 as text, as in provenance.json."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(at))


def _read(path: Path, job_id: str) -> Submission:
    try:
        facts = json.loads(path.read_text())
        known = {name: facts[name] for name in Submission.__dataclass_fields__ if name in facts}
        one = Submission(**{**known, "job_id": job_id, "command": tuple(known.get("command", ()))})
        return one if isinstance(one.time, int | float) else Submission(job_id, path.stat().st_mtime)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        try:
            return Submission(job_id, path.stat().st_mtime)
        except OSError:
            return Submission(job_id, 0.0)


def _number(job_id: str) -> tuple[int, ...]:
    return tuple(map(int, job_id.split("_")))
