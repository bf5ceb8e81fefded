"""One start of a training: ranks as processes of their own, which can be killed, stopped and waited for."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.faults.records import StartRecord

ROOT = Path(__file__).parents[2]
POLL_S = 0.002
# Below the ports that systems assign, and from another start in each process: two that run side by side must
# not choose the same between looking and listening.
_ports = itertools.cycle(range(10000 + os.getpid() * 97 % 20000, 30000))


class Job:
    """Ranks of `hpcphotoz train`, each recorded by `recorded_rank`; use as a context manager.

    Args:
        folder: where records and output of all starts go.
        number: of the start.
        world_size: number of ranks.
        words: command line of `hpcphotoz`, from `train` on.
        environment: variables beside those of this process.
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        world_size: int,
        words: Sequence[str],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.number, self.world_size = number, world_size
        self._folder, self._words, self._environment = folder, words, environment or {}
        self.record = StartRecord.in_folder(folder, number, world_size)
        self._ranks: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Job":
        port = str(free_port())
        for rank in range(self.world_size):
            place = {"RANK": rank, "WORLD_SIZE": self.world_size}
            place |= {f"LOCAL_{name}": value for name, value in place.items()}
            fixed = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
            record = self.record.ranks[rank].path
            with open(self._path(rank), "wb") as file:
                self._ranks.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "benchmarks.faults.recorded_rank", str(record), *self._words],
                        env={
                            **os.environ,
                            **fixed,
                            **{name: str(value) for name, value in place.items()},
                            "CUDA_VISIBLE_DEVICES": "",  # gloo on CPUs, even where there are GPUs
                            **self._environment,
                        },
                        cwd=ROOT,
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C is for the driver, which ends them
                    )
                )
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self._ranks:
            rank.kill()
            rank.wait()

    @property
    def alive(self) -> list[int]:
        """The ranks that have not ended."""
        return [rank for rank, process in enumerate(self._ranks) if process.poll() is None]

    @property
    def statuses(self) -> list[int | None]:
        """Exit status of every rank, -n: ended by signal n; None: it has not ended."""
        return [process.poll() for process in self._ranks]

    def send(self, rank: int, number: signal.Signals) -> bool:
        """Send a signal to a rank; returns whether it was there."""
        if rank not in self.alive:
            return False
        self._ranks[rank].send_signal(number)
        return True

    def said(self, rank: int) -> str:
        """What a rank has written to its standard output and error."""
        return self._path(rank).read_text(errors="replace")

    def wait(self, condition: Callable[[], bool], timeout_s: float, *, while_alive: bool = True) -> bool:
        """Poll until the condition holds; False: the time is over, or a rank has ended.

        Args:
            condition: called after the records are up to date.
            timeout_s: seconds.
            while_alive: whether to give up when a rank has ended.
        """
        end = time.monotonic() + timeout_s
        while True:
            ended = while_alive and len(self.alive) < self.world_size
            with suppress(FileNotFoundError):
                self.record.update()
            if condition():
                return True
            if ended or time.monotonic() > end:
                return False
            time.sleep(POLL_S)

    def ended(self, ranks: Sequence[int], timeout_s: float) -> list[int]:
        """Wait for the end of some ranks; returns those that are still there after `timeout_s` seconds."""
        self.wait(lambda: not set(ranks) & set(self.alive), timeout_s, while_alive=False)
        return sorted(set(ranks) & set(self.alive))

    def _path(self, rank: int) -> Path:
        return self._folder / f"start-{self.number:03d}-rank-{rank}.txt"


def free_port() -> int:
    """A port of this machine at which nobody listens."""
    for port in _ports:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("unreachable: the ports go round")
