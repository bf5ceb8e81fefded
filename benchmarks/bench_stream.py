"""Streaming shuffled batches: ours, what cosmologists write, mosaicml-streaming, and the disk cache itself.

python -m benchmarks.bench_stream [--quick] [--json PATH]

8192 stamps of 64x64x5 float32 as batches of 256 with labels, in one run, the readers taking turns, the page
cache warm. Run `make peers` first for mosaicml-streaming; without it its figures are null. `ours_float16` and
`ours_int16` deliver the stored numbers, half the bytes, as training takes them; all others float32.
`h5py_dataloader_plain` takes every value as `file[name][row]`, as most published scripts do;
`h5py_dataloader` keeps dataset handles and labels in memory; `h5py_dataloader_batched` also reads each batch
into one array (`__getitems__`), and `memmap_dataloader` the same from a memory map of uncompressed shards.
`ours_first_epoch` is a new stream each time: checksums, and memory not yet touched, both of which weigh
heavily in so short an epoch; `ours_verify_always` has the checksums alone. `ours_default_split` streams the
training part of the default split; its rate is of the objects that come. Then more shards than stay open:
openings a batch, and a resume in the middle (`benchmarks.streaming.stream_survey`).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.harness import Times, arguments, record, rounds, spread
from benchmarks.streaming.stream_readers import (
    PEERS_PYTHON,
    ROOT,
    BatchedRows,
    MappedRows,
    Mds,
    PlainRows,
    Reader,
    batched_dataloader,
    h5py_dataloader,
    ours,
    preadv,
)
from benchmarks.streaming.stream_survey import link_shards, measure
from benchmarks.streaming.stream_survey import show as show_survey
from hpcphotoz.config import Data
from hpcphotoz.config.load import configure
from hpcphotoz.data.format.index import index_folder
from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.format.stamps import COLUMNS, Stamps
from hpcphotoz.data.format.writer import DatasetWriter

BANDS, STAMP = "ugriz", 64
SKY = np.array([0.05, 0.02, 0.03, 0.04, 0.2], np.float32)  # nMgy a pixel, SDSS
WORKERS = (0, 2)
SURVEY_SHARDS, SURVEY_ROWS = 12208, 8192  # 1e8 objects
PEER_READERS = (
    "h5py_dataloader",
    "h5py_dataloader_plain",
    "h5py_dataloader_batched",
    "memmap_dataloader",
    "h5py_dataloader_gzip",
    "mosaicml_streaming",
)


def main() -> None:
    """Measure and print a table."""
    options = arguments(__doc__)
    rows, repeat = (2048, 3) if options.quick else (8192, 5)
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-stream-") as name:
        folder = Path(name)
        print(f"writing {rows} stamps of {STAMP}x{STAMP}x{len(BANDS)} in {folder}", flush=True)
        write_datasets(folder, rows, shard_rows=rows // 4)
        peer = start_peer(folder)
        try:
            times = rounds(readers(folder, peer), repeat)
        finally:
            if peer:
                peer.close()
        survey = measure(
            link_shards(folder / "float32", folder / "survey", 256 if options.quick else 1024),
            batches=80 if options.quick else 400,
        )
    figures = summary(times, rows)
    figures["many_shards"] = survey
    figures["peer_version"] = peer.version if peer else None
    show(figures)
    show_survey(survey)
    figures.update(memory(batches=40 if options.quick else 200))
    record("stream", figures, options.json)


def write_datasets(folder: Path, rows: int, shard_rows: int) -> None:
    """The same stamps as float32, float16, int16, and float32 in gzip-4 chunks of one row."""
    stamps = make_stamps(rows, STAMP)
    for storage in ("float32", "float16", "int16"):
        write(folder / storage, stamps, shard_rows, storage)
    compress(folder / "float32", folder / "gzip")


def make_stamps(rows: int, stamp: int) -> Stamps:
    """Blobs of many sizes and fluxes on sky noise of SDSS's size."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:stamp, :stamp].astype(np.float32) - (stamp - 1) / 2
    images = rng.standard_normal((rows, len(BANDS), stamp, stamp), np.float32)
    images *= SKY[:, None, None]
    z = rng.uniform(0.02, 0.38, rows).astype(np.float32)
    for image, redshift, radius in zip(images, z, rng.uniform(2, 6, rows), strict=True):
        colour = (0.5 + redshift) ** np.arange(len(BANDS), dtype=np.float32)
        image += colour[:, None, None] * np.exp(-(x**2 + y**2) / np.float32(2 * radius**2))
    return Stamps(
        images=images,
        z_spec=z,
        ebv=rng.uniform(0.01, 0.1, rows).astype(np.float32),
        object_id=np.arange(rows) * 7919,
        sky_sigma=np.broadcast_to(SKY, (rows, len(BANDS))).copy(),
        ra=rng.uniform(0, 360, rows),
        dec=rng.uniform(-1, 1, rows),
    )


def write(out: Path, stamps: Stamps, shard_rows: int, storage: str = "float32") -> None:
    """Write a dataset with this package."""
    header = Header(tuple(BANDS), stamps.images.shape[-1], 0.396, storage)
    with DatasetWriter(out, header, shard_rows, {"made": "for a benchmark"}) as writer:
        writer.append(stamps)


