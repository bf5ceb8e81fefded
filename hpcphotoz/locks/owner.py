"""Who holds a lock: what its file says of the process, and whether that process still runs."""

import json
import os
import pwd
import re
import socket
import time
import uuid
from dataclasses import asdict, dataclass, fields
from pathlib import Path

_TOKEN = re.compile(r"[0-9a-f]{32}")
_ENDED = ("Z", "X")  # states in /proc/PID/stat: a zombie waits for its parent only


@dataclass(frozen=True)
class LockOwner:
    """The process that holds a lock, as JSON in the lock's file."""

    token: str  # of this lock alone
    user: str
    host: str
    pid: int
    started: int | None  # clock ticks from the machine's start to that of the process; None: unknown
    machine: str  # the same where numbers of processes mean the same processes
    slurm_job: str | None
    since: str  # time in ISO 8601
    path: str  # of the lock file
    inode: int | None  # of the lock file

    @classmethod
    def of_this_process(cls, path: Path, inode: int) -> "LockOwner":
        """The owner of a new lock at `path`."""
        return cls(
            token=uuid.uuid4().hex,
            user=_user(),
            host=socket.gethostname(),
            pid=os.getpid(),
            started=_process(os.getpid())[1],
            machine=_machine(),
            slurm_job=os.environ.get("SLURM_JOB_ID"),
            since=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            path=os.path.realpath(path),
            inode=inode,
        )

    @classmethod
    def parse(cls, text: bytes) -> "LockOwner | None":
        """What the file of a lock says; None: an empty file, as of earlier versions, or anything else."""
        try:
            values = json.loads(text)
            owner = cls(**{field.name: values[field.name] for field in fields(cls)})
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        texts = owner.token, owner.user, owner.host, owner.machine, owner.since, owner.path
        numbers = owner.pid, owner.started or 0, owner.inode or 0
        plain = all(isinstance(item, str) and item.isprintable() for item in (*texts, owner.slurm_job or ""))
        whole = all(isinstance(item, int) for item in numbers) and 0 < owner.pid < 2**31
        return owner if plain and whole and _TOKEN.fullmatch(owner.token) else None

    @property
    def json(self) -> str:
        """What the file of the lock holds."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @property
    def text(self) -> str:
        """In words, for messages."""
        job = f", Slurm job {self.slurm_job}" if self.slurm_job else ""
        return f"{self.user} on {self.host}, process {self.pid}{job}, since {self.since}"

    @property
    def is_here(self) -> bool:
        """Whether this process can see whether that one runs."""
        return self.machine == _machine()

    @property
    def runs(self) -> bool:
        """Whether the process runs; only where `is_here`. Another with the same number is another."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # of another user
            pass
        state, started = _process(self.pid)
        return state not in _ENDED and (None in (started, self.started) or started == self.started)


def _process(pid: int) -> tuple[str | None, int | None]:
    """State and start of a process, in clock ticks since that of the machine; None where /proc hides them."""
    try:
        # The name, in brackets, may hold spaces and brackets.
        values = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return values[0], int(values[19])
    except (OSError, IndexError, ValueError):
        return None, None


def _machine() -> str:
    """Host, boot and namespace of process numbers: containers of one host count their processes anew."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container
        return f"user {os.getuid()}"
