"""Processes are killed within an epoch and another number of ranks resumes: every object is seen once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcphotoz.data.format.manifest import Header, Manifest, read_manifest, write_manifest
from hpcphotoz.data.format.stamps import BandMoments
from hpcphotoz.data.format.writer import DatasetWriter, write_shard
from tests.helpers.datasets import make_stamps

TIMEOUT_S = 60
SIZES = (50, 7, 33, 1, 90)  # objects of each shard
BATCH = 12
RANK = """
import json, sys
from pathlib import Path
from hpcphotoz.config import Data
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.world import World

folder, rank, size, epoch, start = Path(sys.argv[1]), *map(int, sys.argv[2:])
options = Data(block_rows=5, window_blocks=4, validation=0.1, where="z_spec > 0.03")
stream = Stream(folder, options, global_batch=12, seed=5, world=World(rank, size, rank, size))
for batch in stream.epoch(epoch, start):
    print(json.dumps([batch.index, batch.object_id.tolist(), batch.images[:, 0, 0, 0].tolist()]), flush=True)
    sys.stdin.readline()  # the parent says when to go on
"""


@pytest.fixture
def unequal(tmp_path: Path) -> Path:
    """A dataset of shards of very different lengths."""
    folder, header = tmp_path / "set", Header(tuple("ugriz"), 16, 0.396)
    folder.mkdir()
    stamps, moments, entries, first = make_stamps(sum(SIZES)), BandMoments(5), [], 0
    for k, rows in enumerate(SIZES):
        part = stamps[first : first + rows]
        entries.append(write_shard(folder / f"shard-{k:05d}.hdf5", header, part))
        moments.add(part)
        first += rows
    write_manifest(folder, Manifest(header, tuple(entries), moments.result(), {}))
    assert read_manifest(folder).rows == sum(SIZES)
    return folder


def run(folder: Path, size: int, epoch: int, start: int, tokens: list[int] | None) -> list[list[list[Any]]]:
    """Batches that each rank read; with `tokens`, rank r is killed with SIGKILL after tokens[r] batches."""
    words = [sys.executable, "-c", RANK, str(folder)]
    ranks = [
        subprocess.Popen(
            [*words, str(rank), str(size), str(epoch), str(start)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        if tokens is None:
            return [
                [json.loads(line) for line in rank.communicate("\n" * 1000, TIMEOUT_S)[0].splitlines()]
                for rank in ranks
            ]
        seen = []
        for rank, count in zip(ranks, tokens, strict=True):
            assert rank.stdin is not None and rank.stdout is not None
            rank.stdin.write("\n" * count)
            rank.stdin.flush()
            seen.append([json.loads(rank.stdout.readline()) for _ in range(count)])
        return seen
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


@pytest.mark.timeout(3 * TIMEOUT_S)
def test_kills_and_resumes_at_other_world_sizes_lose_no_object(
    unequal: Path,
) -> None:
    whole = run(unequal, 1, 3, 0, None)[0]
    stages: list[list[Any]] = []
    start = 0
    for size, tokens in ((2, [3, 5]), (3, [4, 3, 6]), (1, None)):
        found = run(unequal, size, 3, start, tokens)
        # Like a checkpoint: batches that all ranks have read count, others are read again.
        stop = start + min(tokens) if tokens else len(whole)
        for index in range(start, stop):
            parts = [next(batch for batch in rank if batch[0] == index) for rank in found]
            stages.append([index, *(sum((part[k] for part in parts), []) for k in (1, 2))])
        start = stop
    assert stages == whole, "the same objects, pixels and order as a run that nobody killed"
    ids = [i for _, batch, _ in stages for i in batch]
    assert len(ids) == len(set(ids)) and len(stages) == -(-len(ids) // BATCH)


def test_the_same_folder_written_whole_gives_another_order_but_the_same_objects(
    unequal: Path, tmp_path: Path
) -> None:
    with DatasetWriter(tmp_path / "even", Header(tuple("ugriz"), 16, 0.396), 64, {}) as writer:
        writer.append(make_stamps(sum(SIZES)))
    found = [
        sorted(i for _, ids, _ in run(f, 1, 0, 0, None)[0] for i in ids) for f in (unequal, tmp_path / "even")
    ]
    assert found[0] == found[1]
