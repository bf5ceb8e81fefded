"""Streaming shuffled batches: ours, DataLoaders, libraries that load data, and reading by itself.

python -m benchmarks.bench_stream [--quick] [--json PATH]

8192 stamps of 64x64x5 float32 as batches of 256 with labels, in one run, the readers taking turns: `warm`,
all in the page cache, and `cold`, each reader's files dropped from it before each pass (Linux; checked by
mincore). Run `make peers` first for the libraries. Peers have 0 and 2 workers (or threads); ours has 2
reading threads, and 1 as `ours_1_thread`.

Ours: `ours_default_split` streams the training part of the default split, its rate is of the objects that
come; `ours_many_shards` reads 128 shards, of which 64 stay open; `ours_verify_always` compares every image
with its checksum; `ours_new_stream` is a new `Stream` for each pass: it opens the shards, touches its memory
for the first time, and compares checksums. `ours_float16` and `ours_int16` deliver the stored numbers, half
the bytes.

DataLoaders: `h5py_dataloader_plain` takes every value as `file[name][row]`, as most published scripts do;
`h5py_dataloader` keeps dataset handles and labels in memory. The others read a batch into one array
(`__getitems__`): by `read_direct`, by h5py's low-level interface, from a memory map with one fancy index
(`memmap_dataloader`), and the same by `torch.index_select`, which copies with all threads.

Libraries (`benchmarks/peers/loaders/`, where each says how its shuffle differs): mosaicml-streaming, litdata,
grain, zarr with zarrs.

`preadv_N` reads blocks with N threads, each into one buffer that stays in the processor's cache: what no
loader can do that hands batches over. `preadv_into_batches_N` reads into as much memory as our batches take.

Then many more shards than stay open: openings a batch, and a resume in the middle
(`benchmarks.streaming.stream_survey`); and peak memory.
"""

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, arguments, rounds
from benchmarks.streaming.dataloaders import BATCH_BY_BATCH, ROW_BY_ROW, MappedRows, Rows, dataloader
from benchmarks.streaming.page_cache import cold
from benchmarks.streaming.stream_data import BANDS, STAMP, make_stamps, write, write_datasets
from benchmarks.streaming.stream_readers import (
    BATCH,
    PEERS_PYTHON,
    ROOT,
    LoaderPeer,
    Reader,
    first_pass_of_process,
    ours,
    preadv,
)
from benchmarks.streaming.stream_summary import LIBRARIES, WORKERS, show, summarise
from benchmarks.streaming.stream_survey import link_shards, measure
from benchmarks.streaming.stream_survey import show as show_survey
from hpcphotoz.config import Data
from hpcphotoz.config.load import configure

SURVEY_SHARDS, SURVEY_ROWS = 12208, 8192  # 1e8 objects
# The readers of a quick run: all others would take the minute for their first passes.
QUICK = {
    *("ours", "ours_1_thread", "ours_int16", "ours_default_split"),
    *(f"preadv{kind}_{threads}" for kind in ("", "_into_batches") for threads in (1, 2)),
    *("read_direct_dataloader_0", "h5py_low_level_dataloader_0", "memmap_dataloader_0"),
    *(f"{library}_2" for library in LIBRARIES),
}


def main() -> None:
    """Measure and print tables."""
    options = arguments(__doc__)
    rows, repeat, cold_repeat = (1024, 2, 1) if options.quick else (8192, 5, 3)
    threads = Data().read_threads
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-stream-") as name, ExitStack() as open_peers:
        folder = Path(name)
        print(f"writing {rows} stamps of {STAMP}x{STAMP}x{len(BANDS)} in {folder}", flush=True)
        write_datasets(folder, rows, options.quick)
        benchmark = Benchmark("stream", options.json, options.quick)
        benchmark.add(rows=rows, stamp=[len(BANDS), STAMP, STAMP], batch=BATCH, options=Data().model_dump())
        peers = start_peers(folder, benchmark, open_peers)
        benchmark.add(peer_versions={name: peer.version for name, peer in peers.items()})
        wanted = QUICK if options.quick else None
        warm = summarise(rounds(chosen(readers(folder, peers), wanted), repeat, benchmark), rows, threads)
        show("page cache warm", warm)
        benchmark.add(warm=warm)
        if sys.platform.startswith("linux"):
            open_peers.close()  # they map files, as the DataLoaders do that are collected here
            gc.collect()
            empty = chosen(cold_readers(folder, list(peers)), wanted)
            found = summarise(rounds(empty, cold_repeat, benchmark), rows, threads)
            show("page cache cold", found)
            benchmark.add(cold=found)
        survey = link_shards(folder / "float32", folder / "survey", 256 if options.quick else 1024)
        many = benchmark.attempt("many_shards", measure, survey, batches=80 if options.quick else 400)
        if many:
            show_survey(many)
            benchmark.add(many_shards=many)
    benchmark.add(**benchmark.attempt("memory", memory, batches=40 if options.quick else 200) or {})
    benchmark.end()


