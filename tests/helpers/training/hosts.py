"""Two hosts on this machine: network namespaces with a name, an address and a cable of their own."""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hpcphotoz.world import RANK_NAMES, RANK_PREFIXES
from tests.helpers.launch.cluster import until
from tests.helpers.paths import ROOT

NAMES, ADDRESSES, CABLE = ("node0", "node1"), ("10.77.0.1", "10.77.0.2"), "cable0"
IDLE, IDLE_ADDRESS = "idle0", "10.66.0.2"  # an interface of node1 that leads nowhere
_PREFIX = "hpcphotoz-"
_CONFIGURATIONS = Path("/etc/netns")  # `ip netns exec` mounts NAMESPACE/hosts from there over /etc/hosts
_count = itertools.count()


def missing() -> str:
    """Why this machine cannot have two hosts; empty if it can."""
    if os.geteuid():
        return "network namespaces need root"
    absent = [name for name in ("ip", "unshare", "hostname") if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: iproute2, util-linux, hostname)"
    try:
        with TwoHosts(Path("/dev/null")) as (host, _):
            _run("ip", "netns", "exec", host.namespace, "unshare", "--uts", "hostname", host.name)
    except (RuntimeError, OSError) as error:
        return f"this machine allows no network namespaces ({error})"
    return ""


class Host:
    """One of two hosts: starts processes in its namespace, under its name.

    Attributes:
        name, address: of the host; both hosts know both, as from a name server.
    """

    def __init__(self, name: str, address: str, namespace: str, folder: Path) -> None:
        self.name, self.address, self.namespace = name, address, namespace
        self._folder, self._logs = folder, list[Path]()
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, words: Sequence[str], **env: str) -> subprocess.Popen[bytes]:
        """Start a command, whose output `said` returns; `env` is added to the environment."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in RANK_NAMES and not name.startswith(("SLURM", "GLOO", *RANK_PREFIXES))
        }
        self._logs.append(self._folder / f"{self.name}-{len(self._logs)}.txt")
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        with self._logs[-1].open("wb") as file:
            started = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *named, *words],
                cwd=ROOT,
                env={**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **env},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(started)
        return started

    def said(self, start: int = -1) -> str:
        """Output and errors of the command that was started last, or as number `start`."""
        return self._logs[start].read_text(errors="replace")

    def ranks(self) -> list[int]:
        """Process ids of the ranks that torchrun has started on this host."""
        found = []
        for process in self._processes():
            with contextlib.suppress(OSError):
                if b"\0LOCAL_RANK=" in Path(f"/proc/{process}/environ").read_bytes():
                    found.append(process)
        return found

    def cut(self) -> None:
        """Pull the cable out of this host: nothing reaches it any more, and nobody is told."""
        _run("ip", "-n", self.namespace, "link", "set", CABLE, "down")

    def plug(self) -> None:
        """Put the cable back."""
        _run("ip", "-n", self.namespace, "link", "set", CABLE, "up")

    def lose_power(self) -> None:
        """Cut the cable and kill all processes."""
        self.cut()
        self.kill()

    def kill(self) -> None:
        """Kill all processes of this host, and wait until they are gone."""

        def gone() -> bool:
            left = self._processes()
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            return not left

        until(f"end of the processes of {self.name}", gone, 10)
        for started in self._started:
            started.wait(timeout=10)

    def _processes(self) -> list[int]:
        return [int(word) for word in _run("ip", "netns", "pids", self.namespace).split()]


class TwoHosts:
    """Hosts node0 and node1, with a cable between them; use as a context manager.

    Names are unique to this process, so that parallel tests do not meet. Whatever happens, processes and
    namespaces are removed at the end; those of a killed test process, by the next one.

    Args:
        folder: where the output of commands goes.
        loopback_names: whether each host takes its own name for 127.0.1.1, as Debian's installer sets it up.
    """

    def __init__(self, folder: Path, loopback_names: bool = False) -> None:
        self._loopback_names = loopback_names
        namespaces = [f"{_PREFIX}{os.getpid()}-{next(_count)}" for _ in NAMES]
        given = zip(NAMES, ADDRESSES, namespaces, strict=True)
        self.hosts = [Host(*each, folder) for each in given]
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> list[Host]:
        _remove_left()
        with contextlib.ExitStack() as stack:
            first, second = self.hosts
            for host in self.hosts:
                stack.callback(_remove, host.namespace)
                _run("ip", "netns", "add", host.namespace)
                stack.callback(host.kill)
                self._write_names(host)
            pair = ["type", "veth", "peer", "name"]
            here = ["ip", "link", "add", CABLE, "netns", first.namespace]
            _run(*here, *pair, CABLE, "netns", second.namespace)
            for host in self.hosts:
                _run("ip", "-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", CABLE)
                for interface in ("lo", CABLE):
                    _run("ip", "-n", host.namespace, "link", "set", interface, "up")
            _run("ip", "-n", second.namespace, "link", "add", IDLE, *pair, f"{IDLE}p")
            _run("ip", "-n", second.namespace, "addr", "add", f"{IDLE_ADDRESS}/24", "dev", IDLE)
            _run("ip", "-n", second.namespace, "link", "set", IDLE, "up")
            self._stack = stack.pop_all()
        return self.hosts

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _write_names(self, host: Host) -> None:
        lines = ["127.0.0.1 localhost"]
        for other in self.hosts:
            own = other is host and self._loopback_names
            lines.append(f"{'127.0.1.1' if own else other.address} {other.name}")
        folder = _CONFIGURATIONS / host.namespace
        folder.mkdir(parents=True)
        (folder / "hosts").write_text("\n".join(lines) + "\n")


def end_of(processes: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> list[int]:
    """The exit statuses of processes; fails unless all end within `timeout_s` seconds."""
    until("end of the processes", lambda: all(each.poll() is not None for each in processes), timeout_s)
    return [each.returncode for each in processes]


def _remove_left() -> None:
    """Remove the namespaces of test processes that were killed."""
    for name in re.findall(rf"^{_PREFIX}\d+-\d+", _run("ip", "netns", "list"), re.MULTILINE):
        if not Path(f"/proc/{name.split('-')[1]}").exists():
            Host("a lost host", "", name, Path()).kill()
            _remove(name)


def _remove(namespace: str) -> None:
    if Path("/run/netns", namespace).exists():
        _run("ip", "netns", "delete", namespace)
    shutil.rmtree(_CONFIGURATIONS / namespace, ignore_errors=True)


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
