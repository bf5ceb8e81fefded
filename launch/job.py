"""The job of every rank of a launch: connect to the other ranks, train, and requeue after a preemption.

Slurm sends SIGUSR2 to all tasks before the time limit and at a preemption. The trainer then saves a
checkpoint and stops all ranks after the same step. Only then does submitit receive the signal; its rank 0
requeues the job.
"""

import hashlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import hpcphotoz
from hpcphotoz.config import Config
from hpcphotoz.config.load import parse, to_toml
from hpcphotoz.errors import BadInput
from hpcphotoz.launch import snapshot
from hpcphotoz.output import say
from hpcphotoz.world import RANK_NAMES, RANK_PREFIXES, World, detect

if TYPE_CHECKING:
    from hpcphotoz.data.datasets import Datasets

# A signal reaches the nodes one after the other: rank 0 may stop at another rank's signal before its own.
_STRAGGLING_SIGNAL_S = 10.0


@dataclass(frozen=True)
class TrainJob:
    """A training run as a callable for submitit, small when pickled.

    A signal that arrives before submitit's handlers are in place is lost (`slurm.py` makes sh ignore it), so
    unpickling must be quick: torch and submitit are imported inside the call.

    Args:
        config: the resolved configuration as TOML text.
        data: dataset folder, absolute; or of several datasets, each folder's weight.
        out: run folder, absolute.
        code: folder with the snapshot of the package; empty: the installed package runs.
        cpus: cores of this rank; 0: torch decides.
        max_requeues: number of restarts after which a stopped job is not requeued, and fails.
        profile: as `train --profile`.
        device: "auto", "cuda" or "cpu", as in `train --device`.
        command: the command line that launched the run, for its provenance.
        start_from: as `train --from`, absolute; "": random weights.
        visible_gpus: CUDA_VISIBLE_DEVICES of a local launch; None: unset. On a cluster Slurm sets it.
    """

    config: str
    data: str | dict[str, float]
    out: str
    code: str = ""
    cpus: int = 0
    max_requeues: int = 10
    profile: bool = False
    device: str = "auto"
    command: tuple[str, ...] = ()
    start_from: str = ""
    visible_gpus: str | None = None

    @classmethod
    def of(cls, config: Config, data: "Path | Datasets", out: Path, **options: Any) -> Self:
        """The job that trains `config` on the datasets `data` into `out`; options are further fields."""
        from hpcphotoz.data.datasets import Datasets

        return cls(to_toml(config), Datasets.of(data).absolute().given, str(out.absolute()), **options)

    @property
    def parsed(self) -> Config:
        """The configuration."""
        return parse(tomllib.loads(self.config), "configuration")

    def __call__(self) -> str:
        """Train on this rank; return "finished" or "stopped".

        When the run is to be requeued, this does not return: the process ends once rank 0 has requeued it. On
        a cluster, rank 0 of a run that is stopped and not requeued exits with status 75 (EX_TEMPFAIL): jobs
        that depend on it with `afterok` do not begin.

        Raises:
            BadInput: the package was not imported from the snapshot, or what the trainer raises.
        """
        rank = self._find_own_rank().rank
        if "SLURM_JOB_ID" not in os.environ:
            # submitit ignores SIGTERM. Here, until the trainer handles it, there is nothing to save. On a
            # cluster it may be a preemption, and a rank that dies of it would fail the job.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        from hpcphotoz.data.datasets import Datasets
        from hpcphotoz.training.loop import Outcome
        from hpcphotoz.training.run.signals import ignore_stops
        from hpcphotoz.training.trainer import train

        with _SignalRecorder() as signals:
            data, out = Datasets.of(self.data), Path(self.out)
            begin = Path(self.start_from) if self.start_from else None
            outcome = train(self.parsed, data, out, self.profile, self.device, self.command or None, begin)
            if outcome is Outcome.FINISHED or rank:
                ignore_stops()
            if outcome is Outcome.FINISHED:
                return "finished"
            if rank:
                # Success, without a result pickle: with --kill-on-bad-exit=1 a failure here would end the job
                # before rank 0 has requeued it. Nothing waits for this rank any more.
                sys.exit(0)
            seen = signals.seen(wait_s=_STRAGGLING_SIGNAL_S)
        if _asks_for_requeue(seen):
            say("saved on all ranks; passing SIGUSR2 to submitit")
            signal.raise_signal(signal.SIGUSR2)  # calls `checkpoint`, requeues, exits
        ignore_stops()
        if "SLURM_JOB_ID" in os.environ:
            say("saved on all ranks; not requeued: launch again to continue")
            sys.exit(os.EX_TEMPFAIL)
        return "stopped"

    def checkpoint(self) -> Any:
        """What submitit runs after the requeue: this job again, or None once `max_requeues` is reached.

        submitit calls this on rank 0 in its signal handler, after the trainer has saved.
        """
        import submitit

        if int(os.environ.get("SLURM_RESTART_COUNT", 0)) >= self.max_requeues:
            say(f"restarted {self.max_requeues} times: no further requeue; launch again to continue")
            return None
        return submitit.helpers.DelayedSubmission(self)

    def _find_own_rank(self) -> World:
        """Detect this process's rank and set the variables by which the ranks connect."""
        import submitit

        found = Path(hpcphotoz.__file__).resolve().parents[1]
        if self.code and found != Path(self.code).resolve():
            raise BadInput(
                f"hpcphotoz was imported from {found}, the submitted code is in {self.code}: "
                "unset PYTHONSAFEPATH and launch again"
            )
        if self.code:
            snapshot.check(found)
        # Slurm or submitit has started this rank: variables of other launchers are inherited from elsewhere.
        for name in list(os.environ):
            if name in RANK_NAMES or (name.startswith(RANK_PREFIXES) and not name.startswith("SUBMITIT_")):
                del os.environ[name]
        if self.cpus:
            # srun does not bind ranks to cores everywhere: on two busy cores, two ranks of two threads took
            # 0.7 s per step, of one thread 0.04 s.
            os.environ.setdefault("OMP_NUM_THREADS", str(self.cpus))
        if "SLURM_JOB_ID" not in os.environ:
            # submitit has written numbers there; the user's value may hold UUIDs, or be empty.
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            if self.visible_gpus is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = self.visible_gpus
        job = submitit.JobEnvironment()
        restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        os.environ["MASTER_ADDR"] = _master_address(job.hostnames[0], os.environ)
        os.environ["MASTER_PORT"] = str(_master_port(job.job_id, restart))
        world = detect()
        say(f"rank {world.rank} of {world.size} on {socket.gethostname()}, code {found}, restart {restart}")
        return world


