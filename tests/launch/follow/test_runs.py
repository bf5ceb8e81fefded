"""The user's list of runs: appended by train and launch, bounded, and no run fails because of it."""

import json
import os
import shutil
from pathlib import Path

import pytest

from hpcphotoz import provenance
from hpcphotoz.__main__ import main
from hpcphotoz.errors import BadInput
from hpcphotoz.launch.follow import runs
from hpcphotoz.launch.follow.runs import register_run, registered_runs, registry_file, runs_of
from hpcphotoz.world import World
from tests.helpers.commands import TINY


@pytest.fixture(autouse=True)
def own_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def run(folder: Path) -> Path:
    """A run folder in which a training has ended."""
    folder.mkdir(parents=True)
    provenance.record_start(folder, World(), {"last_step": 9, "step": 0})
    provenance.record_end(folder, "finished", None, step=9)
    return folder


def test_train_adds_its_run_and_status_lists_the_newest_first(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"]) == 0 and capsys.readouterr().out.startswith("no runs: ")
    older, monkey = run(tmp_path / "older\n"), run(tmp_path / "gone")
    register_run(older)
    register_run(monkey)
    shutil.rmtree(monkey)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "standard", "--data", str(dataset), "--out", "new", *TINY]) == 0
    capsys.readouterr()
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["finished", "2/2", str(tmp_path / "new")],
        ["finished", "9/9", str(tmp_path / "older\\n")],
    ]
    assert main(["status", "--json"]) == 0
    assert [one["step"] for one in json.loads(capsys.readouterr().out)] == [2, 9]
    assert main(["status", "--all", "new"]) == 2


def test_a_run_is_listed_once_and_only_the_newest_are(tmp_path: Path) -> None:
    folders = [run(tmp_path / str(number)) for number in range(4)]
    for folder in [*folders, folders[1]]:
        register_run(folder)
    assert [path.name for path in registered_runs(None)] == ["1", "3", "2", "0"]
    assert [path.name for path in registered_runs(2)] == ["1", "3"]


def test_the_list_is_bounded_and_damaged_lines_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(tmp_path / "run")
    register_run(folder)
    with registry_file().open("a") as file:
        file.write('{"run": 3}\n[]\n{"run": "relative"}\n{"run": "/x", "time')
        file.write("\n" + "".join(json.dumps({"run": f"/gone/{k}", "time": 0}) + "\n" for k in range(9000)))
    assert registered_runs(None) == [folder]
    register_run(folder)
    lines = registry_file().read_text().splitlines()
    assert len(lines) == runs._KEPT and json.loads(lines[-1])["run"] == str(folder)
    assert registered_runs(None) == [folder]


def test_a_list_that_cannot_be_written_fails_no_run_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file in its place")
    register_run(tmp_path / "run")
    assert caplog.text.count("cannot write the list of runs") == 1
    assert registered_runs(None) == []


def test_a_relative_state_folder_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registry_file() == tmp_path / ".local/state/hpcphotoz/runs.jsonl"


def test_the_runs_of_a_folder(tmp_path: Path) -> None:
    names = ["b", "a"]
    folders = [run(tmp_path / "out" / name) for name in names]
    (tmp_path / "out" / "launch").mkdir()
    assert runs_of(folders[0]) == [folders[0]]
    assert runs_of(tmp_path / "out") == [folders[1], folders[0]]
    sweep = {"runs": [{"folder": name, "job": None} for name in [*names, "../x"]]}
    (tmp_path / "out" / "sweep.json").write_text(json.dumps(sweep))
    assert runs_of(tmp_path / "out") == folders  # in the order of the sweep
    for wrong in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(BadInput, match="want a run folder"):
            runs_of(wrong)
    assert os.listdir(tmp_path / "out" / "launch") == []


@pytest.mark.parametrize("name", ["/a\0b", "/a\ud800b", "/" + "x" * 5000])
def test_names_of_the_list_that_no_folder_has_are_left_out(name: str, tmp_path: Path) -> None:
    register_run(run(tmp_path / "run"))
    with registry_file().open("a") as file:
        file.write(json.dumps({"run": name, "time": 1.0}) + "\n")
    assert registered_runs(None) == [tmp_path / "run"]


def test_a_name_in_the_file_of_a_sweep_does_not_lead_out_of_it(tmp_path: Path) -> None:
    inside = run(tmp_path / "sweep" / "a")
    run(tmp_path / "other")
    entries: list[object] = [
        {"folder": name, "values": {}, "job": "7_0"} for name in ("..", ".", "", "../other", "a")
    ]
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"keys": [], "runs": entries}))
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "7.json").write_text("{}")
    assert runs_of(tmp_path / "sweep") == [inside]
