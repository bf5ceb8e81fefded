"""What every benchmark needs: taking turns, medians, and a JSON record with device, versions and commit."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from hpcphotoz.revision import commit

Times = dict[str, list[float]]


def parser(description: str | None) -> argparse.ArgumentParser:
    """`--quick` and `--json PATH`, and room for more."""
    words = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("--quick", action="store_true", help="fewer repetitions and smaller networks")
    words.add_argument("--json", type=Path, help="write the figures here")
    return words


def arguments(description: str | None) -> argparse.Namespace:
    """`--quick` and `--json PATH`."""
    return parser(description).parse_args()


def in_turn(rivals: Mapping[str, Callable[[], object]], repeat: int) -> Times:
    """Seconds of each rival, called one after the other `repeat` times after one round of warm-up.

    Taking turns lets a change of the machine's speed fall on all: ratios hold where single times do not.
    """

    def timed(work: Callable[[], object]) -> Callable[[], float]:
        def measure() -> float:
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.perf_counter() - start

        return measure

    return rounds({name: timed(work) for name, work in rivals.items()}, repeat)


def rounds(rivals: Mapping[str, Callable[[], float]], repeat: int) -> Times:
    """The same for rivals that time themselves, for instance in another process, and return their seconds."""
    times: Times = {name: [] for name in rivals}
    for round_ in range(repeat + 1):
        for name, measure in rivals.items():
            seconds = measure()
            if round_:
                times[name].append(seconds)
    return times


def spread(values: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile, and number."""
    low, middle, high = np.percentile(values, [20, 50, 80])
    return {"median": float(middle), "p20": float(low), "p80": float(high), "n": len(values)}


def record(name: str, figures: Mapping[str, object], path: Path | None) -> None:
    """Write the figures with what they depend on; no path: nothing."""
    if path is None:
        return
    packages = ("torch", "numpy", "h5py", "triton")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    tree = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "device": gpu or f"{os.cpu_count()} cores of {_processor()}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in packages},
        "command": "python -m benchmarks." + Path(sys.argv[0]).stem + "".join(f" {w}" for w in sys.argv[1:]),
        "figures": figures,
    }
    path.write_text(json.dumps(tree, indent=1) + "\n")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None  # triton on a Mac


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine()
    )
