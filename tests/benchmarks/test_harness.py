"""A rival that fails, or for which there is no time, leaves the others their figures."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.harness import Benchmark, in_turn, ratio


def broken() -> float:
    raise ValueError("first line\nlast line")


def test_a_failing_rival_is_recorded_and_the_others_keep_their_figures(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    benchmark = Benchmark("any", path)
    calls: list[str] = []
    rivals = {"broken": broken, "ours": lambda: calls.append("ours"), "peer": lambda: calls.append("peer")}
    times = in_turn(rivals, 3, benchmark)
    assert set(times) == {"ours", "peer"} and all(len(values) == 3 for values in times.values())
    assert calls == ["ours", "peer"] * 4, "one round warms up"
    benchmark.add(ratio=ratio(times, "peer", "ours"), none=ratio(times, "broken", "ours"))
    with pytest.raises(SystemExit) as end:
        benchmark.end()
    assert end.value.code == 1
    record = json.loads(path.read_text())
    assert record["failures"] == {"broken": "ValueError: first line ... last line"}
    assert record["figures"]["ratio"]["n"] == 3 and record["figures"]["none"] is None


def test_without_a_benchmark_a_failure_is_raised() -> None:
    with pytest.raises(ValueError, match="first line"):
        in_turn({"broken": broken}, 1)


def test_a_benchmark_that_is_killed_leaves_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    benchmark = Benchmark("any", path)
    benchmark.add(first=1)
    assert json.loads(path.read_text())["figures"] == {"first": 1}


def test_a_quick_benchmark_starts_no_rival_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("benchmarks.harness.time.perf_counter", lambda: now)
    benchmark = Benchmark("any", tmp_path / "figures.json", quick=True)
    taken: dict[str, int] = {"ours": 0, "peer": 0}

    def rival(name: str, seconds: float) -> float:
        nonlocal now
        now += seconds
        taken[name] += 1
        return seconds

    third = harness.QUICK_S / 3
    rivals = {"ours": lambda: rival("ours", third), "peer": lambda: rival("peer", third / 10)}
    times = harness.rounds(rivals, 9, benchmark)
    # The warm-up and the first round are within the time; the third call of ours ends beyond it.
    assert taken == {"ours": 3, "peer": 2} and len(times["ours"]) == 2 and len(times["peer"]) == 1
    compared = ratio(times, "ours", "peer")
    assert compared and compared["n"] == 1 and compared["median"] == pytest.approx(10)
    with pytest.raises(SystemExit) as end:
        benchmark.end()
    assert end.value.code == 0 and "no time for: peer, ours" in capsys.readouterr().out


def test_the_record_names_the_processors_units(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "processor\t: 0\nmodel name\t: A Processor\nflags\t\t: fpu avx2 avx512_bf16 amx_bf16 sse\n"
    monkeypatch.setattr(Path, "read_text", lambda self: lines)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    record = harness.machine()
    assert record["processor"] == "A Processor"
    assert record["cpu_flags"] == ["amx_bf16", "avx2", "avx512_bf16"]
    assert record["hidden"]["ONEDNN_MAX_CPU_ISA"] == "AVX2" and record["cpu_capability_of_torch"]


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("benchmarks.launch.rehearsal", "python -m benchmarks.launch.rehearsal --rounds 2"),
        ("benchmarks.record.__main__", "python -m benchmarks.record --rounds 2"),
    ],
)
def test_the_record_names_the_command(
    module: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec(module, None))
    monkeypatch.setattr(sys, "argv", ["/elsewhere/file.py", "--rounds", "2"])
    Benchmark("one", tmp_path / "one.json").write()
    assert json.loads((tmp_path / "one.json").read_text())["command"] == command


def test_a_benchmark_goes_on_where_a_limit_of_time_stopped_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, path = 0.0, tmp_path / "figures.json"
    monkeypatch.setattr("benchmarks.harness.time.perf_counter", lambda: now)
    first = Benchmark("any", path, minutes=2)
    assert first.earlier("network", "ours") is None, "there is no earlier run"
    first.attempt("network, broken", broken)
    first.add(network={"ours": 1, "peer": 2, "broken": None})
    now = 121.0
    assert first.attempt("network, peer, compiled", lambda: 3) is None
    first.write()

    second = Benchmark("any", path, minutes=2)
    assert second.figures == first.figures and second.left_out == ["network, peer, compiled"]
    assert second.earlier("network", "ours") == 1 and second.earlier("network", "none") is None
    assert second.earlier("network", "ours", "deeper") is None
    assert "network, broken" in second.failures, "what failed is not tried again on its own account"
    assert second.earlier("network", "peer") is None and second.left_out == []
    assert second.attempt("network, broken", lambda: 4) == 4 and second.failures == {}
    second.add(network={"ours": 1, "peer": 3})

    third = Benchmark("any", path, minutes=2)
    assert third.earlier("network") == {"ours": 1, "peer": 3} and not third.failures
    assert Benchmark("any", path).figures == {}, "without a limit all is measured"


@pytest.mark.parametrize("other", ["commit", "device", "versions", "benchmark", "command"])
def test_figures_of_another_machine_or_commit_are_not_kept(
    other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    Benchmark("any", path).add(ours=1)
    tree = json.loads(path.read_text())
    assert Benchmark("any", path, minutes=1).earlier("ours") == 1
    path.write_text(json.dumps({**tree, other: "python --quick" if other == "command" else "another"}))
    assert Benchmark("any", path, minutes=1).figures == {}
    assert "all is measured anew" in capsys.readouterr().out
