"""The program end to end on tiny sets, and options that it refuses before anything is simulated."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.paper.plan import QUICK
from tests.helpers.paths import ROOT


def paper(*words: str | Path, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.paper", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # three minutes of two idle cores, ten of busy ones
def test_a_quick_run_measures_all_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    frames, out = tmp_path / "none", tmp_path / "out"
    first = paper("--quick", "--out", out, "--frames", frames, "--minutes", "0.5", timeout_s=900)
    assert first.returncode == 1 and "no time for" in first.stdout, first.stderr
    assert "skipped: galaxies in real sky" in first.stdout
    before = {path: path.stat().st_mtime_ns for path in (out / "done").glob("*.json")}
    assert before
    done = paper("--quick", "--out", out, "--frames", frames, "--resume", timeout_s=1700)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == when for path, when in before.items()), "nothing is done twice"
    tree = json.loads((out / "paper.json").read_text())
    assert not tree["failed"] and not tree["left_out"] and len(tree["skipped"]) == 1
    runs = [f"{one.name}-seed-0" for one in QUICK.trainings if one.group != "sky"]
    for run in runs:
        assert tree["found"][f"pdfs-{run}"]["n"] == QUICK.sets["test"].objects
        (curve,) = tree["found"][f"curves-{run}"]["curves"].values()
        assert curve["apgd"][0]["eps"] == 0 and curve["apgd"][-1]["n"] == QUICK.curve_objects
    main = [run for run in runs if f"masking-{run}" in tree["found"]]
    matrix = tree["found"]["transfer"]["transfer"]
    assert len(main) == 5 and {(a, b) for a in matrix for b in matrix[a]} == {
        (a, b) for a in main for b in main if a != b
    }
    assert tree["found"]["neighbours"]["attacked"]["0"]["n"] == QUICK.curve_objects
    assert tree["found"]["limit"]["n"] == QUICK.limit_objects
    assert "All labels are simulated" in (out / "page/paper.md").read_text()
    again = paper("--quick", "--out", out)
    assert again.returncode == 2 and "holds files: add --resume" in again.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--out: want a folder"),
        (["--out", "{}/file"], "is not a folder that can be written"),
        (["--out", "{}"], "holds files: add --resume"),
        (["--out", "{}/new", "--minutes", "0"], "--minutes 0: want a number above 0"),
        (["--out", "{}/new", "--processes", "0"], "--processes 0: want 1 or more"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from benchmarks.paper.__main__ import main

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["paper", *(word.format(tmp_path) for word in words)])
    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err
    assert end.value.code == 2 and said in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
