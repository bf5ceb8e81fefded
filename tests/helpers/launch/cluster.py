"""Runs a real Slurm of two nodes on this machine, with its own folder, ports and munge."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self, TypeVar

T = TypeVar("T")
NODES, CPUS, GPUS = ("n1", "n2"), 4, 2
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}

# cred_expire=10 lets a requeued job start again after 11 s instead of 120 s. The ranks' port follows from the
# job's number: two clusters on one machine must not have the same.
# MessageTimeout is above KillWait: slurmctld repeats the order to end a step that is not answered in time a
# minute later, and then it hits the next start of a requeued job, which begins after 120 s elsewhere.
_CONF = """\
ClusterName=hpcphotoz
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
FirstJobId={first_job}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{preempt_signal}
ReturnToService=2
KillWait=10
MessageTimeout=60
MpiDefault=none
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=2000 Gres=gpu:{gpus}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory=2000 Gres=gpu:{gpus}
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=n1,n2 MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why this machine cannot run the cluster; empty if it can."""
    absent = [
        name for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if shutil.which(name) is None
    ]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "slurmd starts jobs only as root"


def until(what: str, probe: Callable[[], T], timeout_s: float) -> T:
    """Poll `probe` until it returns something true, and return that.

    Raises:
        TimeoutError: not within `timeout_s` seconds; says `what` and the last answer.
    """
    end = time.monotonic() + timeout_s
    while not (answer := probe()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s (last: {answer!r})")
        time.sleep(0.1)
    return answer


class Cluster:
    """Nodes n1 and n2 of four CPUs and two GPUs each; partition `high` preempts jobs of `main` by requeueing.

    The GPUs are copies of /dev/null: Slurm hands them out, and torch sees none.

    Use as a context manager. While it is active SLURM_CONF points to it.

    Args:
        preempt_signal: whether a preemption sends the job's own signal (USR2) and not SIGTERM.
        conf: further lines of slurm.conf.
    """

    def __init__(self, preempt_signal: bool = True, conf: str = "") -> None:
        self._preempt_signal, self._conf = preempt_signal, conf
        self._stack = contextlib.ExitStack()
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            # A short path: munge's socket has 108 characters at most.
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
            stack.enter_context(self._environment())
            stack.callback(self._kill_everything)
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def command(self, *words: str) -> str:
        """Run one of Slurm's commands and return its output."""
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def job(self, job_id: str) -> dict[str, str]:
        """Fields of `scontrol show job`, such as `JobState` and `Restarts`."""
        text = self.command("scontrol", "show", "job", "--oneliner", job_id)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def wait_for(self, job_id: str, state: str, timeout_s: float) -> dict[str, str]:
        """Poll until a job is in `state`; fails at once when it has ended in another one."""

        def probe() -> dict[str, str]:
            facts = self.job(job_id)
            if facts["JobState"] in ENDED - {state}:
                raise AssertionError(f"job {job_id} is {facts['JobState']}, not {state}; {self.logs()}")
            return facts if facts["JobState"] == state else {}

        return until(f"job {job_id} {state}", probe, timeout_s)

    def logs(self) -> str:
        """The last lines of the daemons' logs."""
        parts = [f"{path.name}:\n{path.read_text()[-1500:]}" for path in sorted(self.folder.glob("*.log"))]
        return "\n".join(parts)

    def _start(self) -> None:
        conf = _CONF.format(
            host=socket.gethostname().partition(".")[0],
            folder=self.folder,
            ports=_free_ports(3),
            first_job=secrets.randbelow(1_000_000) + 1,
            cpus=CPUS,
            gpus=GPUS,
            preempt_signal="SlurmctldParameters=preempt_send_user_signal" if self._preempt_signal else "",
        )
        (self.folder / "slurm.conf").write_text(conf + self._conf + "\n")
        devices = [self.folder / f"gpu{number}" for number in range(GPUS)]
        for device in devices:
            os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # Slurm wants a device: /dev/null
        lines = ["AutoDetect=off", *(f"Name=gpu File={device}" for device in devices)]
        (self.folder / "gres.conf").write_text("\n".join(lines) + "\n")
        (self.folder / "state").mkdir()
        (self.folder / "key").write_bytes(os.urandom(128))
        (self.folder / "key").chmod(0o600)
        files = {"socket": "munge.socket", "key-file": "key", "pid-file": "munged.pid", "seed-file": "seed"}
        files |= {"log-file": "munged.log"}
        self._daemon(
            "munged", "--foreground", "--force", *(f"--{k}={self.folder / v}" for k, v in files.items())
        )
        until("munge's socket", (self.folder / "munge.socket").exists, 10)
        self._daemon("slurmctld", "-D", "-c")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        until("two idle nodes", self._idle, 30)

    def _daemon(self, *words: str) -> None:
        with (self.folder / f"start-{len(self._daemons)}-{words[0]}.log").open("w") as file:
            self._daemons.append(
                subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
            )

    def _idle(self) -> bool:
        try:
            return self.command("sinfo", "--noheader", "-p", "main", "-o", "%T %D") == f"idle {len(NODES)}"
        except RuntimeError:
            return False

    @contextlib.contextmanager
    def _environment(self) -> Iterator[None]:
        """Sets SLURM_CONF and removes the variables of a cluster that the tests may run on."""
        hidden = {
            name: os.environ.pop(name) for name in list(os.environ) if name.startswith(("SLURM", "SBATCH"))
        }
        os.environ["SLURM_CONF"] = str(self.folder / "slurm.conf")
        try:
            yield
        finally:
            del os.environ["SLURM_CONF"]
            os.environ.update(hidden)

    def _kill_everything(self) -> None:
        """Kill the daemons and the processes of their jobs, and wait until they are gone."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self._processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)
            with contextlib.suppress(TimeoutError):
                until("end of the daemons", lambda: not self._processes(), 5)
                break
        for daemon in self._daemons:
            daemon.wait(timeout=5)
        if not self._processes():
            return
        raise TimeoutError(f"processes of the cluster are left: {self._processes()}")

    def _processes(self) -> list[int]:
        """Processes that were started with this cluster's SLURM_CONF, except this one and zombies."""
        mark = f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int(folder.name) != os.getpid() and mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def main(words: Sequence[str]) -> int:
    """Run a command while the cluster is up, and return its exit status.

    Args:
        words: the command, after `--`.
    """
    if words[:1] != ["--"] or len(words) < 2:
        print("want: python -m tests.helpers.launch.cluster -- COMMAND", file=sys.stderr)
        return 2
    if reason := missing():
        print(f"no Slurm: {reason}", file=sys.stderr)
        return 1
    signal.signal(
        signal.SIGTERM, lambda number, _: sys.exit(128 + number)
    )  # the daemons end with this process
    with Cluster():
        return subprocess.run(words[1:], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
