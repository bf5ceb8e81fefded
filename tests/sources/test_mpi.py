"""Ingest on real MPI ranks: the same bytes as without MPI, one line for a failure, finished shards kept."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.read.rows import verify
from tests.helpers.builds import TIMEOUT_S, content, until
from tests.helpers.paths import ROOT
from tests.helpers.sources.array_files import GZIP, hayat
from tests.helpers.sources.array_files import ingest as ingest_arrays

_BESIDE = Path(sys.executable).with_name("mpiexec")  # where the mpich wheel puts it
MPIEXEC = str(_BESIDE) if _BESIDE.exists() else shutil.which("mpiexec")
pytest.importorskip("mpi4py", reason="no mpi4py")
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec: pip install mpich")


def begin(ranks: int, words: list[str], env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(MPIEXEC), "-n", str(ranks), sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def mpi(ranks: int, words: list[str]) -> tuple[int, str, str]:
    process = begin(ranks, words)
    try:
        out, error = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    return process.returncode, out, error


def ingest(out: Path, source: Path) -> list[str]:
    words = ["-m", "hpcphotoz", "ingest", "table", str(out), "--format", "hayat", str(source)]
    return [*words, "--shard-rows", "4"]


def test_any_number_of_ranks_gives_the_same_bytes(tmp_path: Path) -> None:
    source = hayat(tmp_path / "in.h5", 22, 24)
    alone = subprocess.run([sys.executable, *ingest(tmp_path / "alone", source)], cwd=ROOT, timeout=TIMEOUT_S)
    assert alone.returncode == 0
    for ranks in (1, 2, 4):
        out = tmp_path / str(ranks)
        status, said, error = mpi(ranks, ingest(out, source))
        assert status == 0, error
        assert said == f"{out}: 22 stamps in 6 shards\n" and len(error.splitlines()) == 1
        assert content(out) == content(tmp_path / "alone")
    verify(tmp_path / "4", read_manifest(tmp_path / "4"))


def test_a_rank_that_fails_ends_all_with_one_line(tmp_path: Path) -> None:
    source = tmp_path / "in.h5"
    with h5py.File(hayat(tmp_path / "plain.h5", 22, 24)) as plain, h5py.File(source, "w") as file:
        for name, data in plain.items():
            file.create_dataset(name, data=data[...], **{**GZIP, "chunks": (4, *data.shape[1:])})
        place = file["images"].id.get_chunk_info(2)
    with source.open("r+b") as raw:  # read by rank 2 of 4 only
        raw.seek(place.byte_offset)
        raw.write(b"\xff" * place.size)
    status, said, error = mpi(4, ingest(tmp_path / "set", source))
    assert status == 2 and not said
    lines = [line for line in error.splitlines() if not line.startswith("reading tables")]
    assert len(lines) == 1 and re.match(r"hpcphotoz: error: .*in.h5: rows 8 to 11 of 'images'", lines[0]), (
        error
    )
    status, _, error = mpi(2, ingest(tmp_path / "other", tmp_path / "absent.h5"))
    assert status == 2 and error.count("\n") == 1 and "no such file" in error


def test_ranks_simulate_the_same_shards(tmp_path: Path) -> None:
    pytest.importorskip("galsim")
    words = ["-m", "hpcphotoz", "simulate", str(tmp_path / "ranks"), "--n", "7", "--shard-rows", "3"]
    status, said, error = mpi(2, words)
    assert status == 0 and said.count("\n") == 1 and "7 galaxies in 3 shards" in said, error
    words[3] = str(tmp_path / "alone")
    subprocess.run([sys.executable, *words, "--processes", "1"], cwd=ROOT, timeout=TIMEOUT_S, check=True)
    assert content(tmp_path / "ranks") == content(tmp_path / "alone")


def test_ranks_append_the_bytes_that_one_process_appends(tmp_path: Path) -> None:
    files = [hayat(tmp_path / f"{k}.h5", n, 24, ObjID=np.arange(n) + 100 * k) for k, n in ((0, 6), (1, 11))]
    out, alone = tmp_path / "set", tmp_path / "alone"
    ingest_arrays(out, files[:1], "hayat", shard_rows=4, processes=1)
    shutil.copytree(out, alone)
    ingest_arrays(alone, files, "hayat", shard_rows=4, processes=1, append=True)
    words = [*ingest(out, files[0]), "--append"]
    words.insert(words.index(str(files[0])) + 1, str(files[1]))
    for added in ("added 11 objects in 3 shards; 6 were", "added 0 objects in 0 shards; 17 were"):
        status, said, error = mpi(2, words)
        assert status == 0 and said == f"{out}: 17 stamps in 5 shards\n", error
        assert error.count(f"{out}: {added} there already") == error.count("added") == 1
        assert content(out) == content(alone)
    verify(out, read_manifest(out))


@pytest.mark.parametrize("name", ["inspect", "merge"])
def test_a_command_for_one_process_is_refused_once(tmp_path: Path, name: str) -> None:
    words = [str(tmp_path / "out"), str(tmp_path)] if name == "merge" else [str(tmp_path)]
    status, said, error = mpi(2, ["-m", "hpcphotoz", name, *words])
    assert status == 2 and not said and not list(tmp_path.iterdir())
    assert error == (
        f"hpcphotoz: error: {name} is for one process: start it once, without srun, mpiexec or torchrun\n"
    )


def test_a_defect_of_the_program_keeps_its_traceback(tmp_path: Path) -> None:
    code = "from tests.helpers.builds import *; run(Path({!r}), [2, 3, 'bug'], processes=None)"
    status, _, error = mpi(2, ["-c", code.format(str(tmp_path / "set"))])
    assert status == 1 and error.count("Traceback") == 1 and "ZeroDivisionError: a bug" in error


@pytest.mark.slow
def test_killed_ranks_are_started_again_in_another_number(tmp_path: Path) -> None:
    out, alone = tmp_path / "set", tmp_path / "alone"
    code = "from tests.helpers.builds import *; run(Path({!r}), processes=None)"
    process = begin(2, ["-c", code.format(str(out))], {"BLOCK_AT": "9"})  # the last of six units, rank 1's
    until(lambda: len(list(out.glob("*.done.json"))) == 5 or process.poll() is not None, "five units")
    os.killpg(process.pid, 9)
    process.communicate(timeout=TIMEOUT_S)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.hdf5")}
    status, _, error = mpi(3, ["-c", code.format(str(out))])
    assert status == 0 and "kept 5 finished shards" in error
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    status, _, _ = mpi(1, ["-c", code.format(str(alone))])
    assert status == 0 and content(out) == content(alone)
