"""The benchmark of ingest: a rival that fails leaves the others their figures."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_ingest


def test_an_ingest_that_fails_leaves_the_others_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(
        mpiexec: str, kind: str, ranks: int, folder: Path, counts: dict[str, int], memory: dict[str, Any]
    ) -> Callable[[], float]:
        def measure() -> float:
            if kind == "hayat" or ranks == 4:
                raise RuntimeError("out of space")
            counts[kind] = 8
            memory[kind] = {"peak": 150.0, "interpreter": 100.0, "shard": 40.0}
            return 4 / ranks

        return measure

    path = tmp_path / "ingest.json"
    monkeypatch.setattr(bench_ingest, "_measure", measured)
    monkeypatch.setattr(bench_ingest, "write_sources", lambda folder, rows: ["pasquet", "hayat"])
    monkeypatch.setattr("benchmarks.bench_ingest.shutil.which", lambda name: "/usr/bin/mpiexec")
    monkeypatch.setattr(sys, "argv", ["bench_ingest.py", "--json", str(path)])
    with pytest.raises(SystemExit) as end:
        bench_ingest.main()
    record = json.loads(path.read_text())
    failed = {"pasquet_4", "hayat_1", "hayat_2", "hayat_4"}
    assert end.value.code == 1 and set(record["failures"]) == failed
    assert record["figures"]["pasquet_2_ranks"]["over_one_rank"] == pytest.approx(2)
    assert record["figures"]["memory_of_one_rank_mib"]["pasquet"]["peak"] == 150
    assert "hayat_1_ranks" not in record["figures"] and "out of space" in capsys.readouterr().out


def test_the_ingest_of_arrays_is_measured_as_the_command_comes_too(tmp_path: Path) -> None:
    assert "arrays" in bench_ingest.write_sources(tmp_path, 64)
    counts: dict[str, int] = {}
    memory: dict[str, dict[str, float]] = {}
    seconds = bench_ingest._measure(None, "arrays", 0, tmp_path, counts, memory)()
    assert seconds > 0 and counts == {"arrays": 256} and not memory
