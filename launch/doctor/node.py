"""The job of the doctor: examines the nodes it runs on, one rank a node, and writes facts to its folder."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from hpcphotoz.atomic import write_text
from hpcphotoz.launch.doctor.facts import NodeFacts
from hpcphotoz.launch.doctor.host import collect_host, look_at_caches
from hpcphotoz.launch.doctor.network import look_at_gpus, measure
from hpcphotoz.launch.doctor.shared_folder import Meeting, check_files
from hpcphotoz.launch.rank import find_own_rank

LOGIN_CLOCK = "login clock"  # file in which the login node writes its time again and again
_MEETING_S = 60.0
_BEAT_S = 0.5


@dataclass(frozen=True)
class DoctorJob:
    """An examination of a node as a callable for submitit.

    Args:
        folder: shared with the login node; the facts are written there.
        run_folder: where runs write.
        code: folder with the snapshot of the package.
        cores, gpus: asked for on each node.
    """

    folder: str
    run_folder: str
    code: str
    cores: int
    gpus: int

    def __call__(self) -> str:
        """Examine this node; what is found so far is written before every step that may hang or crash."""
        name = os.environ.get("SLURMD_NODENAME", "")
        facts = collect_host(Path(self.run_folder), name, asks_for_quotas=False)
        # What Slurm and submitit set for this job is no disturbance.
        kept = ("OMP_", "GLOO_", "NCCL_", "HDF5_", "CUDA_")
        facts["env"] = {name: value for name, value in facts["env"].items() if name.startswith(kept)}
        world = find_own_rank(self.code, self.cores, None)
        facts["caches"] = look_at_caches()  # as the launch has set them by now
        facts |= {"rank": world.rank, "nodes": world.size, "asked_cores": self.cores, "asked_gpus": self.gpus}
        facts["where"] = name or f"rank {world.rank}"
        folder = Path(self.folder)
        clock = _Clock(folder, world.rank)

        def write(stage: str) -> None:
            clock.poll()
            ahead = {"login_ahead_s": (-1e9, clock.at_most_ahead_s)}
            text = NodeFacts(**{**facts, **ahead, "stage": stage}).model_dump_json()
            write_text(facts_path(folder, world.rank), text)

        write("shared folder")
        meeting = Meeting(folder, world.rank, world.size, _MEETING_S, clock.poll)
        facts["files"] = check_files(folder, world.rank, world.size, meeting)
        if self.gpus:
            write("gpu")
            facts["gpu"] = look_at_gpus()
        speeds: dict[str, float] = {}
        errors: dict[str, str] = {}
        facts |= {"gb_s": speeds, "errors": errors}
        port = int(os.environ["MASTER_PORT"])
        for number, backend in enumerate(("gloo", "nccl")[: 1 + bool(self.gpus)] if world.size > 1 else ()):
            write(backend)
            os.environ["MASTER_PORT"] = str(port + number)
            speed, ahead_s, error = measure(backend, world)
            if error:
                errors[backend] = error
            else:
                speeds[backend], facts["clock_ahead_s"] = speed, ahead_s
        write("end")
        return "examined"


def facts_path(folder: Path, rank: int) -> Path:
    """Where a rank writes its facts."""
    return folder / f"facts {rank}.json"


def beat_path(folder: Path, rank: int) -> Path:
    """Where a rank writes its time again and again."""
    return folder / f"beat {rank}"


def read_time(path: Path) -> float | None:
    """The time in a file, in seconds since 1970; None: it is not there, or not whole."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


class _Clock:
    """Compares the clocks of this node and the login node by times that each writes for the other.

    What is read was written earlier: this clock is ahead by at most (time of reading - time written).
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank, self._next = folder, rank, 0.0
        self.at_most_ahead_s = 1e9

    def poll(self) -> None:
        """Write the time, and read that of the login node, at most twice a second."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _BEAT_S
        if (written := read_time(self._folder / LOGIN_CLOCK)) is not None:
            self.at_most_ahead_s = min(self.at_most_ahead_s, time.time() - written)
        write_text(beat_path(self._folder, self._rank), str(time.time()))
