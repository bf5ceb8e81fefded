"""The benchmark of training: runs take turns, a failing one is left out, and ours also runs in float32."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_step
from benchmarks.harness import Benchmark
from benchmarks.training import train_runs
from benchmarks.training.train_runs import Rate, RunPlan

PLAN = RunPlan("compact", Path("data"), ranks=1, batch=4, log_steps=2, lines=3, workers=1)


def run(rate: float) -> Callable[[], Rate]:
    return lambda: Rate(rate, 0.0, 1.0, {"precision": "any"})


def broken() -> Rate:
    raise RuntimeError("the loss is nan")


def test_a_run_that_fails_leaves_the_others_their_figures(tmp_path: Path) -> None:
    benchmark = Benchmark("step", tmp_path / "step.json")
    runs = {"peer": run(2), "ours": run(7), "ours_fp32": broken, "peer_tuned": run(3)}
    found = bench_step.take_turns("compact", runs, 3, benchmark)
    assert {name: len(rates) for name, rates in found.items()} == {"peer": 3, "ours": 3, "peer_tuned": 3}
    assert benchmark.failures == {"compact, ours_fp32": "RuntimeError: the loss is nan"}
    record = bench_step.compared(found, PLAN, {"peer_fp32": "peer"})
    assert record["ratio_peer_loop"] == 3.5 and record["ratio_peer_loop_fp32"] is None
    assert record["speed"]["ours"] == {"precision": "any"}


def test_runs_of_an_earlier_process_are_not_repeated(tmp_path: Path) -> None:
    path, started = tmp_path / "step.json", list[str]()

    def counted(name: str, rate: float) -> Callable[[], Rate]:
        return lambda: started.append(name) or run(rate)()  # type: ignore[func-returns-value]

    runs = {"peer": counted("peer", 2), "ours": counted("ours", 7)}
    first = Benchmark("step", path, minutes=9)
    first.failed("compact, ratio_peer_loop", ValueError("losses differ"))
    bench_step.take_turns("compact", runs, 1, first)
    again = Benchmark("step", path, minutes=9)
    found = bench_step.take_turns("compact", runs, 2, again)
    assert started == ["peer", "ours"] * 2 and again.failures == {}
    assert [rate.images_per_s for rate in found["ours"]] == [7, 7] and found["ours"][0] == run(7)()
    assert len(json.loads(path.read_text())["figures"]["runs"]["compact"]["peer"]) == 2


def test_runs_whose_losses_differ_get_no_ratio() -> None:
    benchmark = Benchmark("step", None)
    runs = {"peer": [Rate(2, 0.0, 5.0)], "ours": [Rate(7, 0.0, 4.0)], "peer_tuned": [Rate(3, 0.0, 4.1)]}
    found = bench_step.refused("compact", bench_step.compared(runs, PLAN, {}), benchmark)
    assert found["ratio_peer_loop"] is None and found["ratio_peer_tuned"] == pytest.approx(7 / 3)
    assert found["ratio_per_round"]["ratio_peer_loop"] is None and found["images_per_s"]["ours"]["n"] == 1
    assert "no ratio" in benchmark.failures["compact, ratio_peer_loop"] and len(benchmark.failures) == 1


@pytest.mark.parametrize(
    ("device", "precision", "names"),
    [
        ("cpu", "bf16", "peer ours peer_tuned ours_fp32 peer_tuned_fp32"),
        ("cpu", "fp32", "peer ours peer_tuned"),
        ("cuda", "bf16", "peer ours peer_tuned ours_fp32 peer_fp32 peer_tuned_fp32"),
        ("cuda", "tf32", "peer ours peer_tuned ours_fp32 peer_fp32 peer_tuned_fp32"),
    ],
)
def test_rivals_have_the_precision_of_the_device_and_float32(
    device: str, precision: str, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_step, "DEVICE", torch.device(device))
    monkeypatch.setattr(train_runs, "peer", lambda plan, tuned=False, precision="fp32": (tuned, precision))
    monkeypatch.setattr(train_runs, "ours", lambda plan, options=None: options)
    runs: dict[str, Callable[[], Any]] = dict(bench_step.rivals(PLAN, precision, quick=False))
    assert list(runs) == names.split() and list(bench_step.rivals(PLAN, precision, True))[:2] == [
        "peer",
        "ours",
    ]
    assert runs["peer"]() == (False, "tf32" if device == "cuda" else "fp32")
    assert runs["peer_tuned"]() == (True, precision)
    assert runs["ours"]() is None, "hpcphotoz train as it comes"
    same = bench_step.aliases(precision)
    record = bench_step.compared({name: [run(float(len(name)))()] for name in runs}, PLAN, same)
    assert all(record[ratio] for ratio in bench_step.RATIOS), "each ratio is there"


def test_without_the_peer_ours_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*given: object, **options: object) -> Rate:
        raise RuntimeError("run `make peers` first")

    path = tmp_path / "step.json"
    monkeypatch.setattr(train_runs, "peer", absent)
    monkeypatch.setattr(train_runs, "peer_versions", absent)
    monkeypatch.setattr(train_runs, "ours", lambda plan, options=None: Rate(5.0, 0.0, 1.0))
    monkeypatch.setattr(train_runs, "write_dataset", lambda out, objects: None)
    for part in ("overhead", "add_passes", "add_starts"):
        monkeypatch.setattr(bench_step, part, lambda *given: None)
    monkeypatch.setattr(sys, "argv", ["bench_step.py", "--networks", "compact", "--json", str(path)])
    with pytest.raises(SystemExit) as end:
        bench_step.main()
    record = json.loads(path.read_text())
    assert end.value.code == 1 and "compact, peer" in record["failures"]
    assert record["figures"]["peer"]["compact"]["images_per_s"]["ours"]["median"] == 5
    assert record["figures"]["ratio_peer_loop"] is None and "make peers" in capsys.readouterr().out


def test_a_program_is_stopped_after_enough_steps(tmp_path: Path) -> None:
    """Our runs are planned for many epochs, so that `auto` does not see a short run, and then stopped."""
    script, lines = tmp_path / "run.py", tmp_path / "metrics.jsonl"
    script.write_text(
        "import signal, sys\n"
        "def record(*_):\n"
        f"    open({str(tmp_path / 'stopped')!r}, 'w').close()\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, record)\n"
        f"open({str(lines)!r}, 'w').write('line' + chr(10))\n"
        "while True:\n"
        "    signal.pause()\n"
    )
    train_runs.launch("any", Path(sys.executable), 1, [script], timeout_s=100, enough=lines.exists)
    assert (tmp_path / "stopped").exists()


@pytest.mark.slow
def test_a_program_that_fails_or_hangs_is_an_error(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text("raise ValueError('wrong')\n")
    with pytest.raises(RuntimeError, match="ended with status 1") as failed:
        train_runs.launch("any", Path(sys.executable), 1, [script], timeout_s=100)
    assert "ValueError: wrong" in str(failed.value)
    script.write_text("import signal\nsignal.pause()\n")
    with pytest.raises(RuntimeError, match="took more than 3 s"):
        train_runs.launch("any", Path(sys.executable), 1, [script], timeout_s=3)
