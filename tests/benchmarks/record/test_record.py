"""The record program, end to end on tiny data."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.record import __main__ as program
from benchmarks.record import options
from benchmarks.record.entry import Entry
from benchmarks.record.task import Task
from tests.helpers.paths import ROOT


def record(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.record", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=840)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute on an idle machine, many on a busy one
def test_a_quick_record_trains_judges_and_writes_a_row(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    done = record("--quick", "--folder", tmp_path, "--json", path, "--entry", "adversarial-2026")
    assert done.returncode == 0, done.stderr
    tree = json.loads(path.read_text())
    (row,) = tree["rows"]
    (seed,) = row["seeds"]
    assert tree["judge"] == "quick" and row["seconds"] == seed["seconds"] > 0 and not row["passes"]
    assert seed["clean"]["n"] == seed["robust"]["n"] == 24
    assert set(seed["confirmations"]) == {"margin", "probability_margin", "square", "apgd_same_objects"}
    assert (tmp_path / "runs/adversarial-2026-seed-0/adversarial-2026-seed-0/config.toml").is_file()


def test_a_wrong_entry_is_one_line(tmp_path: Path) -> None:
    done = record("--quick", "--folder", tmp_path, "--entry", "adversarial-fats")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())
    said = "benchmarks.record: entry 'adversarial-fats': not known (did you mean adversarial-fast?); valid: "
    assert done.stderr.startswith(said)


@pytest.mark.parametrize(("passes", "status"), [(True, 0), (False, 1)])
def test_the_status_tells_whether_all_pass(
    passes: bool,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The galaxies of training and judge are there before the clock of the first training starts."""
    done: list[str] = []

    def train_all(entry: Entry, given: object) -> list[str]:
        done.append(f"train {entry.name}")
        return ["a network"]

    def verdict(entry: Entry, *rest: object) -> bool:
        return passes or entry.name != "adversarial"

    monkeypatch.setattr(options, "use_cores", lambda cores: None)
    monkeypatch.setattr(program, "train_all", train_all)
    monkeypatch.setattr(program, "verdict", verdict)
    monkeypatch.setattr(Task, "dataset", lambda self, name, folder: done.append(name))
    words = ["record", "--quick", "--folder", str(tmp_path), "--entry", "adversarial", "adversarial-fast"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        program.main()
    assert end.value.code == status
    assert done == ["train", "test", "train adversarial", "train adversarial-fast"]
    assert capsys.readouterr().out == ("" if passes else "not passed: adversarial\n")
