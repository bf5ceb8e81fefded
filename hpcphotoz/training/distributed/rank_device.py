"""Chooses the device of a rank: a GPU of its own, or the CPU if there is no GPU or the user asks for it."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import torch

from hpcphotoz.errors import BadInput
from hpcphotoz.world import World

DEVICES = ("auto", "cuda", "cpu")
_DEVICE_FILES = "/dev"
# Variables that SLURM sets in a job with GPUs, whichever of its options asked for them.
_SLURM_GPUS = (
    *("SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK", "SLURM_GPUS_ON_NODE"),
    *("SLURM_JOB_GPUS", "SLURM_STEP_GPUS"),
)


def choose_device(world: World, wanted: str = "auto", env: Mapping[str, str] | None = None) -> torch.device:
    """Choose the device of this rank; a GPU also becomes torch's current device.

    A launcher may make one GPU visible to each rank, or all GPUs of the node.

    Args:
        world: this rank's place among all ranks.
        wanted: "cuda": a GPU or an error; "cpu"; "auto": a GPU if the node has one or the job asked for one.
        env: environment to read; the process's own by default.

    Raises:
        BadInput: another word, no GPU for torch although one is there or was asked for, or fewer GPUs than
            ranks.
    """
    if wanted not in DEVICES:
        raise BadInput(f"device {wanted!r}: want one of {', '.join(map(repr, DEVICES))}")
    env = os.environ if env is None else env
    if wanted == "cpu":
        return torch.device("cpu")
    host, visible = socket.gethostname(), torch.cuda.device_count()
    if not visible:
        if wanted == "cuda" or _asked_for(env) or _present(env):
            raise BadInput(
                f"a GPU was asked for or is there, but torch {torch.__version__} sees none on {host}: look "
                "at CUDA_VISIBLE_DEVICES, the driver and torch's CUDA version, or train on CPUs with "
                "--device cpu"
            )
        return torch.device("cpu")
    if 1 < visible < max(world.local_size, world.local_rank + 1):
        raise BadInput(
            f"{world.local_size} ranks on {host}, which shows them {visible} GPUs: start one rank a GPU, or "
            "train on CPUs with --device cpu"
        )
    device = torch.device("cuda", 0 if visible == 1 else world.local_rank)
    torch.cuda.set_device(device)
    return device


def identity(device: torch.device) -> str:
    """A name that is unique among the devices of a node: the UUID of a GPU; "cpu" for every CPU."""
    if device.type != "cuda":
        return device.type
    return str(torch.cuda.get_device_properties(device).uuid)


def conflict(places: list[tuple[str, str]]) -> tuple[int, str] | None:
    """The first rank whose place (host, identity of its device) conflicts with those before, and why."""
    owner: dict[tuple[str, str], int] = {}
    for rank, (host, device) in enumerate(places):
        if (device == "cpu") != (places[0][1] == "cpu"):
            with_gpu, without = (0, rank) if device == "cpu" else (rank, 0)
            return rank, (
                f"rank {with_gpu} on {places[with_gpu][0]} has a GPU, rank {without} on {places[without][0]} "
                "has none: take nodes of one kind, or train on CPUs with --device cpu"
            )
        if device != "cpu" and (host, device) in owner:
            return rank, (
                f"ranks {owner[host, device]} and {rank} on {host} have the same GPU {device}: start one "
                "rank a GPU, or train on CPUs with --device cpu"
            )
        owner[host, device] = rank
    return None


def _asked_for(env: Mapping[str, str]) -> bool:
    named = env.get("CUDA_VISIBLE_DEVICES", "").strip()
    # "-1" hides all GPUs, as "NoDevFiles" of older SLURM versions does.
    if named[:1].isdigit() or named.startswith(("GPU-", "MIG-")):
        return True
    return any(env.get(name, "0") not in ("", "0") for name in _SLURM_GPUS)


def _present(env: Mapping[str, str]) -> bool:
    """Whether this process may open a GPU's device file, and CUDA_VISIBLE_DEVICES hides none."""
    if "CUDA_VISIBLE_DEVICES" in env:
        return False
    for path in Path(_DEVICE_FILES).glob("nvidia[0-9]*"):
        try:
            os.close(os.open(path, os.O_RDWR))
        except OSError:  # refused by the cgroup of the batch system: a GPU of another job
            continue
        return True
    return False
