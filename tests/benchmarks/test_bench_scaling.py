"""The benchmark of scaling: a case that fails leaves the others their figures."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_scaling
from benchmarks.bench_scaling import Case
from benchmarks.training import train_runs
from benchmarks.training.train_runs import Rate


def test_a_case_that_fails_leaves_the_others_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(case: Case, precision: str, data: Path) -> Rate:
        if case.ranks == 4:
            raise RuntimeError("a rank is lost")
        return Rate(10.0 * case.ranks, 0.1, 1.0)

    def allreduce(*given: Any) -> dict[str, Any]:
        raise RuntimeError("gloo timed out")

    path = tmp_path / "scaling.json"
    monkeypatch.setattr(bench_scaling, "train", train)
    monkeypatch.setattr(bench_scaling, "allreduce", allreduce)
    monkeypatch.setattr(train_runs, "write_dataset", lambda out, objects: None)
    monkeypatch.setattr(sys, "argv", ["bench_scaling.py", "--json", str(path)])
    with pytest.raises(SystemExit) as end:
        bench_scaling.main()
    record = json.loads(path.read_text())
    assert end.value.code == 1 and "all-reduce, gloo" in record["failures"]
    assert len(record["failures"]) == 5, "weak and strong on four ranks, two networks"
    for kind, ranks in (("weak", [1, 2]), ("strong", [1, 2]), ("apart", [1])):
        assert [row["ranks"] for row in record["figures"][kind]] == ranks * 2
        assert record["figures"][kind][0]["efficiency"]["median"] == 1
    assert record["figures"]["model"] == {} and "a rank is lost" in capsys.readouterr().out
