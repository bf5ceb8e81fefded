"""Times of all-reduce: `measure` starts the ranks, and `main` is one of them under torchrun."""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist

from benchmarks.training.train_runs import launch

SMALLEST, LARGEST = 2**12, 2**27  # bytes


def measure(backend: str, ranks: int, largest: int = LARGEST, rounds: int = 5) -> dict[int, list[float]]:
    """Seconds of single all-reduces of float32 by message size in bytes, 4 KB to `largest`.

    Raises:
        RuntimeError: the ranks did not connect or did not end; with their last lines.
    """
    words = ["-m", "benchmarks.scaling.allreduce", backend, str(largest), str(rounds)]
    name = f"all-reduce on {ranks} ranks, {backend}"
    said = launch(name, Path(sys.executable), ranks, words, timeout_s=240)
    return {int(size): seconds for size, seconds in json.loads(said.splitlines()[-1]).items()}


def sizes(largest: int) -> list[int]:
    """Message sizes in bytes, each eight times the one before, and the largest."""
    return [*(SMALLEST * 8**k for k in range(6) if SMALLEST * 8**k < largest), largest]


def timed(size: int, device: torch.device) -> list[float]:
    """Seconds of all-reduces that follow each other as buckets of gradients do; the first is left out."""
    message, seconds = torch.zeros(size // 4, device=device), []
    for _ in range(max(3, min(40, 2**22 // size))):
        start = time.perf_counter()
        dist.all_reduce(message)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def main() -> None:
    """Take part; rank 0 prints {bytes: [seconds]}. The sizes take turns, the first round is left out."""
    backend, largest, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timedelta(seconds=60))
    found: dict[int, list[float]] = {size: [] for size in sizes(largest)}
    for number in range(rounds + 1):
        for size, seconds in found.items():
            new = timed(size, device)
            seconds += new if number else []
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
