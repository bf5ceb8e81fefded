"""Where the ranks of a SLURM job meet: the first node, and a port that follows from the job's number."""

import hashlib
import re
import socket
from collections.abc import Mapping

from hpcphotoz.errors import BadInput

_FIRST = re.compile(r"((?:[^,\[\]]|\[[^\[\]]*\])+)(?:,.*)?")  # of a list of nodes; brackets may hold commas
_RANGE = re.compile(r"\[([0-9A-Za-z]+)[^\]]*\]")


def step_address(env: Mapping[str, str]) -> tuple[str, int]:
    """Host and port at which the tasks of a step of `srun` meet: each finds the same by itself.

    Args:
        env: environment of a task.

    Raises:
        BadInput: SLURM does not tell the nodes of the step.
    """
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    if not nodes:
        raise BadInput("SLURM_STEP_NODELIST is not set: set MASTER_ADDR and MASTER_PORT")
    step = f"{env.get('SLURM_JOB_ID', '')}.{env.get('SLURM_STEP_ID', '')}"
    return reachable(first_node(nodes), env), meeting_port(step, env.get("SLURM_RESTART_COUNT", "0"))


def first_node(nodes: str) -> str:
    """The first of a list of nodes as SLURM writes it: "rack2n09" of "rack2n[09-12,20],rack3n1".

    Raises:
        BadInput: it is no such list.
    """
    if (found := _FIRST.fullmatch(nodes)) is None or "[" in (name := _RANGE.sub(r"\1", found[1])):
        raise BadInput(f"{nodes!r}: is no list of nodes: set MASTER_ADDR and MASTER_PORT")
    return name


def reachable(first: str, env: Mapping[str, str]) -> str:
    """The name of the first node; SLURM's address of it if the name does not resolve."""
    try:
        socket.getaddrinfo(first, None)
    except OSError:
        # The batch script, hence srun, runs on the first node. Asking scontrol would be one call per rank.
        return env.get("SLURM_LAUNCH_NODE_IPADDR", first)
    return first


def meeting_port(job: str, restart: str) -> int:
    """The port where rank 0 listens: the same on all ranks of a job or step, another after a restart.

    It is below 32768, where the ports begin that Linux assigns to outgoing connections.
    """
    digest = hashlib.sha256(f"{job} {restart}".encode()).digest()
    return 20_000 + int.from_bytes(digest[:4]) % 12_000
