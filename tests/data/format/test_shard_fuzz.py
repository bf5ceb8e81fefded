"""Shards with damaged bytes are refused in one line; what crashes HDF5 does so in another process."""

import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpcphotoz.config import Data
from hpcphotoz.data.format import index, shards
from hpcphotoz.data.format.manifest import MANIFEST, read_manifest, write_manifest
from hpcphotoz.data.format.stamps import COLUMNS
from hpcphotoz.data.read import rows
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.errors import BadInput
from tests.helpers.datasets import make_dataset, make_stamps
from tests.helpers.paths import ROOT

PROBE = index._probe
N = 4
MEMORY = 1 << 30  # bytes that a shard of 20 kilobytes may take beside what the process has
SEED_S = 20
KINDS: dict[str, dict[str, Any]] = {
    "ours": {},
    "contiguous": {},
    "gzip": {"chunks": True, "compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"chunks": True, "compression": "lzf"},
}


def damaged(raw: bytes, seed: int) -> bytes:
    """A file cut off, overwritten in one place, or with one to sixteen bytes changed."""
    rng, content = random.Random(seed), bytearray(raw)
    how = rng.random()
    if how < 0.1:
        return bytes(content[: rng.randrange(len(content))])
    if how < 0.2:
        at, size = rng.randrange(len(content)), rng.randrange(1, 64)
        content[at : at + size] = rng.randbytes(size)
        return bytes(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at = rng.randrange(len(content))
        content[at] = rng.choice([content[at] ^ (1 << rng.randrange(8)), rng.randrange(256), 0, 255])
    return bytes(content)


def make(folder: Path, kind: str) -> None:
    """A dataset of one small shard: ours, or one that h5py wrote."""
    if kind == "ours":
        make_dataset(folder, n=N, shard_rows=N, size=4)
        return
    folder.mkdir()
    stamps = make_stamps(N, size=4)
    with h5py.File(folder / "shard-00000.h5", "w") as file:
        file.attrs.update(bands=list("ugriz"), pixel_scale=0.396)
        for name in COLUMNS:
            file.create_dataset(name, data=getattr(stamps, name), **KINDS[kind])
    index.index_folder(folder)


def stream(folder: Path) -> None:
    for batch in Stream(folder, Data(), global_batch=N, seed=1, part="all").epoch(0):
        assert np.isfinite(batch.images.numpy()).all()


def work(folder: Path, kind: str, seeds: range) -> None:
    """Read every damaged file in every way, in a process of its own; each seed is printed when it begins."""
    make(folder, kind)
    path, listing = folder / "shard-00000.h5", folder / MANIFEST
    whole, manifest, text = path.read_bytes(), read_manifest(folder), listing.read_text()
    beside = {p: p.read_bytes() for p in folder.iterdir() if p not in (path, listing)}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))

    def with_manifest(read: Callable[[], Any]) -> None:
        listing.write_text(text)
        read()

    def matching(read: Callable[[], Any]) -> None:
        """Read with a manifest that was written for the damaged file."""
        entry = replace(manifest.shards[0], bytes=path.stat().st_size, sha256=shards.file_sha256(path))
        write_manifest(folder, replace(manifest, shards=(entry,)))
        read()

    def index_again() -> None:
        listing.unlink()
        index.index_folder(folder)

    for seed in seeds:
        print(seed, flush=True)
        signal.alarm(SEED_S)  # ends the process, wherever it is: HDF5 lets no handler of Python's run
        path.write_bytes(damaged(whole, seed))
        unchanged = path.read_bytes() == whole
        for p, content in beside.items():
            p.write_bytes(content)
        ways: list[Callable[[], Any]] = [
            lambda: with_manifest(lambda: rows.verify(folder, read_manifest(folder))),
            lambda: with_manifest(lambda: stream(folder)),
            lambda: matching(lambda: list(rows.read_rows(folder, read_manifest(folder)))),
            lambda: matching(lambda: stream(folder)),
            index_again,
        ]
        for k, way in enumerate(ways):
            try:
                way()
                assert k != 0 or unchanged, "damage that is not seen"
            except BadInput as error:
                assert "\n" not in str(error) and "shard-00000.h5" in str(error), error
    print("done", flush=True)


CODE = """
import sys
from pathlib import Path
from tests.data.format.test_shard_fuzz import index, work
index._probe = lambda paths: None
kind, first, last = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
work(Path(sys.argv[1]), kind, range(first, last))
"""


@pytest.mark.parametrize("count", [40, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes_are_refused_or_harmless(tmp_path: Path, kind: str, count: int) -> None:
    """BadInput is the only error, memory is bounded, and HDF5 itself crashes or hangs on at most 1 %."""
    first, lost, quiet = 0, [], {**os.environ, "OMP_NUM_THREADS": "1"}
    while first < count:
        folder = tmp_path / str(first)
        words = [sys.executable, "-c", CODE, str(folder), kind, str(first), str(count)]
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
        ("os.kill(os.getpid(), signal.SIGSEGV)", "shard-00001.h5: crashes HDF5: damaged"),
        ("signal.pause()", "shard-00001.h5: is not opened by HDF5 in 2 s: damaged"),
    ],
)
def test_a_shard_that_hdf5_cannot_stand_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, says: str
) -> None:
    code = f"import os, signal\nprint(0, flush=True)\nprint(1, flush=True)\n{end}"
    monkeypatch.setattr(index, "_PROBE_COMMAND", [sys.executable, "-c", code])
    with pytest.raises(BadInput, match=says):
        PROBE([tmp_path / f"shard-0000{k}.h5" for k in range(3)], limit_s=2)


def test_sound_shards_are_opened_in_another_process_first(tmp_path: Path) -> None:
    make(tmp_path / "d", "gzip")
    (tmp_path / "d" / "shard-00001.h5").write_text("no HDF5 at all")
    PROBE(sorted((tmp_path / "d").glob("shard-*.h5")))  # leaves this one to the index itself
    with pytest.raises(BadInput, match="shard-00001"):
        (tmp_path / "d" / MANIFEST).unlink()
        index.index_folder(tmp_path / "d")


def test_the_process_that_opens_imports_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a line\nbreak \udcff"
    make(folder, "contiguous")
    (folder / "h5py.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(folder)
    PROBE(sorted(folder.glob("shard-*.h5")))


def test_an_attribute_that_would_crash_hdf5_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "d", "contiguous")
    (tmp_path / "d" / MANIFEST).unlink()
    for value in (np.zeros(2000), h5py.Empty("f4")):
        with h5py.File(tmp_path / "d" / "shard-00000.h5", "r+") as file:
            file.attrs["pixel_scale"] = value
        with pytest.raises(BadInput, match=r"shard-00000\.h5"):
            index.index_folder(tmp_path / "d")
    with h5py.File(tmp_path / "d" / "shard-00000.h5", "r+") as file:
        del file.attrs["bands"]
        lists = np.empty(1, object)
        lists[0] = np.arange(2)
        file.attrs.create("bands", lists, dtype=h5py.vlen_dtype(np.int64))
    with pytest.raises(BadInput, match="attribute 'bands' is no number or text"):
        index.index_folder(tmp_path / "d")


def test_a_link_in_place_of_a_shard_is_not_indexed(tmp_path: Path) -> None:
    make(tmp_path / "d", "contiguous")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "shard-00000.h5").symlink_to(tmp_path / "d" / "shard-00000.h5")
    with pytest.raises(BadInput, match="a link or no plain file"):
        index.index_folder(tmp_path / "e")
