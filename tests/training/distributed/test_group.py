"""A hanging rank is noticed although no call fails: with NCCL, the host waits for the device."""

import subprocess
import sys

import pytest

WAITING = """
import threading
import torch.distributed as dist
from hpcphotoz.training.distributed import group

dist.is_initialized = lambda: True
dist.get_backend = lambda: "nccl"
steps, never = [0], threading.Event()
with group.detect_lost_ranks(lambda: f"runs/a: rank 1 at step {steps[0]}", timeout_s=0.5):
    for _ in range(10):
        never.wait(0.2)
        steps[0] += MOVES
print("went on")
"""


@pytest.mark.parametrize("moves", [1, 0])
def test_a_step_that_takes_longer_than_the_timeout_ends_the_process(moves: int) -> None:
    code = WAITING.replace("MOVES", str(moves))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    if moves:
        assert (found.returncode, found.stdout) == (0, "went on\n"), found.stderr
        return
    assert found.returncode == 1 and not found.stdout
    assert found.stderr.startswith(
        "hpcphotoz: error: runs/a: rank 1 at step 0: another rank died, or did not"
    )
    assert "the same command resumes from the last checkpoint" in found.stderr