def compress(source: Path, out: Path) -> None:
    """Rewrite shards like h5py users, with images in gzip-4 + shuffle chunks of one row, and index them."""
    out.mkdir()
    for path in sorted(source.glob("*.hdf5")):
        with h5py.File(path, locking=False) as old, h5py.File(out / path.name, "w") as new:
            new.attrs.update(old.attrs)
            for name in COLUMNS:
                data = old[name][...]
                how = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
                kind = {"chunks": (1, *data.shape[1:]), **how} if name == "images" else {}
                new.create_dataset(name, data=data, **kind)
    index_folder(out)


def start_peer(folder: Path) -> Mds | None:
    """mosaicml-streaming with the stamps written as MDS, or None where it is not installed."""
    if not PEERS_PYTHON.exists():
        print("mosaicml-streaming: not installed (make peers); its figures are null")
        return None
    return Mds(folder / "float32", folder / "mds")


def readers(folder: Path, peer: Mds | None) -> dict[str, Reader]:
    """All readers by name."""
    data = Data()
    found: dict[str, Reader] = {"ours": ours(folder / "float32", data)}
    first = configure("benchmark", verify="first").data
    always = configure("benchmark", verify="always").data
    found["ours_first_epoch"] = ours(folder / "float32", first, fresh=True)
    found["ours_verify_always"] = ours(folder / "float32", always)
    found["ours_default_split"] = ours(folder / "float32", data, part="train")
    for storage in ("float16", "int16", "gzip"):
        found[f"ours_{storage}"] = ours(folder / storage, data)
    for workers in WORKERS:
        found[f"h5py_dataloader_{workers}"] = h5py_dataloader(folder / "float32", workers)
        found[f"h5py_dataloader_plain_{workers}"] = h5py_dataloader(folder / "float32", workers, PlainRows)
        found[f"h5py_dataloader_batched_{workers}"] = batched_dataloader(
            folder / "float32", workers, BatchedRows
        )
        found[f"memmap_dataloader_{workers}"] = batched_dataloader(folder / "float32", workers, MappedRows)
        found[f"h5py_dataloader_gzip_{workers}"] = h5py_dataloader(folder / "gzip", workers)
        if peer:
            found[f"mosaicml_streaming_{workers}"] = peer.reader(workers)
    for threads in sorted({1, data.read_threads}):
        found[f"preadv_{threads}"] = preadv(folder / "float32", data.block_rows, threads)
    return found


def summary(times: Times, rows: int) -> dict[str, Any]:
    """Images a second of each reader, and the ratios of the medians."""
    rates = {name: [rows / t for t in seconds] for name, seconds in times.items()}
    best: dict[str, str | None] = {}
    for peer in PEER_READERS:
        names = [f"{peer}_{workers}" for workers in WORKERS if f"{peer}_{workers}" in rates]
        best[peer] = max(names, key=lambda name: np.median(rates[name])) if names else None
    threads = Data().read_threads
    pairs = {
        "ratio_h5py_dataloader": ("ours", best["h5py_dataloader"]),
        "ratio_h5py_dataloader_plain": ("ours", best["h5py_dataloader_plain"]),
        "ratio_h5py_dataloader_batched": ("ours", best["h5py_dataloader_batched"]),
        "ratio_memmap_dataloader": ("ours", best["memmap_dataloader"]),
        "ratio_mds": ("ours", best["mosaicml_streaming"]),
        "ratio_gzip": ("ours_gzip", best["h5py_dataloader_gzip"]),
        "fraction_of_preadv": ("ours", f"preadv_{threads}"),
        "fraction_of_preadv_1_thread": ("ours", "preadv_1"),
        "fraction_first_epoch": ("ours_first_epoch", "ours"),
        "fraction_verify_always": ("ours_verify_always", "ours"),
        "fraction_default_split": ("ours_default_split", "ours"),
    }
    ratios: dict[str, float | None] = dict.fromkeys(pairs)
    per_round: dict[str, dict[str, float] | None] = dict.fromkeys(pairs)
    for name, (over, under) in pairs.items():
        if over and under:
            ratios[name] = float(np.median(rates[over]) / np.median(rates[under]))
            per_round[name] = spread([a / b for a, b in zip(rates[over], rates[under], strict=True)])
    shown: dict[str, Any] = {name: spread(values) for name, values in rates.items()}
    for peer, chosen in best.items():
        workers = int(chosen.rsplit("_", 1)[1]) if chosen else None
        shown[peer] = {**spread(rates[chosen]), "workers": workers} if chosen else None
    return {
        "rows": rows,
        "stamp": [len(BANDS), STAMP, STAMP],
        "batch": 256,
        "options": Data().model_dump(),
        "images_per_s": shown,
        **ratios,
        "ratio_per_round": per_round,
    }


def show(figures: dict[str, Any]) -> None:
    """A table on the terminal."""
    rates = figures["images_per_s"]
    print(f"{'reader':28s} {'images/s':>9s} {'p20':>9s} {'p80':>9s} {'ours / it':>9s}")
    for name, rate in rates.items():
        if rate is None:
            print(f"{name:28s} {'null':>9s}")
        elif name not in PEER_READERS:
            ratio = rates["ours"]["median"] / rate["median"]
            print(f"{name:28s} {rate['median']:9.0f} {rate['p20']:9.0f} {rate['p80']:9.0f} {ratio:9.2f}")
    for name, each in figures["ratio_per_round"].items():
        if each is not None:
            print(f"{name:30s} {figures[name]:6.2f}   by round {each['p20']:.2f} to {each['p80']:.2f}")


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
