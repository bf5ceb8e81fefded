"""The benchmark of the estimator stage in RAIL: ratios, and rivals that do the same."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks import bench_rail


def test_ratios_are_over_the_rival_that_reads_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"read_chunks": 2.0, "read_whole": 4.0, "stage_chunks": 9.0, "stage_whole": 10.0}

    def measured(rival: str, folder: Path, memory: dict[str, list[float]]) -> Callable[[], float]:
        def measure() -> float:
            memory.setdefault(rival, []).append(7.0)
            return seconds[rival]

        return measure

    path = tmp_path / "rail.json"
    monkeypatch.setattr(bench_rail, "_measure", measured)
    monkeypatch.setattr(bench_rail, "prepare", lambda folder, rows: None)
    monkeypatch.setattr("benchmarks.bench_rail.importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(sys, "argv", ["bench_rail.py", "--json", str(path)])
    with pytest.raises(SystemExit) as end:
        bench_rail.main()
    record = json.loads(path.read_text())
    figures = record["figures"]
    assert end.value.code == 1 and set(record["failures"]) == {"read_shard", "stage_shard"}
    assert figures["read_chunks"]["time_over_whole"]["median"] == 0.5
    assert figures["stage_chunks"]["time_over_whole"]["median"] == 0.9
    assert figures["stage_whole"]["mib"] == {"median": 7, "p20": 7, "p80": 7, "n": 3}


@pytest.mark.slow
def test_rivals_write_the_same_pdfs(tmp_path: Path) -> None:
    pytest.importorskip("rail.core", reason="needs pz-rail-base: pip install 'hpcphotoz[rail]'")
    bench_rail.prepare(tmp_path, 64)
    for rival in bench_rail.RIVALS:
        assert bench_rail._measure(rival, tmp_path, {})() > 0
    found = []
    for rival in ("stage_chunks", "stage_shard", "stage_whole"):
        with h5py.File(tmp_path / f"output_{rival}.hdf5") as file:
            found.append(file["data/pdfs"][:])
    assert len(found[0]) == 64 and all(np.allclose(pdfs, found[0], atol=1e-4) for pdfs in found)
