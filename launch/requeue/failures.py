"""Why a rank failed: RUN/logs/failures/<restart>-rank-<n>.json, one small file for each rank that did.

    {"time": 1760000000.5, "rank": 3, "host": "n2", "job": "7", "restart": 0, "kind": "RuntimeError",
     "error": "RuntimeError: ...", "traceback": "Traceback ..."}

`time` is in seconds since 1970, `host` is Slurm's name of the node, `error` is one line, and
all there is of bad input, which has an empty traceback. The ranks that then
miss the failed one have files of the kind RankLost. A rank that was killed has none.
"""

import json
import os
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from hpcphotoz.atomic import write_text
from hpcphotoz.errors import BadInput, first_line

RANK_LOST, BAD_INPUT, DIVERGED, NO_PROGRESS = "RankLost", "BadInput", "Diverged", "NoProgress"


@dataclass(frozen=True)
class RankFailure:
    """Why a rank failed; the module says what the fields are."""

    time: float
    rank: int
    host: str
    job: str
    restart: int
    kind: str
    error: str
    traceback: str


@contextmanager
def recording_own_failure(run: Path, job_id: str, rank: int) -> Iterator[None]:
    """Write the exception that ends the block to this rank's file.

    A rank that ends because another has failed (SystemExit) writes nothing.

    Args:
        run, job_id, rank: run folder, the job's id, and this rank.
    """
    try:
        yield
    except Exception as error:
        restart = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        kind, line = type(error).__name__, first_line(error)
        told = line if isinstance(error, BadInput) else f"{kind}: {line}"
        # A user's mistake needs no traceback.
        text = "" if isinstance(error, BadInput) else "".join(traceback.format_exception(error))
        folder = run / "logs" / "failures"
        with suppress(OSError):  # a full disk may be what has failed: the traceback is in the rank's log
            folder.mkdir(parents=True, exist_ok=True)
            failure = RankFailure(time.time(), rank, host, job_id, restart, kind, told, text)
            write_text(folder / f"{restart}-rank-{rank}.json", json.dumps(asdict(failure), indent=1) + "\n")
        raise


def read_failures(run: Path, job_id: str, restart: int) -> list[RankFailure]:
    """The failures of the ranks in one start of a job, the first one first; unreadable files are left out."""
    found = []
    for path in (run / "logs" / "failures").glob(f"{restart}-rank-*.json"):
        with suppress(OSError, ValueError, TypeError):
            failure = RankFailure(**json.loads(path.read_text()))
            if failure.job == job_id:
                found.append(failure)
    return sorted(found, key=lambda failure: failure.time)
