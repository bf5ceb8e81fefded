"""GPUs of a node, and sums over all nodes with gloo and NCCL; imports torch inside its functions."""

import re
import time
from pathlib import Path
from typing import Any

from hpcphotoz.errors import BadInput, first_line
from hpcphotoz.launch.doctor.facts import GpuFacts
from hpcphotoz.launch.doctor.slurm_facts import run
from hpcphotoz.world import World

_NVIDIA, _AMD = Path("/proc/driver/nvidia/version"), Path("/dev/kfd")
_START_S, _USUAL_S = 90.0, 60.0  # limits of waits for another node
_BYTES, _ROUNDS = 64 << 20, 4


def look_at_gpus() -> GpuFacts:
    """GPUs as the driver and torch see them, after a small computation."""
    import torch

    built = f"cuda {torch.version.cuda}" if torch.version.cuda else ""
    built = built or (f"rocm {torch.version.hip}" if torch.version.hip else "cpu")
    facts: dict[str, Any] = {"torch_build": built, **_driver()}
    try:
        facts["usable"] = torch.cuda.device_count()
        for number in range(facts["usable"]):
            device = torch.device("cuda", number)
            facts["name"] = torch.cuda.get_device_name(device)
            product = torch.full((256, 256), 0.5, device=device) @ torch.ones(256, 256, device=device)
            if not bool((product == 128).all()):
                facts["error"] = f"GPU {number} computes a wrong result"
    except (RuntimeError, AssertionError) as error:
        facts["error"] = first_line(error)[:300]
    return GpuFacts(**facts)


def measure(backend: str, world: World) -> tuple[float, float, str]:
    """Sum over all nodes as training does.

    Args:
        backend: "gloo" on CPUs, "nccl" on the first GPU of each node.
        world: all ranks, one a node.

    Returns:
        GB/s of an all-reduce, seconds by which this clock is ahead of rank 0's, and why it failed ("": it did
        not). The speed is that of the algorithm: bytes of the tensor over seconds.
    """
    import torch
    from torch import distributed as dist

    from hpcphotoz.training.distributed.group import OtherRankFailed, process_group
    from hpcphotoz.training.monitoring.lost_ranks import RankLost, WaitLimits, joined

    wanted = "cuda" if backend == "nccl" else "cpu"
    try:
        with process_group(world, WaitLimits(_START_S, _USUAL_S), {}, wanted) as device:
            ahead = joined[-1].clock_ahead_s
            values = torch.ones(_BYTES // 4, device=device)
            times = []
            for _ in range(_ROUNDS + 1):
                values.fill_(1)
                dist.all_reduce(values[:1])  # all begin together
                values[:1] = 1
                if device.type == "cuda":
                    torch.cuda.synchronize()
                began = time.monotonic()
                dist.all_reduce(values)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                times.append(time.monotonic() - began)
                if not bool((values == world.size).all()):
                    return 0.0, ahead, "the sum is wrong"
            return _BYTES / 1e9 / min(times[1:]), ahead, ""  # the first one connects
    except OtherRankFailed:
        return 0.0, 0.0, "another node reports why"
    except (BadInput, RankLost, RuntimeError, OSError) as error:
        return 0.0, 0.0, first_line(error)[:300]


def _driver() -> dict[str, str]:
    """Vendor, version and newest CUDA of the driver that is loaded."""
    if _NVIDIA.exists():
        text, error = run(["nvidia-smi"])
        version, cuda = (re.search(rf"{name} Version: *([0-9.]+)", text) for name in ("Driver", "CUDA"))
        found = {"vendor": "nvidia", "driver": version[1] if version else f"({error or 'no version'})"}
        return found | ({"driver_cuda": cuda[1]} if cuda else {})
    if _AMD.exists():
        path = Path("/sys/module/amdgpu/version")
        return {"vendor": "amd", "driver": path.read_text().strip() if path.exists() else "of the kernel"}
    return {}
