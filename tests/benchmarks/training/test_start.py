"""The time to the first step: a run is stopped there, and caches of compiled code are cold, then warm."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness import Benchmark
from benchmarks.training import start, train_runs
from benchmarks.training.train_runs import RunPlan

PLAN = RunPlan("compact", Path("data"), ranks=0, batch=4, log_steps=1, lines=1, workers=1)


def launched(monkeypatch: pytest.MonkeyPatch, lines: str = "{}\n") -> list[Mapping[str, str]]:
    """Stands in for a run, which writes `lines` of metrics, and keeps a file in its caches."""
    seen: list[Mapping[str, str]] = []

    def launch(
        name: str,
        python: Path,
        ranks: int,
        words: list[str | Path],
        environment: Mapping[str, str],
        enough: Callable[[], bool],
        poll_s: float,
    ) -> str:
        out = Path(words[-1])
        assert ranks == 0 and not enough(), "no metrics yet"
        seen.append({key: str(os.path.exists(path)) for key, path in environment.items()})
        for path in environment.values():
            os.makedirs(path, exist_ok=True)
        out.mkdir()
        (out / "metrics.jsonl").write_text(lines)
        enough()
        return ""

    monkeypatch.setattr(train_runs, "launch", launch)
    return seen


def test_the_second_start_finds_the_code_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = launched(monkeypatch)
    pair = start.cold_and_warm(PLAN, "on")
    assert set(pair) == {"cold", "warm"} and min(pair.values()) > 0
    cold, warm = seen
    assert set(cold) == set(start.CACHES) and set(cold.values()) == {"False"}
    assert set(warm.values()) == {"True"}


def test_a_run_without_a_first_step_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, lines='{"step": 1')
    with pytest.raises(RuntimeError, match="ended before a line of metrics"):
        start.first_step(PLAN, "off", {})


def test_compiling_is_the_difference_of_two_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, asked = tmp_path / "step.json", list[str]()

    def cold_and_warm(plan: RunPlan, compiled: str) -> dict[str, float]:
        asked.append(compiled)
        more = 30.0 if compiled == "on" else 0.0
        return {"cold": 9 + 2 * more + len(asked), "warm": 8 + more}

    monkeypatch.setattr(start, "cold_and_warm", cold_and_warm)
    monkeypatch.setattr(train_runs, "write_dataset", lambda out, objects: None)
    monkeypatch.setattr(start, "DEVICE", torch.device("cuda"))
    start.add_starts(["compact"], 4, 1, Benchmark("step", path, minutes=9))
    late = Benchmark("step", path, minutes=-1)
    start.add_starts(["compact"], 4, 2, late)
    late.write()
    assert late.left_out == ["start, compact, off", "start, compact, on"]
    start.add_starts(["compact"], 4, 2, Benchmark("step", path, minutes=9))
    assert asked == ["off", "on"] * 2, "a round that was measured is not measured again"
    found: dict[str, Any] = json.loads(path.read_text())["figures"]["start"]["compact"]
    assert found["first_step_s"]["off"]["warm"] == {"median": 8, "p20": 8, "p80": 8, "n": 2}
    assert found["compile_s"]["warm"]["median"] == 30 and found["compile_s"]["cold"]["median"] == 61
    assert "compiling adds cold 61.0 s, warm 30.0 s" in capsys.readouterr().out

    monkeypatch.setattr(start, "DEVICE", torch.device("cpu"))
    alone = start.starts("compact", 4, 1, Benchmark("step", None))
    assert alone and alone["compile_s"] is None and set(alone["first_step_s"]) == {"off"}
