"""The rank of a process that Slurm or submitit has started, and the address at which the ranks meet."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import hpcphotoz
from hpcphotoz.errors import BadInput
from hpcphotoz.launch import snapshot
from hpcphotoz.node.address import meeting_port, reachable
from hpcphotoz.node.prepare import prepare_rank
from hpcphotoz.output import say
from hpcphotoz.world import RANK_NAMES, RANK_PREFIXES, World, detect


def find_own_rank(code: str, cpus: int, visible_gpus: str | None) -> World:
    """Detect this process's rank and set the variables by which the ranks connect.

    Args:
        code: folder with the snapshot of the package; empty: the installed package runs.
        cpus: cores of this rank; 0: as the job says.
        visible_gpus: CUDA_VISIBLE_DEVICES of a local launch; None: unset. On a cluster Slurm sets it.

    Raises:
        BadInput: the package was not imported from the snapshot, or the snapshot was changed.
    """
    import submitit

    found = Path(hpcphotoz.__file__).resolve().parents[1]
    if code and found != Path(code).resolve():
        raise BadInput(
            f"hpcphotoz was imported from {found}, the submitted code is in {code}: "
            "unset PYTHONSAFEPATH and launch again"
        )
    if code:
        snapshot.check(found)
    # Slurm or submitit has started this rank: variables of other launchers are inherited from elsewhere.
    for name in list(os.environ):
        if name in RANK_NAMES or (name.startswith(RANK_PREFIXES) and not name.startswith("SUBMITIT_")):
            del os.environ[name]
    if "SLURM_JOB_ID" not in os.environ:
        # submitit has written numbers there; the user's value may hold UUIDs, or be empty.
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if visible_gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus
    job = submitit.JobEnvironment()
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    os.environ["MASTER_ADDR"] = _meeting_host(job.hostnames[0], os.environ)
    os.environ["MASTER_PORT"] = str(meeting_port(job.job_id, restart))
    world = detect()
    prepare_rank(world, cpus)
    say(f"rank {world.rank} of {world.size} on {socket.gethostname()}, code {found}, restart {restart}")
    return world


def _meeting_host(first_node: str, env: Mapping[str, str]) -> str:
    """Where rank 0 listens; of a local launch this machine, whose own name often does not resolve."""
    return reachable(first_node, env) if "SLURM_JOB_ID" in env else "127.0.0.1"
