"""Shared by all benchmarks: rivals that take turns, medians, recorded failures, and a JSON record."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import numpy as np
import torch

from hpcphotoz.atomic import write_text
from hpcphotoz.provenance import commit

Times = dict[str, list[float]]
T = TypeVar("T")
P = ParamSpec("P")
COMMIT = commit()  # at the start: a record that is written makes the tree differ from it
QUICK_S = 40  # with --quick, nothing starts later than this, so that the benchmark ends within a minute
_MASKS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")  # variables that hide a processor's units from torch


def parser(description: str | None, resumable: bool = False) -> argparse.ArgumentParser:
    """A parser with `--quick` and `--json PATH`, to which a benchmark adds its own options.

    Args:
        description: docstring of the benchmark.
        resumable: whether the benchmark asks `Benchmark.earlier` for figures: adds `--minutes`.
    """
    words = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("--quick", action="store_true", help="a part that ends within a minute")
    words.add_argument("--json", type=Path, help="write the figures here")
    if resumable:
        words.add_argument(
            "--minutes",
            type=float,
            help="start nothing later than this; what the file of --json has from the same commit, versions "
            "and device is not measured again, so that the same command goes on where it stopped",
        )
    return words


def arguments(description: str | None) -> argparse.Namespace:
    """Parse a command line of `--quick` and `--json PATH`."""
    return parser(description).parse_args()


class Benchmark:
    """One run of a benchmark: its figures, the rivals that failed, and those for which there was no time.

    The record is written after every addition, so that a benchmark that is killed leaves what it had.

    Args:
        name: name of the benchmark in the record.
        path: file of the record; None writes nothing.
        quick: start nothing after `QUICK_S` seconds.
        minutes: start nothing later than this, and begin with the figures of an earlier run that `path` has;
            None: no limit, and a new record.
    """

    def __init__(
        self, name: str, path: Path | None, quick: bool = False, minutes: float | None = None
    ) -> None:
        self._name, self._path = name, path
        limit = float("inf") if minutes is None else 60 * minutes
        self._end = time.perf_counter() + min(limit, QUICK_S if quick else limit)
        before = {} if minutes is None else _earlier_record(name, path)
        self._before: dict[str, Any] = before.get("figures", {})
        self.figures = dict(self._before)
        self.failures: dict[str, str] = before.get("failures", {})
        self.left_out: list[str] = before.get("left_out", [])

    def earlier(self, *keys: str) -> Any:
        """Figures of an earlier run that are whole; None: they are not there, or something was left out.

        Args:
            keys: of the figures. What was left out or failed has them, separated by commas, at the beginning
                of its name.
        """
        found: Any = self._before
        if any(_begins(name, keys) for name in self.left_out):
            self.forget(*keys)
            found = None
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def forget(self, *keys: str) -> None:
        """Forget what an earlier run left out or saw fail, of these keys: it is attempted again."""
        self.left_out = [name for name in self.left_out if not _begins(name, keys)]
        self.failures = {name: why for name, why in self.failures.items() if not _begins(name, keys)}

    def attempt(self, rival: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The result of a rival; None, with a record, if it fails or there is no time."""
        if time.perf_counter() > self._end:
            if rival not in self.left_out:
                self.left_out.append(rival)
            return None
        self.left_out = [name for name in self.left_out if name != rival]
        self.failures.pop(rival, None)  # of an earlier run
        try:
            return work(*args, **kwargs)
        except Exception as error:  # any error of any library: the other rivals keep their figures
            self.failed(rival, error)
            return None

    def failed(self, rival: str, error: Exception) -> None:
        """Record why a rival has no figures."""
        lines = str(error).strip().splitlines() or [""]
        first, last = lines[0], lines[-1]
        why = first if first == last else f"{first} ... {last}"
        self.failures[rival] = f"{type(error).__name__}: {why}"[:400]
        print(f"{rival} fails: {self.failures[rival]}", flush=True)

    def add(self, **figures: Any) -> None:
        """Add figures to the record and write it."""
        self.figures |= figures
        self.write()

    def write(self) -> None:
        """Write the record."""
        record(self._name, self.figures, self._path, self.failures, self.left_out)

    def end(self) -> NoReturn:
        """Write the record and end the process: status 1 where a rival failed."""
        self.write()
        if self.left_out:
            print(f"no time for: {', '.join(self.left_out)}")
        for rival, why in self.failures.items():
            print(f"failed: {rival}: {why}")
        sys.exit(1 if self.failures else 0)


def on_host_clock(work: Callable[[], object]) -> Callable[[], float]:
    """A rival that returns the seconds of a call, including the wait for a GPU."""

    def measure() -> float:
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return measure


