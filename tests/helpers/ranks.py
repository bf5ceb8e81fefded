"""Real ranks: processes of `python -m hpcphotoz train` that meet on this machine, always with a timeout."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.faults.job import free_port as free_port

TIMEOUT_S = 200


def start(
    world_size: int,
    arguments: Sequence[str],
    own: Sequence[Mapping[str, str]] = (),
    module: str = "hpcphotoz",
) -> list[subprocess.Popen[str]]:
    """Start `python -m hpcphotoz ARGUMENTS` as ranks of a new world.

    Args:
        world_size, arguments: number of ranks, and the words of each command line.
        own: additional environment variables of each rank.
        module: what runs in the place of hpcphotoz.
    """
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",  # gloo on CPUs, even where there are GPUs
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={
                **shared,
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(world_size),
                **(own[rank] if own else {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def finish(ranks: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit status, standard output and error of every rank; all are killed when one exceeds the timeout."""
    deadline = time.monotonic() + TIMEOUT_S
    try:
        texts = [rank.communicate(timeout=max(deadline - time.monotonic(), 1)) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, out, err) for rank, (out, err) in zip(ranks, texts, strict=True)]


def run(world_size: int, arguments: Sequence[str], module: str = "hpcphotoz") -> list[tuple[int, str, str]]:
    """Start ranks and wait for their end; arguments as `start`."""
    return finish(start(world_size, arguments, module=module))


def wait_until(condition: Callable[[], bool], ranks: Sequence[subprocess.Popen[str]]) -> None:
    """Poll until the condition holds; fails when the ranks end first or the timeout passes."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        ended = all(rank.poll() is not None for rank in ranks)
        assert condition() or not ended, f"ranks ended early: {[rank.communicate() for rank in ranks]}"
        assert time.monotonic() < deadline, "timed out"


def curve(run_folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of every training line of metrics.jsonl."""
    path = run_folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]
