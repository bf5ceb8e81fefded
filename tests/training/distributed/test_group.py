"""A lost rank is named, and noticed also where no call fails: with NCCL, the host waits for the device."""

import subprocess
import sys

import pytest
from torch import distributed as dist

from hpcphotoz.training.distributed.presence import Presence, RankAddress
from hpcphotoz.training.monitoring import lost_ranks

WAITING = """
import threading
import torch.distributed as dist
from hpcphotoz.training.monitoring import lost_ranks

dist.is_initialized = lambda: True
dist.get_backend = lambda: "nccl"
steps, never = [0], threading.Event()
limits = lost_ranks.WaitLimits(0.5, 0.5)
with lost_ranks.detect_lost_ranks(lambda: f"runs/a: rank 1 at step {steps[0]}", limits):
    for _ in range(10):
        never.wait(0.2)
        MOVES
print("went on")
"""


@pytest.mark.parametrize("moves", ["steps[0] += 1", "limits.begin_section('agreement of ranks')", ""])
def test_a_step_that_takes_longer_than_the_timeout_ends_the_process(moves: str) -> None:
    """Not a validation that does, in which ranks agree again and again."""
    code = WAITING.replace("MOVES", moves)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    if moves:
        assert (found.returncode, found.stdout) == (0, "went on\n"), found.stderr
        return
    assert found.returncode == 1 and not found.stdout
    assert found.stderr.startswith(
        "hpcphotoz: error: runs/a: rank 1 at step 0: another rank died, or did not"
    )
    assert "the same command resumes from the last checkpoint" in found.stderr


def test_a_lost_rank_is_named_with_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [Presence() for _ in range(3)]
    at = [RankAddress(f"node{k}", "127.0.0.1", presence.port) for k, presence in enumerate(ranks)]
    ranks[0].meet(at, 0, "127.0.0.1", dist.HashStore())  # type: ignore[attr-defined]
    limits = lost_ranks.WaitLimits(60, 5)
    monkeypatch.setattr(lost_ranks, "joined", [lost_ranks.JoinedRanks(ranks[0], limits)])
    ranks[1].close()
    lost = (
        r"runs/a: rank 0 at step 3: another rank died, or did not answer for run.start_timeout_s = 60 s "
        r"\(gloo: Connection closed by peer\): seen from node0, rank 1 on node1 has ended: the newest lines"
    )
    with (
        pytest.raises(lost_ranks.RankLost, match=lost),
        lost_ranks.detect_lost_ranks(lambda: "runs/a: rank 0 at step 3", limits),
    ):
        raise RuntimeError("gloo: Connection closed by peer")
    for presence in ranks:
        presence.close()
