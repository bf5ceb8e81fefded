"""Ranks that join a process group, all-reduce once and end, without a run."""

import os
import subprocess
import sys

# Reads the command line of JOIN.
OPTIONS = "rank, size, timeout_s, gpu = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]"

# Joins a process group as one rank, without a run.
JOIN = r"""import os, sys, time
from hpcphotoz.errors import BadInput
from hpcphotoz.training.distributed import group, preflight
from hpcphotoz.training.monitoring.lost_ranks import RankLost, WaitLimits
from hpcphotoz.world import World
from torch import distributed as dist
import torch
rank, size, timeout_s, gpu = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
options = {"--out": os.environ.get("OUT", "a"), "--attack.eps": os.environ.get("EPS", "1")}
limits = WaitLimits(timeout_s, timeout_s)
if ahead := float(os.environ.get("CLOCK_AHEAD_S", 0)):
    own_clock = time.time
    time.time = lambda: own_clock() + ahead
if code := os.environ.get("CODE"):  # another version of hpcphotoz
    preflight.hpcphotoz.__version__ = code
if os.environ.get("DIES"):  # once the ranks have met, before they connect
    group.gloo.connect = lambda *_: os._exit(9)
print("joins", flush=True)
if gpu:  # a GPU that only the choice of devices sees
    group.identity = lambda _: gpu
try:
    with group.process_group(World(rank, size, rank, size, "test"), limits, options):
        total = torch.ones(1)
        dist.all_reduce(total)
        print(f"{dist.get_backend()} {int(total)}\n", end="", flush=True)  # whole, beside the other rank's
except (BadInput, RankLost) as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def join(
    rank: int, size: int, port: object, timeout_s: float, gpu: str = "", **env: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", JOIN, str(rank), str(size), str(timeout_s), gpu],
        env={
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(*ranks: subprocess.Popen[str]) -> list[tuple[int, str, list[str]]]:
    """Exit status, output and error lines of each rank."""
    try:
        said = [rank.communicate(timeout=90) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, out, err.splitlines()) for rank, (out, err) in zip(ranks, said, strict=True)]
