"""Ingest of arrays, published sets and SDSS frames on 1, 2 and 4 MPI ranks, which take turns in one run.

python -m benchmarks.bench_ingest [--quick] [--json PATH]

Stamps a second of the whole ingest: read, noise measured, checked, checksummed, written as float32 and
flushed to the disk, without the interpreter's start. `arrays`: a foreign HDF5 of big-endian 64x64x5,
contiguous, by a map, with four times the stamps of the others, for shards of 84 MB;
also as the command comes, a process a core whose start counts, without MPI;
`h5py copy`: the same bytes read and written by h5py alone, and flushed. `pasquet`: an npz of 64x64x5 float32;
`hayat`: HDF5 of 107x107x5 in gzip chunks, cropped to 64; `frames`: stamps cut out of the fpC frames that
HPCPHOTOZ_DATA (or ../shared/data) holds. With the peak memory of one rank, of its interpreter alone, and the
largest shard. Needs mpiexec and mpi4py (`pip install mpich mpi4py`). The page
cache is warm.
"""

import csv
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.harness import Benchmark, arguments, ratio, rounds, spread
from hpcphotoz.data.format.manifest import Manifest

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("HPCPHOTOZ_DATA", ROOT.parent / "shared" / "data")) / "sdss-stripe82"
RANKS = (1, 2, 4)
UNITS = 8  # shards, so that four ranks have equal shares
COPY_ROWS = 256  # read and written at a time: 20 MB
ARRAYS_ROWS = 4  # times the rows of the other sources
MAP = {
    "images": "pix",
    "bands": ["u", "g", "r", "i", "z"],
    "pixel_scale": 0.396,
    "object_id": "name",
    "z_spec": "zs",
}
STORAGE = "float32"  # as the copy by h5py
COPIES = 8  # positions about each object of the frames' table


def main() -> None:
    """Measure and print a table."""
    options = arguments(__doc__)
    rows, repeat = (512, 1) if options.quick else (2048, 5)
    benchmark = Benchmark("ingest", options.json, options.quick)
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        sys.exit("no mpiexec: pip install mpich mpi4py")
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-ingest-") as name:
        folder = Path(name)
        kinds = write_sources(folder, rows)[: 1 if options.quick else None]
        counts: dict[str, int] = {}
        memory: dict[str, dict[str, float]] = {}
        rivals: dict[str, Callable[[], float]] = {
            f"{kind}_{ranks}": _measure(mpiexec, kind, ranks, folder, counts, memory)
            for kind in kinds
            for ranks in (RANKS[:2] if options.quick else RANKS)
        }
        if "arrays" in kinds:
            rivals["arrays_processes"] = _measure(None, "arrays", 0, folder, counts, memory)
            rivals["h5py_copy"] = lambda: h5py_copy(folder / "arrays.h5", folder / "copy.h5")
        times = rounds(rivals, repeat, benchmark)
        counts["h5py"] = ARRAYS_ROWS * rows
    benchmark.add(cores=os.cpu_count(), shards=UNITS, stamps=counts)
    print(f"{'source':10s} {'ranks':>5s} {'stamps/s':>9s} {'over one rank':>13s}")
    rates = {name: spread([counts[name.split("_")[0]] / t for t in found]) for name, found in times.items()}
    for kind, ranks in ((kind, ranks) for kind in kinds for ranks in RANKS if f"{kind}_{ranks}" in rates):
        rate, alone = rates[f"{kind}_{ranks}"], rates.get(f"{kind}_1")
        faster = rate["median"] / alone["median"] if alone else None
        benchmark.add(**{f"{kind}_{ranks}_ranks": {"stamps_per_s": rate, "over_one_rank": faster}})
        print(f"{kind:10s} {ranks:5d} {rate['median']:9.0f} {'' if faster is None else f'{faster:13.2f}'}")
    if "arrays_processes" in rates:
        benchmark.add(arrays_processes={"stamps_per_s": rates["arrays_processes"]})
        print(f"arrays, a process a core {rates['arrays_processes']['median']:.0f}")
    benchmark.add(memory_of_one_rank_mib=memory)
    for kind, found in memory.items():
        print(f"{kind:10s} MiB: {', '.join(f'{name} {value:.0f}' for name, value in found.items())}")
    if "h5py_copy" in rates:
        benchmark.add(h5py_copy={"stamps_per_s": rates["h5py_copy"]})
        print(f"h5py copy        {rates['h5py_copy']['median']:9.0f}")
    for rival in (*map(str, RANKS), "processes"):  # round by round, since the load of the machine may change
        if share := ratio(times, "h5py_copy", f"arrays_{rival}"):
            benchmark.add(**{f"arrays_{rival}_over_h5py_copy": share})
            print(f"arrays {rival} over h5py copy: {share['median']:.2f}")
    benchmark.end()


