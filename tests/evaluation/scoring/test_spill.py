"""Spilled columns: what was appended comes back, and the file is gone with its process."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.scoring.spill import BLOCK, Spill, SpilledColumns


@pytest.mark.parametrize("n", [0, 5, BLOCK, 2 * BLOCK + 7])
def test_columns_come_back_in_blocks_of_one_size(n: int) -> None:
    values = np.arange(3 * n, dtype=np.float32).reshape(3, n)
    with Spill() as spill:
        columns, other = SpilledColumns(spill, "abc"), SpilledColumns(spill, "d")
        for start in range(0, n, 1000):
            columns.append(values[:, start : start + 1000])
        other.append(values[:1])
        assert len(columns) == len(other) == n
        found = [np.stack(block) for block in columns.blocks("c", "a")]
        sizes = [len(block[0]) for block in other.blocks()]
        assert [one.shape[1] for one in found] == sizes and sizes[:-1] == [BLOCK] * len(sizes[:-1])
        if n:
            np.testing.assert_array_equal(np.concatenate(found, axis=1), values[[2, 0]])
            np.testing.assert_array_equal(np.concatenate([b for (b,) in other.blocks("d")]), values[0])


def test_the_file_has_no_name_and_ends_with_the_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    with Spill() as spill:
        SpilledColumns(spill, "a").append(np.zeros((1, BLOCK)))
        assert list(tmp_path.iterdir()) == []
    if opened is not None:
        assert set(os.listdir("/proc/self/fd")) == opened


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with Spill() as spill:
        columns = SpilledColumns(spill, "a")
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(BadInput, match="No space left on device: set TMPDIR"):
            columns.append(np.zeros((1, BLOCK)))