def start_peers(folder: Path, benchmark: Benchmark, open_peers: ExitStack) -> dict[str, LoaderPeer]:
    """The libraries that are installed, each with the stamps in its own format; closed with the stack."""
    if not PEERS_PYTHON.exists():
        print("libraries: not installed (make peers): they have no figures")
        return {}
    found = {}
    for library in LIBRARIES:
        peer = benchmark.attempt(library, LoaderPeer, library, folder / "float32", folder / library)
        if peer:
            open_peers.callback(peer.close)
            found[library] = peer
    return found


def readers(folder: Path, peers: dict[str, LoaderPeer]) -> dict[str, Reader]:
    """All readers by name, of the datasets that are there."""
    data = Data()
    forms = [f for f in ("many_shards", "float16", "int16", "gzip") if (folder / f).exists()]
    first = configure("benchmark", verify="first").data
    always = configure("benchmark", verify="always").data
    found: dict[str, Reader] = {
        "ours": ours(folder / "float32", data),
        "ours_1_thread": ours(folder / "float32", one_thread()),
        "ours_new_stream": ours(folder / "float32", first, fresh=True),
        "ours_verify_always": ours(folder / "float32", always),
        "ours_default_split": ours(folder / "float32", data, part="train"),
        **{f"ours_{form}": ours(folder / form, data) for form in forms},
        **raw(folder, data),
    }
    for workers in WORKERS:
        for name, kind in (ROW_BY_ROW | BATCH_BY_BATCH).items():
            found[f"{name}_{workers}"] = dataloader(folder / "float32", workers, kind)
        found[f"memmap_dataloader_int16_{workers}"] = dataloader(folder / "int16", workers, MappedRows)
        if "gzip" in forms:
            found[f"h5py_dataloader_gzip_{workers}"] = dataloader(folder / "gzip", workers, Rows)
        for name, peer in peers.items():
            found[f"{name}_{workers}"] = peer.reader(workers)
    return found


def cold_readers(folder: Path, libraries: Sequence[str]) -> dict[str, Reader]:
    """Those that are timed with nothing in the page cache; what maps files opens them for each pass."""
    plain = folder / "float32"
    found = {
        "ours": cold(ours(plain, Data()), plain),
        "ours_1_thread": cold(ours(plain, one_thread()), plain),
        "ours_int16": cold(ours(folder / "int16", Data()), folder / "int16"),
        **{name: cold(reader, plain) for name, reader in raw(folder, Data()).items()},
    }
    if (many := folder / "many_shards").exists():
        found["ours_many_shards"] = cold(ours(many, Data()), many)
    for workers in WORKERS:
        for name, kind in BATCH_BY_BATCH.items():
            found[f"{name}_{workers}"] = cold(dataloader(plain, workers, kind, fresh=True), plain)
        for name in libraries:
            place = plain if name == "grain" else folder / name
            read = first_pass_of_process(name, plain, folder / name, workers)
            found[f"{name}_{workers}"] = cold(read, place)
    return found


def chosen(found: dict[str, Reader], names: set[str] | None) -> dict[str, Reader]:
    """The readers of these names; None: all."""
    return {name: reader for name, reader in found.items() if names is None or name in names}


def one_thread() -> Data:
    """The default options with one reading thread."""
    return configure("benchmark", read_threads=1).data


def raw(folder: Path, data: Data) -> dict[str, Reader]:
    """`preadv` into one buffer a thread, and into the memory of our windows."""
    counts, found = sorted({1, data.read_threads}), {}
    blocks = (data.windows_ahead + 1) * data.window_blocks
    for threads in counts:
        found[f"preadv_{threads}"] = preadv(folder / "float32", data.block_rows, threads)
        into = preadv(folder / "float32", data.block_rows, threads, blocks // threads)
        found[f"preadv_into_batches_{threads}"] = into
    return found


def memory(batches: int) -> dict[str, Any]:
    """Peak memory of streaming 1e4 objects and 1e8, each in a process of its own.

    The 1e8 are 12,208 hard links to one shard of small stamps, under a manifest that names them all.
    """
    if not sys.platform.startswith("linux"):
        print("peak memory is read from /proc: null here")
        return {"memory": None, "memory_ratio_1e8": None}
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-memory-") as name:
        small, survey = Path(name) / "small", Path(name) / "survey"
        write(small, make_stamps(10_000, 8), SURVEY_ROWS)
        link_shards(small, survey, SURVEY_SHARDS)
        found = {key: _peak(data, batches) for key, data in (("1e4", small), ("1e8", survey))}
    ratio = found["1e8"]["peak_mib"] / found["1e4"]["peak_mib"]
    for key, figures in found.items():
        print(
            f"{key} objects, {batches} batches: peak {figures['peak_mib']:.0f} MiB, "
            f"{figures['peak_mib'] - figures['imports_mib']:.0f} of them after the imports"
        )
    print(f"{'memory_ratio_1e8':28s} {ratio:6.3f}")
    return {"memory": {**found, "batches": batches}, "memory_ratio_1e8": ratio}


def _peak(data: Path, batches: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.streaming.stream_memory", str(data), str(batches)]
    found: dict[str, float] = json.loads(
        subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    )
    return found


if __name__ == "__main__":
    main()