def write_sources(folder: Path, rows: int) -> list[str]:
    """Write the files to ingest, and return the names of their kinds."""
    rng = np.random.default_rng(0)
    labels = np.zeros(rows, [(name, "f8") for name in ("z", "EBV", "ra", "dec")] + [("specObjID", "i8")])
    labels["specObjID"] = np.arange(rows)
    cube = rng.standard_normal((rows, 64, 64, 5), np.float32)
    np.savez(folder / "pasquet.npz", cube=cube, labels=labels)
    with h5py.File(folder / "arrays.h5", "w") as file:
        pixels = file.create_dataset("pix", (ARRAYS_ROWS * rows, 5, 64, 64), ">f4")
        for start in range(0, len(pixels), COPY_ROWS):
            pixels[start : start + COPY_ROWS] = rng.standard_normal((COPY_ROWS, 5, 64, 64), np.float32)
        file["name"] = np.arange(len(pixels)).astype(">i8")
        file["zs"] = np.zeros(len(pixels), ">f8")
    with h5py.File(folder / "hayat.h5", "w") as file:
        images = rng.standard_normal((rows // 2, 5, 107, 107), np.float32)
        file.create_dataset("images", data=images, chunks=(16, 5, 107, 107), compression="gzip")
        file["e_bv"] = np.zeros((rows // 2, 5), np.float32)
        file["ObjID"] = np.arange(rows // 2)
        for name in ("specz_redshift", "ra", "dec"):
            file[name] = np.zeros(rows // 2)
    if not DATA.is_dir():
        print(f"no SDSS frames at {DATA}: set HPCPHOTOZ_DATA to the folder that holds sdss-stripe82")
        return ["arrays", "pasquet", "hayat"]
    with open(DATA / "objects.csv", newline="") as table:
        places = [(float(row["ra_deg"]), float(row["dec_deg"])) for row in csv.DictReader(table)]
    shift = rng.uniform(-30, 30, (COPIES, len(places), 2)) / 3600
    with open(folder / "objects.csv", "w", newline="") as table:
        out = csv.writer(table)
        out.writerow(["object_id", "ra_deg", "dec_deg"])
        out.writerows(
            [k, *place] for k, place in enumerate((np.array(places) + shift).reshape(-1, 2).tolist())
        )
    return ["arrays", "pasquet", "hayat", "frames"]


def ingest(kind: str, folder: Path, out: Path) -> Manifest:
    """Ingest the files of one kind on this rank, and return the manifest."""
    from hpcphotoz.sources.arrays.array_map import load_map, parse_map
    from hpcphotoz.sources.arrays.ingest_arrays import ingest_arrays
    from hpcphotoz.sources.surveys.ingest import ingest_images

    if kind == "frames":
        count = sum(1 for _ in open(folder / "objects.csv")) - 1
        rows = -(-count // UNITS)
        return ingest_images(out, "sdss", DATA, folder / "objects.csv", shard_rows=rows, storage=STORAGE)
    with np.load(folder / "pasquet.npz") as file:
        rows = len(file["labels"])
        count = {"arrays": ARRAYS_ROWS * rows, "pasquet": rows, "hayat": rows // 2}[kind]
    source = folder / {"arrays": "arrays.h5", "pasquet": "pasquet.npz", "hayat": "hayat.h5"}[kind]
    array_map = parse_map(MAP, "map.toml") if kind == "arrays" else load_map(kind)
    crop = 64 if kind == "hayat" else None
    how: dict[str, Any] = {"shard_rows": count // UNITS, "crop": crop, "storage": STORAGE}
    return ingest_arrays(out, [source], array_map, kind, **how)[0]


def h5py_copy(source: Path, out: Path) -> float:
    """Read all arrays of a file by h5py and write them to another; return the seconds with the flush."""
    start = time.perf_counter()
    with h5py.File(source) as read, h5py.File(out, "w") as write:
        for name, stored in read.items():
            array = write.create_dataset(name, stored.shape, stored.dtype.newbyteorder("="))
            for row in range(0, len(stored), COPY_ROWS):
                array[row : row + COPY_ROWS] = stored[row : row + COPY_ROWS]
    with open(out, "rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    out.unlink()
    return seconds


def on_rank(kind: str, folder: str, out: str) -> None:
    """Print the seconds from a barrier of the ranks to the manifest, the number of stamps, and MiB."""
    import hpcphotoz.sources.arrays.ingest_arrays  # noqa: F401
    from hpcphotoz.sources.mpi import mpi_ranks

    ranks = mpi_ranks()
    ranks.allgather(None)
    start = time.perf_counter()
    before = _peak_mib()
    manifest = ingest(kind, Path(folder), Path(out))
    ranks.allgather(None)
    if ranks.rank == 0:
        shard = max(one.bytes for one in manifest.shards) / (1 << 20)
        print(time.perf_counter() - start, manifest.rows, _peak_mib(), before, shard)


def _peak_mib() -> float:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measure(
    mpiexec: str | None,
    kind: str,
    ranks: int,
    folder: Path,
    counts: dict[str, int],
    memory: dict[str, dict[str, float]],
) -> Callable[[], float]:
    def measure() -> float:
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)  # a failed ingest would be resumed
        code = (
            f"from benchmarks.bench_ingest import on_rank; on_rank({kind!r}, {str(folder)!r}, {str(out)!r})"
        )
        done = subprocess.run(
            [*([mpiexec, "-n", str(ranks)] if mpiexec else []), sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        seconds, count, *mib = done.stdout.split()
        if ranks == 1:
            memory[kind] = dict(zip(("peak", "interpreter", "shard"), map(float, mib), strict=True))
        counts[kind] = int(count)
        shutil.rmtree(out)
        return float(seconds)

    return measure


if __name__ == "__main__":
    main()
