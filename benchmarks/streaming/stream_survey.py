"""A survey of many shards, read by one of several ranks: openings, default split, resume in the middle."""

import os
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.streaming.stream_readers import BATCH
from hpcphotoz.config import Data
from hpcphotoz.data.format.manifest import read_manifest, write_manifest
from hpcphotoz.data.select.subset import SplitPart
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.world import World

RANKS = 8
PARTS: tuple[SplitPart, ...] = ("all", "train")


def link_shards(real: Path, out: Path, count: int) -> Path:
    """A dataset of `count` shards, all of them hard links to the first shard of another."""
    manifest = read_manifest(real)
    entries = tuple(replace(manifest.shards[0], file=f"shard-{k:05d}.hdf5") for k in range(count))
    out.mkdir()
    for entry in entries:
        os.link(real / manifest.shards[0].file, out / entry.file)
    write_manifest(out, replace(manifest, shards=entries))
    return out


def measure(folder: Path, batches: int) -> dict[str, Any]:
    """Both parts of a dataset of more shards than stay open, as rank 0 of 1 and one rank of `RANKS` see it.

    Args:
        folder: the dataset; its labels are scanned once for the split, which is not part of the figures.
        batches: taken by the only rank; four times as many by the one of several.

    Returns:
        By part: images/s of the only rank; shards opened a batch by one rank of `RANKS`; and of a resume in
        the middle of the epoch, shards opened before its first batch and the seconds until it is there.
    """
    found: dict[str, Any] = {"shards": len(read_manifest(folder).shards), "ranks": RANKS, "batches": batches}
    for part in PARTS:
        alone, shared = open_part(folder, part, World()), open_part(folder, part, World(3, RANKS, 3, RANKS))
        shared.objects = alone.objects
        start, seen = time.perf_counter(), 0
        for batch in islice(alone.epoch(0), batches):
            seen += len(batch.images)
        seconds = time.perf_counter() - start
        taken = sum(1 for _ in islice(shared.epoch(0), 4 * batches))
        opened = shared.files.openings / taken
        resumed = open_part(folder, part, World(3, RANKS, 3, RANKS))
        resumed.objects = alone.objects
        middle, start = resumed.batches // 2, time.perf_counter()
        first = next(iter(resumed.epoch(0, middle)))
        latency = time.perf_counter() - start
        if first.index != middle:
            raise RuntimeError(f"resumed at batch {first.index}, not at {middle}")
        found[part] = {
            "images_per_s": seen / seconds,
            "openings_per_batch": opened,
            "resumed_at_batch": middle,
            "resume_openings": resumed.files.openings,
            "resume_first_batch_s": latency,
        }
    found["openings_train_over_all"] = (
        found["train"]["openings_per_batch"] / found["all"]["openings_per_batch"]
    )
    return found


def open_part(folder: Path, part: SplitPart, world: World) -> Stream:
    """A part of a dataset in batches of `BATCH`, with the default split."""
    return Stream(folder, Data(), global_batch=BATCH, seed=0, part=part, world=world)


def show(found: dict[str, Any]) -> None:
    """A line a part on the terminal."""
    print(f"{found['shards']} shards; openings of one rank of {found['ranks']}:")
    for part in PARTS:
        of = found[part]
        print(
            f"  {part:6s} {of['images_per_s']:8.0f} images/s, {of['openings_per_batch']:.2f} shards opened a "
            f"batch; resumed at batch {of['resumed_at_batch']}: {of['resume_openings']} shards, "
            f"{1000 * of['resume_first_batch_s']:.0f} ms to the first batch"
        )
    print(f"  openings a batch, train / all: {found['openings_train_over_all']:.3f}")
