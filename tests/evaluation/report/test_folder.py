"""Replacing a report: killed at any step, the folder holds one report, and the next call leaves no rest."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.report.folder import replace_report
from hpcphotoz.evaluation.report.section import FigureFile
from hpcphotoz.locks.lock import lock_file

# Copies report "first" into a fresh folder, writes "second", killed at its n-th change of the file system,
# then "last", for n = 0, 1, ... until nothing is left to be interrupted: each in a process of its own.
_KILLED_AT_EACH_STEP = """
import json, os, shutil, sys
from pathlib import Path
from hpcphotoz.evaluation.report.folder import replace_report
from hpcphotoz.evaluation.report.section import FigureFile

os.fsync = lambda number: None  # for power failures, not for kills
CHANGES = set(sys.argv[2:])

def write(out, name, kill_at=None):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seen = 0
    def count(event, arguments):
        nonlocal seen
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES and not reads:
            if seen == kill_at:
                os._exit(9)
            seen += 1
    sys.addaudithook(count)
    texts = {"report.html": f"<title>Photometric redshifts under attack: {name}",
             "metrics.json": f'"robustness_curves" {name}'}
    if name == "first":
        texts["certified_radii.csv"] = f"run,object_id,z_spec,z_smooth,radius {name}"
    replace_report(out, texts, [FigureFile(f"{n}-{name}.png", name, name.encode()) for n in "ab"])
    os._exit(0)

def files(out):
    return {str(p.relative_to(out)): p.read_text() for p in sorted(out.rglob("*")) if p.is_file()}

found, n, status = [], 0, 9
first = Path(sys.argv[1]) / "first"
first.mkdir()
assert write(first, "first") == 0
while status:
    out = first.with_name(str(n))
    shutil.copytree(first, out)
    status = write(out, "second", n)
    killed = files(out)
    assert write(out, "last") == 0
    found.append({"status": status, "killed": killed, "next": files(out)})
    n += 1
print(json.dumps(found))
"""


def _report(files: dict[str, str]) -> dict[str, str]:
    """The files that a user sees as those of a report: the others have names that begin with a dot."""
    return {name: text for name, text in files.items() if not name.startswith(".")}


@pytest.mark.parametrize(
    "changes",
    [
        ["os.rename"],
        pytest.param(
            ["os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "open"], marks=pytest.mark.slow
        ),
    ],
)
def test_killed_at_any_step_the_folder_holds_one_report_and_the_next_call_tidies_up(
    tmp_path: Path, changes: list[str]
) -> None:
    command = [sys.executable, "-c", _KILLED_AT_EACH_STEP, str(tmp_path), *changes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    complete = {
        name: {"report.html", "metrics.json", "figures/index.txt"} for name in ("first", "second", "last")
    }
    complete["first"] |= {"certified_radii.csv"}
    for name, names in complete.items():
        names |= {f"figures/{letter}-{name}.png" for letter in "ab"}
    seen: set[tuple[str | bool, ...]] = set()
    for one in found:
        left = _report(one["killed"])
        versions = [name for name in ("first", "second") if any(name in text for text in left.values())]
        assert len(versions) <= 1, left  # files of one report alone
        if "report.html" in left:
            assert set(left) == complete[versions[0]], left
        seen.add((*versions, "report.html" in left))
        assert set(one["next"]) == complete["last"], one["next"]
        assert not any("first" in text or "second" in text for text in one["next"].values())
    assert [one["status"] for one in found] == [9] * (len(found) - 1) + [0]
    # It was interrupted before, in and after the exchange of the reports.
    assert seen >= {("first", True), ("first", False), ("second", False), ("second", True)}, seen


def test_a_failed_move_brings_the_earlier_report_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {
        "report.html": "<title>Photometric redshifts under attack: ",
        "metrics.json": '"robustness_curves"',
    }
    replace_report(tmp_path, texts, [FigureFile("old.png", "first", b"first")])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    rename = os.rename

    def fails(source: Path, target: Path) -> None:
        if source.parent.name == "new" and source.name == "metrics.json":
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr("os.rename", fails)
    with pytest.raises(OSError, match="Input/output error"):
        replace_report(tmp_path, texts, [FigureFile("new.png", "second", b"second")])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_second_process_waits_until_the_first_report_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"report.html": "<title>Photometric redshifts under attack: second"}
    with ExitStack() as first:
        first.enter_context(lock_file(tmp_path / ".report.lock", "busy", "wait"))
        monkeypatch.setattr("time.sleep", lambda _: first.close())
        replace_report(tmp_path, texts, [])
    assert (tmp_path / "report.html").read_text() == texts["report.html"]


def test_a_second_process_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcphotoz.evaluation.report.folder._WAIT_S", 0.0)
    with lock_file(tmp_path / ".report.lock", "busy", "wait"):
        with pytest.raises(BadInput, match="another process is writing a report in it"):
            replace_report(tmp_path, {}, [])
    assert not list(tmp_path.iterdir())