def _master_address(first_node: str, env: Mapping[str, str]) -> str:
    """Where rank 0 listens: its node's name, or Slurm's address of that node if the name does not resolve."""
    if "SLURM_JOB_ID" not in env:
        return "127.0.0.1"  # a laptop's own name often does not resolve
    try:
        socket.getaddrinfo(first_node, None)
    except OSError:
        # The batch script, hence srun, runs on the first node. Asking scontrol would be one call per rank.
        return env.get("SLURM_LAUNCH_NODE_IPADDR", first_node)
    return first_node


def _master_port(job_id: str, restart: str) -> int:
    """The port where rank 0 listens: the same on all ranks of a job, another after a restart.

    It is below 32768, where the ports begin that Linux assigns to outgoing connections.
    """
    digest = hashlib.sha256(f"{job_id} {restart}".encode()).digest()
    return 20_000 + int.from_bytes(digest[:4]) % 12_000


def _asks_for_requeue(seen: set[int]) -> bool:
    """Whether the job restarts after this stop.

    SIGUSR2 (time limit, preemption) asks for a restart. SIGTERM means a preemption on clusters that do not
    send the user's signal, and otherwise a cancellation, like SIGINT: Slurm is asked which it is. After
    SIGUSR1, a file STOP or the end of the wall-time budget alone the job stays away.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return signal.SIGUSR2 in seen and not seen & {signal.SIGTERM, signal.SIGINT}
    command = ["scontrol", "show", "job", "--oneliner", os.environ["SLURM_JOB_ID"]]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        say(f"cannot ask Slurm why the job was stopped: {error}")
        text = ""
    facts = dict(word.partition("=")[::2] for word in text.split())
    if facts.get("JobState") in ("CANCELLED", "COMPLETING") and facts.get("Reason") != "TimeLimit":
        return False  # cancelled, or requeued already; both are COMPLETING while a task is alive
    preempted = facts.get("PreemptTime", "None") != "None"
    return signal.SIGUSR2 in seen or (signal.SIGTERM in seen and preempted)


class _SignalRecorder:
    """Records this process's signals, whatever handlers are installed (the trainer's only set a flag)."""

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._earlier = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._earlier)
        os.close(self._read)
        os.close(self._write)

    def seen(self, wait_s: float) -> set[int]:
        """Which of USR1, USR2, TERM and INT have arrived; waits up to `wait_s` seconds for the first."""
        end = time.monotonic() + wait_s
        found, wanted = set[int](), {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT}
        while not found and select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
            found |= set(os.read(self._read, 4096)) & wanted
        return found
