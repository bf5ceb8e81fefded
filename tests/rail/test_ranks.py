"""Several ranks of a stage: one file with the chunks of all, and none left waiting when one fails."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

pytest.importorskip("rail.core", reason="needs pz-rail-base: pip install 'hpcphotoz[rail]'")

from hpcphotoz.errors import BadInput
from hpcphotoz.rail.ranks import chunk_for_all_ranks, meet, wait_until_read
from hpcphotoz.training.run.network import load_network
from tests.helpers.commands import copy
from tests.helpers.datasets import load
from tests.helpers.paths import ROOT

_BESIDE = Path(sys.executable).with_name("mpiexec")  # where the mpich wheel puts it
MPIEXEC = str(_BESIDE) if _BESIDE.exists() else shutil.which("mpiexec")
needs_mpi = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec: pip install mpich")


class Ranks:
    """The size of a communicator."""

    def __init__(self, size: int) -> None:
        self._size = size

    def Get_size(self) -> int:
        return self._size


@pytest.mark.parametrize(
    ("rows", "ranks", "chunk"), [(75, 1, 20), (75, 2, 20), (75, 5, 15), (7, 4, 1), (4, 4, 1)]
)
def test_every_rank_has_a_chunk(rows: int, ranks: int, chunk: int) -> None:
    found = chunk_for_all_ranks(20, rows, Ranks(ranks))
    assert found == chunk and -(-rows // found) >= ranks


def test_more_ranks_than_objects_are_refused() -> None:
    with pytest.raises(BadInput, match="3 objects for 4 ranks: start the stage with fewer"):
        chunk_for_all_ranks(20, 3, Ranks(4))


def test_a_communicator_of_other_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(BadInput, match="communicator has 4 ranks, the launcher started 1: start the stage"):
        meet(Ranks(4))
    meet(Ranks(1))
    meet(None)
    assert "MASTER_ADDR" not in os.environ


def test_a_rank_waits_until_its_message_is_read() -> None:
    read, write = os.pipe()
    with open(read, "rb") as launcher, open(write, "w") as rank:
        print("traceback", file=rank, flush=True)
        waiting = threading.Thread(target=wait_until_read, args=(rank, 60))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive(), "nobody has read it"
        assert launcher.readline() == b"traceback\n"
        waiting.join(30)
        assert not waiting.is_alive()


def test_a_message_that_nobody_reads_holds_up_no_rank(tmp_path: Path) -> None:
    read, write = os.pipe()
    with open(read, "rb"), open(write, "w") as rank, (tmp_path / "log").open("w") as log:
        for stream in (rank, log):
            print("traceback", file=stream, flush=True)
            wait_until_read(stream, 0.05)  # returns


def on_ranks(ranks: int, stage: str, folder: Path, **options: object) -> tuple[int, str]:
    """Exit status and output of a stage that ceci starts on some ranks."""
    words = [f"--{name}={value}" for name, value in options.items()]
    launcher = [str(MPIEXEC), "-n", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [
            *launcher,
            *(sys.executable, "-m", "ceci", f"rail.estimation.algos.hpcphotoz.{stage}"),
            *(f"--config={folder / 'config.yml'}", "--device=cpu", *words),
            *(["--mpi"] if ranks > 1 else []),
        ],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    return done.returncode, done.stdout


def estimate(ranks: int, model: Path, data: Path, out: Path) -> tuple[int, str]:
    (out.parent / "config.yml").write_text("{}")
    options = {"model": model, "input": data, "output": out, "chunk_size": 16}
    return on_ranks(ranks, "HpcPhotozEstimator", out.parent, **options)


@pytest.mark.slow
@needs_mpi
def test_any_number_of_ranks_writes_the_same_file(model: Path, dataset: Path, tmp_path: Path) -> None:
    files = [tmp_path / "alone.hdf5", tmp_path / "three.hdf5"]
    for ranks, out in zip((1, 3), files, strict=True):
        status, said = estimate(ranks, model, dataset, out)
        assert status == 0, said
    found: list[dict[str, Any]] = []
    for out in files:
        with h5py.File(out) as file:
            found.append({f"{g}/{n}": file[g][n][...] for g in file for n in file[g]})
    alone, three = found
    assert alone.keys() == three.keys() and len(alone["data/pdfs"]) == 75
    for name, values in alone.items():
        np.testing.assert_array_equal(three[name], values)
    np.testing.assert_array_equal(three["ancil/id"], load(dataset).object_id)


@needs_mpi
def test_a_rank_that_fails_ends_all(model: Path, dataset: Path, tmp_path: Path) -> None:
    folder = copy(dataset, tmp_path / "d")
    path = sorted(folder.glob("shard-*5"))[0]
    with h5py.File(path) as file:
        offset = file["images"].id.get_offset() + 17 * file["images"][0].nbytes
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1  # of the second chunk, which rank 1 reads
    path.write_bytes(raw)
    status, said = estimate(3, model, folder, tmp_path / "pz.hdf5")
    assert status != 0 and f"{path}: row 17: pixels differ" in said
    assert not (tmp_path / "pz.hdf5").exists()


@needs_mpi
@pytest.mark.slow
def test_two_ranks_train_the_network_of_one(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(
        "inform:\n  training: {width: 8, bins: 20, global_batch: 16, precision: fp32, max_steps: 3}\n"
    )
    for ranks in (1, 2):
        out = tmp_path / f"of_{ranks}.safetensors"
        status, said = on_ranks(ranks, "HpcPhotozInformer", tmp_path, name="inform", input=dataset, model=out)
        assert status == 0, said
    alone, two = (load_network(tmp_path / f"of_{n}.safetensors").module.state_dict() for n in (1, 2))
    for name, values in alone.items():
        # Gradients are summed in two parts: float32 roundings, 6e-8, of three steps that Adam normalises.
        np.testing.assert_allclose(two[name], values, atol=1e-4)
