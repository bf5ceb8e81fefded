"""Rows of a dataset, read across its shards."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcphotoz.data.format.manifest import Manifest, ShardEntry, read_manifest
from hpcphotoz.data.format.shards import open_shard
from hpcphotoz.data.format.stamps import COLUMNS, Stamps
from hpcphotoz.data.read.rows import read_rows
from tests.helpers.datasets import load


@pytest.mark.parametrize("rows", [range(0, 75), range(30, 34), range(64, 75), range(5, 6), range(70, 99)])
def test_consecutive_rows_cross_the_shards(dataset: Path, rows: range) -> None:
    """Three shards of 32, 32 and 11 rows."""
    whole = load(dataset)[rows.start : rows.stop]
    found = Stamps.concatenate(list(read_rows(dataset, read_manifest(dataset), batch=20, rows=rows)))
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


def test_other_shards_are_not_opened(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, opened = read_manifest(dataset), list[str]()

    def noted(folder: Path, manifest: Manifest, shard: ShardEntry) -> h5py.File:
        opened.append(shard.file)
        return open_shard(folder, manifest, shard)

    monkeypatch.setattr("hpcphotoz.data.read.rows.open_shard", noted)
    assert sum(map(len, read_rows(dataset, manifest, rows=range(32, 64)))) == 32
    assert opened == [manifest.shards[1].file]
    assert list(read_rows(dataset, manifest, rows=range(75, 80))) == []
