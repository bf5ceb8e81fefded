"""Memory of the stream is the same for 1e4 objects and 1e8 virtual ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.datasets import linked_dataset, make_dataset

ROWS = 8192
SCRIPT = """
import json, resource, sys
from itertools import islice
from pathlib import Path
import torch
from hpcphotoz.config import Data
from hpcphotoz.data.stream.stream import Stream

stream = Stream(Path(sys.argv[1]), Data(), global_batch=256, seed=0, part=sys.argv[2])
batches = stream.batches
seen = sum(len(batch.images) for batch in islice(stream.epoch(0, int(sys.argv[3])), 100))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"rows": stream.rows, "batches": batches, "seen": seen, "peak_kib": peak}))
"""


def measure(folder: Path, part: str, start: int) -> dict[str, int]:
    words = [sys.executable, "-c", SCRIPT, str(folder), part, str(start)]
    found = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert found.returncode == 0, found.stderr
    tree: dict[str, int] = json.loads(found.stdout)
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("part", ["all", "train"])
def test_a_hundred_million_objects_cost_what_ten_thousand_do(tmp_path: Path, part: str) -> None:
    one = make_dataset(tmp_path / "one", n=ROWS, shard_rows=ROWS, size=8)
    small = linked_dataset(one, tmp_path / "small", 2)
    large = linked_dataset(one, tmp_path / "large", 12_208 if part == "all" else 1500)
    few, many = measure(small, part, 0), measure(large, part, 0)
    assert many["rows"] > (99_000_000 if part == "all" else 11_000_000)
    assert many["seen"] == 100 * 256
    # An array of one byte per object would be 95 MiB.
    assert many["peak_kib"] < 1.1 * few["peak_kib"], (few, many)
    if part == "all":  # late in the epoch
        assert measure(large, part, 300_000)["peak_kib"] < 1.1 * few["peak_kib"]


def test_few_shards_of_many_objects_hold_no_labels_in_memory(tmp_path: Path) -> None:
    one = make_dataset(tmp_path / "one", n=100_000, shard_rows=100_000, size=1)
    few = measure(linked_dataset(one, tmp_path / "few", 2), "train", 0)
    many = measure(linked_dataset(one, tmp_path / "many", 60), "train", 0)
    # Labels of 60 shards are 336 MiB.
    assert many["peak_kib"] < few["peak_kib"] + 60_000, (few, many)
