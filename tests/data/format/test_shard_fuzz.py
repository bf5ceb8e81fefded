"""Shards with damaged bytes are refused in one line; those that crash HDF5 crash another process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcphotoz.data.format import index
from hpcphotoz.data.format.manifest import MANIFEST
from hpcphotoz.errors import BadInput
from tests.helpers.data.damaged_shards import KINDS, make_small_dataset
from tests.helpers.paths import ROOT

PROBE = index._probe
READER = "tests.helpers.data.damaged_shards"


@pytest.mark.parametrize("count", [40, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes_are_refused_or_harmless(tmp_path: Path, kind: str, count: int) -> None:
    """BadInput is the only error, memory is bounded, and HDF5 itself crashes or hangs on at most 1 %."""
    first, lost, quiet = 0, [], {**os.environ, "OMP_NUM_THREADS": "1"}
    while first < count:
        folder = tmp_path / str(first)
        words = [sys.executable, "-m", READER, str(folder), kind, str(first), str(count)]
        limit = 60 + count
        try:
            ended = subprocess.run(
                words, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=limit, check=False
            )
            said, status = ended.stdout.split(), ended.returncode
            assert status <= 0, f"seed {said[-1]}: {ended.stderr}"
        except subprocess.TimeoutExpired as error:
            said, status = (error.stdout or b"").decode().split(), -signal.SIGKILL
        if status == 0:
            break
        lost.append(int(said[-1]))
        first = lost[-1] + 1
    assert len(lost) <= max(1, count // 100), f"seeds {lost}"


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "shard-00001.hdf5: crashes HDF5: damaged"),
        ("signal.pause()", "shard-00001.hdf5: is not opened by HDF5 in 2 s: damaged"),
    ],
)
def test_a_shard_that_crashes_hdf5_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, says: str
) -> None:
    code = f"import os, signal\nprint(0, flush=True)\nprint(1, flush=True)\n{end}"
    monkeypatch.setattr(index, "_PROBE_COMMAND", [sys.executable, "-c", code])
    with pytest.raises(BadInput, match=says):
        PROBE([tmp_path / f"shard-0000{k}.hdf5" for k in range(3)], limit_s=2)


def test_shards_are_opened_in_another_process_first(tmp_path: Path) -> None:
    make_small_dataset(tmp_path / "d", "gzip")
    (tmp_path / "d" / "shard-00001.hdf5").write_text("no HDF5 at all")
    PROBE(sorted((tmp_path / "d").glob("shard-*.hdf5")))  # the probe passes a file that is not HDF5
    with pytest.raises(BadInput, match="shard-00001"):
        (tmp_path / "d" / MANIFEST).unlink()
        index.index_folder(tmp_path / "d")


def test_the_process_that_opens_imports_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a line\nbreak \udcff"
    make_small_dataset(folder, "contiguous")
    (folder / "h5py.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(folder)
    PROBE(sorted(folder.glob("shard-*.hdf5")))


def test_an_attribute_that_would_crash_hdf5_is_refused(tmp_path: Path) -> None:
    make_small_dataset(tmp_path / "d", "contiguous")
    (tmp_path / "d" / MANIFEST).unlink()
    for value in (np.zeros(2000), h5py.Empty("f4")):
        with h5py.File(tmp_path / "d" / "shard-00000.hdf5", "r+") as file:
            file.attrs["pixel_scale"] = value
        with pytest.raises(BadInput, match=r"shard-00000\.hdf5"):
            index.index_folder(tmp_path / "d")
    with h5py.File(tmp_path / "d" / "shard-00000.hdf5", "r+") as file:
        del file.attrs["bands"]
        lists = np.empty(1, object)
        lists[0] = np.arange(2)
        file.attrs.create("bands", lists, dtype=h5py.vlen_dtype(np.int64))
    with pytest.raises(BadInput, match="attribute 'bands' is no number or text"):
        index.index_folder(tmp_path / "d")


def test_a_link_in_place_of_a_shard_is_not_indexed(tmp_path: Path) -> None:
    make_small_dataset(tmp_path / "d", "contiguous")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "shard-00000.hdf5").symlink_to(tmp_path / "d" / "shard-00000.hdf5")
    with pytest.raises(BadInput, match="a link or no plain file"):
        index.index_folder(tmp_path / "e")
