"""The estimator stage in RAIL: a dataset read chunk by chunk, against the same file read whole by RAIL.

python -m benchmarks.bench_rail [--quick] [--json PATH]

Stamps of 64x64x5 float32 in one shard, each rival in a process of its own and in turn in one run, the page
cache warm. `read_*` reads and does nothing else; `stage_*` is `HpcPhotozEstimator` with the compact network,
PDFs written. `chunks`: our handle on the dataset, checksums compared; `shard`: RAIL's own iterator on the
shard; `whole`: RAIL's `TableHandle.read` of the shard, then the table in memory. Seconds and MiB are those
beyond the imports. Needs `pip install 'hpcphotoz[rail]'`.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hpcphotoz
from benchmarks.harness import Benchmark, arguments, middle, ratio, rounds, spread
from benchmarks.streaming.stream_data import make_stamps, write
from benchmarks.streaming.stream_memory import peak_mib

ROOT = Path(__file__).parent.parent
CHUNK = 256  # stamps
RIVALS = ("read_chunks", "read_shard", "read_whole", "stage_chunks", "stage_shard", "stage_whole")


def main() -> None:
    """Measure and print a table."""
    options = arguments(__doc__)
    rows, repeat = (256, 1) if options.quick else (2048, 3)
    rivals = [name for name in RIVALS if not (options.quick and name.endswith("shard"))]
    benchmark = Benchmark("rail", options.json, options.quick)
    if importlib.util.find_spec("ceci") is None:
        sys.exit("no RAIL: pip install 'hpcphotoz[rail]'")
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-rail-") as name:
        folder = Path(name)
        prepare(folder, rows)
        memory: dict[str, list[float]] = {}
        times = rounds({name: _measure(name, folder, memory) for name in rivals}, repeat, benchmark)
    mib = stamps_mib(rows)
    benchmark.add(stamps=rows, stamps_mib=mib, chunk=CHUNK, cores=os.cpu_count())
    print(f"{rows} stamps, {mib:.0f} MiB, in chunks of {CHUNK}")
    print(f"{'rival':14s} {'s':>7s} {'stamps/s':>9s} {'MiB':>7s} {'time over whole':>15s}")
    for name, seconds in times.items():
        took, peak = spread(seconds), spread(memory[name][-len(seconds) :])
        over = ratio(times, name, f"{name.partition('_')[0]}_whole")
        benchmark.add(**{name: {"s": took, "mib": peak, "time_over_whole": over}})
        typical, whole = took["median"], middle(over)
        print(
            f"{name:14s} {typical:7.2f} {rows / typical:9.0f} {peak['median']:7.0f} "
            f"{'' if whole is None else f'{whole:15.2f}'}"
        )
    benchmark.end()


def prepare(folder: Path, rows: int) -> None:
    """A dataset of one shard, the shard under a name that RAIL reads, and a network of one step."""
    write(folder / "d", make_stamps(rows, 64), rows)
    (shard,) = folder.glob("d/shard-*5")
    os.link(shard, folder / "shard.hdf5")
    hpcphotoz.train("standard", folder / "d", folder / "run", device="cpu", max_steps=1, precision="fp32")


def stamps_mib(rows: int) -> float:
    """Bytes of the images, MiB."""
    return rows * 5 * 64 * 64 * 4 / 2**20


def child(rival: str, folder: str) -> None:
    """Do what a rival does, in `folder`; print seconds and MiB beyond the imports as the last line."""
    from rail.core.data import TableHandle

    from rail.hpcphotoz import HpcPhotozEstimator, ImageHandle

    os.chdir(folder)
    imports, start = peak_mib(), time.perf_counter()
    what, _, how = rival.partition("_")
    given: Any = ImageHandle("input", path="d" if how == "chunks" else "shard.hdf5")
    if how == "whole":
        given = TableHandle("input", path="shard.hdf5").read()
    elif what == "read":
        for _, _, chunk in given.iterator(chunk_size=CHUNK, groupname=""):
            assert len(chunk["images"])
    if what == "stage":
        options = {"name": rival, "model": "run", "chunk_size": CHUNK, "device": "auto"}
        HpcPhotozEstimator.make_stage(**options).estimate(given)
    print(json.dumps([time.perf_counter() - start, peak_mib() - imports]))


def _measure(rival: str, folder: Path, memory: dict[str, list[float]]) -> Callable[[], float]:
    """A function that runs a rival in a process, notes its memory and returns its seconds."""

    def measure() -> float:
        code = f"from benchmarks.bench_rail import child; child({rival!r}, {str(folder)!r})"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        seconds, mib = json.loads(done.stdout.splitlines()[-1])
        memory.setdefault(rival, []).append(float(mib))
        return float(seconds)

    return measure


if __name__ == "__main__":
    main()
