"""Rates and ratios of the readers of bench_stream, and their table."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import Times, middle, ratio, spread

WORKERS = (0, 2)
DATALOADERS = (
    "h5py_dataloader_plain",
    "h5py_dataloader",
    "read_direct_dataloader",
    "h5py_low_level_dataloader",
    "memmap_dataloader",
    "memmap_index_select_dataloader",
)
LIBRARIES = ("mosaicml_streaming", "litdata", "grain", "zarr")
PEERS = (*DATALOADERS, *LIBRARIES, "memmap_dataloader_int16", "h5py_dataloader_gzip")


def summarise(times: Times, rows: int, threads: int) -> dict[str, Any]:
    """Images a second of each reader, and the ratios of rates, each the spread over the rounds.

    Args:
        times: seconds of each reader and round, of one state of the page cache.
        rows: objects of a pass.
        threads: that ours has by default.

    Returns:
        `images_per_s` by reader; `best` by peer: the reader with the better number of workers; `ratios`.
        Where a reader has no figures, there are none.
    """
    rates = {name: [rows / seconds for seconds in values] for name, values in times.items()}
    best = {peer: fastest(rates, [f"{peer}_{workers}" for workers in WORKERS]) for peer in PEERS}
    loaders = [found for peer in DATALOADERS if (found := best[peer])]
    best["dataloader"] = fastest(rates, loaders)
    # One thread: no workers, and not torch's threads, which `index_select` takes.
    single = [f"{peer}_0" for peer in DATALOADERS if peer != "memmap_index_select_dataloader"]
    best["dataloader_1_thread"] = fastest(rates, single)
    pairs: dict[str, tuple[str, str | None]] = {
        f"ours_over_{peer}": ("ours", best[peer]) for peer in ("dataloader", *DATALOADERS, *LIBRARIES)
    }
    pairs |= {
        "ours_1_thread_over_dataloader_1_thread": ("ours_1_thread", best["dataloader_1_thread"]),
        "ours_int16_over_memmap_dataloader_int16": ("ours_int16", best["memmap_dataloader_int16"]),
        "ours_gzip_over_h5py_dataloader_gzip": ("ours_gzip", best["h5py_dataloader_gzip"]),
        "ours_over_preadv": ("ours", f"preadv_{threads}"),
        "ours_1_thread_over_preadv_1_thread": ("ours_1_thread", "preadv_1"),
        "ours_over_preadv_into_batches": ("ours", f"preadv_into_batches_{threads}"),
        "ours_1_thread_over_preadv_into_batches_1_thread": ("ours_1_thread", "preadv_into_batches_1"),
    }
    parts = ("new_stream", "verify_always", "default_split", "many_shards", "float16", "int16", "1_thread")
    pairs |= {f"ours_{part}_over_ours": (f"ours_{part}", "ours") for part in parts}
    ratios = {name: ratio(rates, over, under) for name, (over, under) in pairs.items() if under}
    return {
        "images_per_s": {name: spread(values) for name, values in rates.items()},
        "best": {peer: name for peer, name in best.items() if name},
        "ratios": {name: each for name, each in ratios.items() if each},
    }


def fastest(rates: Mapping[str, Sequence[float]], names: Sequence[str]) -> str | None:
    """The name with the largest median rate; None if none has figures."""
    there = [name for name in names if name in rates]
    return max(there, key=lambda name: spread(list(rates[name]))["median"], default=None)


def show(title: str, figures: Mapping[str, Any]) -> None:
    """A table on the terminal."""
    rates, ratios = figures["images_per_s"], figures["ratios"]
    ours = middle(rates.get("ours"))
    print(f"\n{title:38s} {'images/s':>9s} {'p20':>9s} {'p80':>9s} {'ours / it':>9s}")
    for name, rate in rates.items():
        over = f"{ours / rate['median']:9.2f}" if ours else ""
        print(f"{name:38s} {rate['median']:9.0f} {rate['p20']:9.0f} {rate['p80']:9.0f} {over}")
    for name, each in ratios.items():
        print(f"{name:50s} {each['median']:6.2f}   by round {each['p20']:.2f} to {each['p80']:.2f}")
