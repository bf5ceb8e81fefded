"""Seconds from the start of a run's process to its first step, with cold and with warm compiled code.

A run is `hpcphotoz train` in one process. It is started twice with a new folder for the code that Triton and
Inductor compile: the first finds it empty (cold), the second finds what the first has put there (warm). What
compiling adds to a start is the difference of a compiled run and one that is not.
"""

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Benchmark, spread
from benchmarks.training import train_runs
from benchmarks.training.train_runs import RunPlan
from hpcphotoz.config.load import to_toml

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OBJECTS = 256
POLL_S = 0.02
CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
Pair = dict[str, float]  # "cold" and "warm", seconds


def add_starts(networks: Sequence[str], batch: int, repeat: int, benchmark: Benchmark) -> None:
    """Add and print, by network, the figures of `starts`."""
    for network in networks:
        found = starts(network, batch, repeat, benchmark)
        if found:
            show(network, found)


def starts(network: str, batch: int, repeat: int, benchmark: Benchmark) -> dict[str, Any] | None:
    """Figures of a network's starts, of which those of an earlier run are not repeated; None: there are none.

    Args:
        network: by name.
        batch: objects a step, at most `OBJECTS`.
        repeat: rounds.
        benchmark: keeps the figures as they come.

    Returns:
        first_step_s, by "off" and "on" (`compute.compiled`; "on" on a GPU alone), each "cold" and "warm";
        compile_s, by the same two, where both were measured; seconds of every round.
    """
    before = benchmark.figures.get("start", {}).get(network, {}).get("seconds", {})
    kinds = ("off", "on") if DEVICE.type == "cuda" else ("off",)
    pairs: dict[str, list[Pair]] = {compiled: list(before.get(compiled, [])) for compiled in kinds}
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-start-") as folder:
        data = Path(folder, "data")
        train_runs.write_dataset(data, OBJECTS)
        plan = RunPlan(network, data, ranks=0, batch=batch, log_steps=1, lines=1, workers=1)
        for number in range(repeat):
            for compiled, found in pairs.items():
                if len(found) > number:
                    continue
                pair = benchmark.attempt(f"start, {network}, {compiled}", cold_and_warm, plan, compiled)
                if pair is not None:
                    found.append(pair)
                    others = benchmark.figures.get("start", {})
                    benchmark.add(start={**others, network: summary(pairs)})
    return summary(pairs) if pairs["off"] else None


def cold_and_warm(plan: RunPlan, compiled: str) -> Pair:
    """Seconds of two starts with one folder for compiled code, which is empty at first."""
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-caches-") as folder:
        caches = {name: str(Path(folder, kind)) for name, kind in CACHES.items()}
        return {name: first_step(plan, compiled, caches) for name in ("cold", "warm")}


def first_step(plan: RunPlan, compiled: str, environment: Mapping[str, str]) -> float:
    """Seconds from the start of a process until its first step is in metrics.jsonl; then it is stopped.

    Raises:
        RuntimeError: it fails, or ends before.
    """
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-run-") as folder:
        file, out = Path(folder, "config.toml"), Path(folder, "run")
        file.write_text(to_toml(plan.config(compiled=compiled)))
        words: list[str | Path] = ["-m", "hpcphotoz", "train", file, "--data", plan.data, "--out", out]
        metrics, reached = out / "metrics.jsonl", list[float]()

        def enough() -> bool:
            if metrics.exists() and "\n" in metrics.read_text():
                reached.append(time.perf_counter())
            return bool(reached)

        name, begin = f"hpcphotoz train, {plan.network}, compiled {compiled}", time.perf_counter()
        given = Path(sys.executable), plan.ranks, words, environment
        train_runs.launch(name, *given, enough=enough, poll_s=POLL_S)
        if not reached:
            raise RuntimeError(f"{name}: ended before a line of metrics was seen")
        return reached[0] - begin


def summary(pairs: Mapping[str, Sequence[Pair]]) -> dict[str, Any]:
    """The figures of `starts`."""
    kinds, both = ("cold", "warm"), list(zip(pairs["off"], pairs.get("on", ()), strict=False))
    first = {
        compiled: {kind: spread([pair[kind] for pair in found]) for kind in kinds}
        for compiled, found in pairs.items()
        if found
    }
    added = {kind: spread([on[kind] - off[kind] for off, on in both]) for kind in kinds} if both else None
    return {"first_step_s": first, "compile_s": added, "seconds": {k: list(v) for k, v in pairs.items()}}


def show(network: str, found: Mapping[str, Any]) -> None:
    """Print a line for each way to start."""
    for compiled, kinds in found["first_step_s"].items():
        seconds = ", ".join(f"{kind} {one['median']:.1f} s" for kind, one in kinds.items())
        print(f"{network:10s} first step, compiled {compiled}: {seconds}")
    if found["compile_s"]:
        seconds = ", ".join(f"{kind} {one['median']:.1f} s" for kind, one in found["compile_s"].items())
        print(f"{network:10s} compiling adds {seconds}", flush=True)
