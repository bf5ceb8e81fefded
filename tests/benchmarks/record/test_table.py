"""The page of records says what record.json says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import harness
from benchmarks.record import entry as entries
from benchmarks.record import table
from benchmarks.record.task import CLEAN, CORES, EPS, FULL, ROBUST, SEEDS, STORAGE, TASKS
from hpcphotoz.errors import BadInput


def figures(clean: float = 0.016) -> dict[str, Any]:
    metrics = {"sigma_mad": clean, "eta": 0.03, "bias": 0.0, "crps": 0.01, "n": 9}
    confirmations = {"margin": 0.0123, "probability_margin": 0.0124}
    confirmations |= {"square": 0.0125, "apgd_same_objects": 0.016}
    return {"clean": metrics, "robust": metrics, "confirmations": confirmations}


def row(name: str, seconds: float, clean: float = 0.016, seeds: tuple[int, ...] = SEEDS) -> dict[str, Any]:
    taken = [seconds + 9, seconds, seconds - 9][: len(seeds)]
    return table.row(entries.read(name), seeds, taken, [figures(clean)] * len(seeds))


def test_the_page_is_that_of_the_results() -> None:
    text = (table.PAGE).read_text()
    assert text == table.page(table.read(), table.read(table.GPU_RESULTS)), (
        "run: python -m benchmarks.record --page"
    )
    for one in table.read() + table.read(table.GPU_RESULTS):
        entries.read(one["entry"])  # each row can be repeated
        assert one["seconds"] == sorted(seed["seconds"] for seed in one["seeds"])[len(one["seeds"]) // 2]
    if table.RESULTS.exists():
        assert json.loads(table.RESULTS.read_text())["judge"] == "test"


def test_rows_are_ranked_and_compared_with_the_loop_on_the_same_device() -> None:
    loop, ours = row("users-loop", 900.0), row("adversarial-2026", 300.0)
    other = {**row("adversarial-2026", 100.0), "device": "another"}
    text = table.page([loop, ours, other])
    assert text.index("| 1 | 100 | - |") < text.index("| 2 | 300 | 3.00 |") < text.index("| 3 | 900 | 1.00 |")
    assert "| 0.0123 | 0.0124 | - | 0.0125 / 0.0160 |" in text and "did not pass" not in text


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (row("adversarial-2026", 50.0, clean=0.017), "clean sigma_MAD 0.0170 > 0.0165"),
        (row("adversarial-2026", 50.0, seeds=(0, 1)), "2 seeds of 3"),
    ],
)
def test_a_row_that_does_not_pass_has_no_rank(bad: dict[str, Any], said: str) -> None:
    text = table.page([row("users-loop", 900.0), bad])
    assert "\n| 1 | 900 |" in text and "\n| 2 |" not in text
    assert f"Timed, and did not pass: adversarial-2026 ({said})." in text


def test_new_rows_take_the_place_of_those_of_the_same_entry(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert table.read(path) == []
    table.write([row("users-loop", 900.0), row("adversarial-2026", 300.0)], path, "test")
    table.write([row("adversarial-2026", 200.0)], path, "test")
    assert [(one["entry"], one["seconds"]) for one in table.read(path)] == [
        ("users-loop", 900.0),
        ("adversarial-2026", 200.0),
    ]
    with pytest.raises(BadInput, match="holds rows judged by test"):
        table.write([], path, "validation")
    with pytest.raises(BadInput, match="holds rows of another target"):
        table.write([], path, "test", TASKS["gpu"])


def test_the_present_record_is_the_quickest_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("users-loop", 900.0), row("adversarial-2026", 300.0, clean=0.02)]
    monkeypatch.setattr(table, "read", lambda path: rows)
    assert table.present_record() == "users-loop"
    monkeypatch.setattr(table, "read", lambda path: [])
    assert table.present_record() == "adversarial-2026"
    assert table.present_record("gpu") == "inception-adversarial"


def test_rows_of_a_gpu_have_a_table_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a target nothing passes; with one, ratios are those over the loop on the same GPU."""
    facts = {**harness.machine(), "device": "NVIDIA H200"}
    monkeypatch.setattr(table, "machine", lambda: facts)
    ours = row("inception-adversarial", 60.0)
    assert not ours["passes"] and ours["device"] == "NVIDIA H200" and ours["versions"]["torch"]
    text = table.page([row("users-loop", 900.0)], [ours])
    assert "did not pass: inception-adversarial (no verdict: the target of the task gpu is not set" in text
    assert "sigma_MAD not set yet" in text
    monkeypatch.setitem(TASKS, "gpu", replace(TASKS["gpu"], clean=0.02, robust=0.03))
    rows = [row("inception-adversarial", 60.0), row("users-loop-gpu", 240.0)]
    text = table.page([row("users-loop", 900.0)], rows)
    cpu, gpu = text.split("## On one GPU")
    assert "times as fast as `users-loop` |" in cpu and "times as fast as `users-loop-gpu` |" in gpu
    assert "| 1 | 900 | 1.00 | `users-loop` |" in cpu and "H200" not in cpu
    assert "| 1 | 60 | 4.00 | `inception-adversarial` |" in gpu and "| 2 | 240 | 1.00 |" in gpu
    assert "at most 0.02 on clean images and 0.03 under APGD" in gpu


def test_a_row_says_that_files_differed_from_the_commit() -> None:
    entry, commit = entries.read("users-loop"), "0123456789abcdef"

    def cell(commit: str | None) -> str:
        found = table.row(replace(entry, commit=commit), SEEDS, [9.0] * 3, [figures()] * 3)
        assert found["commit"] == commit
        return table.page([found]).split("| 1 | 9 |")[1].split("\n")[0].split(" | ")[-2]

    assert cell(commit) == "0123456" and cell(f"{commit}-dirty") == "0123456, changed" and cell(None) == "-"


def test_the_task_does_not_change() -> None:
    assert FULL.sets == {"train": (8192, 1), "test": (1024, 2), "validation": (1024, 3)}
    assert (FULL.steps, FULL.restarts, CLEAN, ROBUST, SEEDS) == (50, 2, 0.0165, 0.0215, (0, 1, 2))
    assert (EPS, CORES, STORAGE) == (0.1, 2, "float32")
    assert FULL.epochs is None and FULL.global_batch is None
    assert (FULL.device, FULL.workers, FULL.clean, FULL.robust) == ("cpu", 1, CLEAN, ROBUST)
    assert replace(TASKS["gpu"], device="cpu", workers=1, clean=CLEAN, robust=ROBUST) == FULL