def in_turn(
    rivals: Mapping[str, Callable[[], object]], repeat: int, benchmark: Benchmark | None = None
) -> Times:
    """Seconds of each rival, called one after the other `repeat` times after one round of warm-up.

    Taking turns lets a change of the machine's speed fall on all: ratios hold where single times do not.
    """
    return rounds({name: on_host_clock(work) for name, work in rivals.items()}, repeat, benchmark)


def rounds(
    rivals: Mapping[str, Callable[[], float]], repeat: int, benchmark: Benchmark | None = None
) -> Times:
    """Like `in_turn`, for rivals that return their own seconds, for instance those of another process.

    Args:
        rivals: by name.
        repeat: rounds after the one that warms up.
        benchmark: notes a rival that fails, and the others go on; without it the failure is raised.

    Returns:
        Seconds by rival and round. A rival that failed is not there; when the time of the benchmark is over,
        the last rounds are missing.
    """
    times: Times = {name: [] for name in rivals}
    for round_ in range(repeat + 1):
        for name in list(times):
            seconds = benchmark.attempt(name, rivals[name]) if benchmark else rivals[name]()
            if seconds is None and benchmark and name in benchmark.failures:
                del times[name]
            elif seconds is not None and round_:
                times[name].append(seconds)
    return {name: values for name, values in times.items() if values}


def ratio(times: Mapping[str, Sequence[float]], over: str, under: str) -> dict[str, float] | None:
    """Spread, over the rounds, of the ratio of two rivals' values; None if one of them has none."""
    if over not in times or under not in times:
        return None
    return spread([a / b for a, b in zip(times[over], times[under], strict=False)])


def middle(found: Mapping[str, float] | None) -> float | None:
    """The median of a spread, if there is one."""
    return None if found is None else found["median"]


def spread(values: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile, and number."""
    low, median, high = np.percentile(values, [20, 50, 80])
    return {"median": float(median), "p20": float(low), "p80": float(high), "n": len(values)}


def record(
    name: str,
    figures: Mapping[str, object],
    path: Path | None,
    failures: Mapping[str, str] | None = None,
    left_out: Sequence[str] = (),
) -> None:
    """Write the figures with device, versions and commit; without a path, nothing is written."""
    if path is None:
        return
    tree = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d"),
        "commit": COMMIT,
        **machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions(),
        "command": " ".join(["python -m", _module(), *sys.argv[1:]]),
        "failures": dict(failures or {}),
        "left_out": list(left_out),
        "figures": figures,
    }
    write_text(path, json.dumps(tree, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Device, processor with its vector and matrix units, and variables that hide some of them from torch."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    model = _cpuinfo("model name") or platform.processor() or platform.machine()
    return {
        "device": gpu or f"{os.cpu_count()} cores of {model}",
        "processor": model,
        "cores": os.cpu_count(),
        "cpu_flags": sorted({w for w in _cpuinfo("flags").split() if w.startswith(("avx", "amx"))}),
        "cpu_capability_of_torch": torch.backends.cpu.get_cpu_capability(),
        "hidden": {name: os.environ[name] for name in _MASKS if name in os.environ},
    }


def _begins(name: str, keys: Sequence[str]) -> bool:
    line = ", ".join(keys)
    return name == line or name.startswith(f"{line}, ")


def _earlier_record(name: str, path: Path | None) -> dict[str, Any]:
    """The record of an earlier run whose figures stand beside those of this one; empty: there is none."""
    if path is None or not path.exists():
        return {}
    tree: dict[str, Any] = json.loads(path.read_text())
    ours = {"benchmark": name, "commit": COMMIT, "device": machine()["device"], "versions": versions()}
    a, b = _circumstances({**ours, "command": " ".join(sys.argv)}), _circumstances(tree)
    other = [key for key in a if a[key] != b[key]]
    if other:
        print(f"{path}: of another {' and '.join(other)}: all is measured anew", flush=True)
    return {} if other else tree


def _circumstances(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal for the figures of two records to stand side by side."""
    found = {key: tree.get(key) for key in ("benchmark", "commit", "device", "versions")}
    # A record that is committed makes the tree differ from its commit as soon as it is written again.
    found["commit"] = str(found["commit"]).removesuffix("-dirty")
    return {**found, "size (--quick)": "--quick" in str(tree.get("command")).split()}


def versions() -> dict[str, str | None]:
    """Versions of the packages that decide speed, and of CUDA; None: not there."""
    packages = ("torch", "numpy", "h5py", "triton")
    return {**{package: _version(package) for package in packages}, "cuda": torch.version.cuda}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None  # triton on a Mac


def _cpuinfo(key: str) -> str:
    """A line of /proc/cpuinfo; empty where there is none, as on a Mac."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(": ")[2] for line in lines if line.split("\t")[0] == key), "")


def _module() -> str:
    """The module that `python -m` runs, such as benchmarks.launch.rehearsal."""
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else f"benchmarks.{Path(sys.argv[0]).stem}"
