"""The readers that bench_stream compares yield the objects on disk."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from benchmarks.streaming.dataloaders import BATCH_BY_BATCH, BatchedRows, as_it_is
from benchmarks.streaming.page_cache import drop, pages_in_cache
from benchmarks.streaming.stream_readers import LABELS
from benchmarks.streaming.stream_survey import link_shards, measure
from tests.helpers.datasets import make_dataset, make_stamps


@pytest.mark.parametrize("kind", BATCH_BY_BATCH.values())
def test_a_batch_in_one_array_is_what_is_on_disk(dataset: Path, kind: type[BatchedRows]) -> None:
    stamps, seen = make_stamps(75), 0
    row = {int(i): k for k, i in enumerate(stamps.object_id)}
    rows = kind(sorted(dataset.glob("*.hdf5")))
    loader: DataLoader[dict[str, Any]] = DataLoader(rows, batch_size=16, shuffle=True, collate_fn=as_it_is)
    for batch in loader:
        wanted = [row[int(i)] for i in batch["object_id"]]
        for name in ("images", *LABELS):
            np.testing.assert_array_equal(batch[name].numpy(), getattr(stamps, name)[wanted])
        seen += len(wanted)
    assert seen == 75


def test_a_survey_is_measured_as_one_of_several_ranks_sees_it(tmp_path: Path) -> None:
    one = make_dataset(tmp_path / "one", n=256, shard_rows=256, size=2)
    found = measure(link_shards(one, tmp_path / "survey", 200), batches=64)
    assert found["shards"] == 200 and found["openings_train_over_all"] < 1.5
    for part in ("all", "train"):
        assert 0 < found[part]["resume_openings"] < 40, "few, and not those of all the batches before"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mincore and fadvise of Linux")
def test_a_dropped_file_is_not_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    assert path.read_bytes() and pages_in_cache(path).all()
    assert drop([path]) == 0
    assert path.read_bytes() and pages_in_cache(path).all()
