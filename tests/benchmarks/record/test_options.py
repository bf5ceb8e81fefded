"""What cannot be used is refused before anything is simulated or trained, in one line and with status 2."""

import os
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.record import __main__ as program
from benchmarks.record import entry as entries
from benchmarks.record import options, table, training
from benchmarks.record.task import TASKS, Task
from tests.benchmarks.record.test_entry import GOOD
from tests.helpers.datasets import make_dataset

USE_CORES = options.use_cores  # the fixture's takes none


class Begun(Exception):
    """Something is simulated or trained."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> "Run":
    def begin(*given: object) -> None:
        raise Begun

    monkeypatch.setattr(Task, "dataset", begin)
    monkeypatch.setattr(options, "use_cores", lambda cores: None)
    return Run(monkeypatch, tmp_path / "build", capsys)


class Run:
    """Calls the program in this process, with a folder that does not exist yet."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._monkeypatch, self._folder, self._capsys = monkeypatch, folder, capsys

    def __call__(self, *words: object) -> None:
        given = ["record", "--folder", self._folder, *words]
        self._monkeypatch.setattr(sys, "argv", list(map(str, given)))
        program.main()

    def refused(self, *words: object) -> str:
        """The line that refuses these options."""
        with pytest.raises(SystemExit) as end:
            self(*words)
        line, rest = self._capsys.readouterr().err.split("\n", 1)
        assert end.value.code == 2 and rest == "" and not self._folder.exists()
        return str(line).removeprefix("benchmarks.record: ")


def test_what_can_be_used_begins(run: Run, tmp_path: Path) -> None:
    table.write([], tmp_path / "record.json", "validation")
    with pytest.raises(Begun):
        run("--entry", "adversarial", "--seeds", 0, 2**31 - 1, "--judge", "validation", "--resume")
    with pytest.raises(Begun):
        run("--entry", "adversarial", "--judge", "validation", "--json", tmp_path / "record.json")
    with pytest.raises(Begun):
        run("--entry", "adversarial", "--json", tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()


def test_seeds_and_entries_are_given_once_and_exist(run: Run) -> None:
    assert run.refused("--seeds", 0, 0, 1, 2) == "--seeds: 0 is given 2 times: give it once"
    assert run.refused("--seeds", 0, -1) == "--seeds -1: want whole numbers from 0 to 2147483647"
    assert run.refused("--seeds", 2**31).startswith("--seeds 2147483648: want")
    twice = run.refused("--entry", "adversarial", "adversarial")
    assert twice == "--entry: adversarial is given 2 times: give it once"
    # The second entry is read before the first is trained.
    assert "did you mean users-loop?" in run.refused("--entry", "adversarial", "users-lop")
    wrong = run.refused("--task", "gpu", "--entry", "users-loop")
    assert wrong == "entry 'users-loop' is of the task cpu: want --task cpu"


def test_a_malformed_entry_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "FOLDER", tmp_path)
    (tmp_path / "mine.toml").write_text("[entry")
    assert run.refused("--entry", "mine").startswith(f"{tmp_path / 'mine.toml'}: not TOML: ")


def test_the_file_of_rows_can_take_them(run: Run, tmp_path: Path) -> None:
    held, other = tmp_path / "record.json", tmp_path / "other.json"
    table.write([], held, "test")
    lost = tmp_path / "no/such/r.json"
    assert run.refused("--json", lost) == f"--json {lost}: no folder {lost.parent}: make it first"
    assert run.refused("--json", tmp_path).endswith("not a file that can be written: name another")
    for words in (["--judge", "validation"], ["--quick"]):
        assert run.refused(*words, "--json", held) == f"{held}: holds rows judged by test: name another file"
    table.write([], other, "validation", TASKS["gpu"])
    assert "rows of another target" in run.refused("--judge", "validation", "--json", other)
    for text, said in (
        ("{", "not JSON"),
        ("[]", "not a file of record rows"),
        ("{}", "not a file of record"),
    ):
        other.write_text(text)
        assert said in run.refused("--json", other) and other.read_text() == text


def test_other_galaxies_than_those_of_the_judge_are_refused(run: Run, tmp_path: Path) -> None:
    make_dataset(tmp_path / "galaxies" / "validation-24", n=24, shard_rows=8)
    words = ["--quick", "--folder", tmp_path / "galaxies"]
    assert "not the 24 galaxies of seed 3" in run.refused(*words, "--judge", "validation")
    with pytest.raises(Begun):
        run(*words)
    file = tmp_path / "file"
    file.touch()
    said = run.refused("--folder", file / "under")
    assert said == f"--folder {file / 'under'}: {file} is not a folder that can be written: choose another"


def test_the_packages_of_the_loop_are_wanted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking() -> Path:
        raise RuntimeError("no torchattacks: run `make peers` first")

    monkeypatch.setattr(training, "peers_python", lacking)
    said = run.refused("--entry", "adversarial", "users-loop")
    assert said == "entry 'users-loop': no torchattacks: run `make peers` first"
    monkeypatch.setattr(training, "peers_python", lambda: Path(sys.executable))
    with pytest.raises(Begun):
        run("--entry", "adversarial", "users-loop")
    monkeypatch.setattr(entries, "FOLDER", tmp_path)
    (tmp_path / "mine.toml").write_text(GOOD.replace('"hpcphotoz"', '"peer"'))
    assert "schedules constant and one_cycle alone" in run.refused("--entry", "mine")


def test_a_gpu_is_wanted_and_its_target(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = ["--task", "gpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.refused(*gpu, "--judge", "validation") == "task gpu: no CUDA device here"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert run.refused(*gpu).startswith("the target of the task gpu is not set: train")
    with pytest.raises(Begun):
        run(*gpu, "--judge", "validation")


def test_the_cores_are_wanted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "use_cores", USE_CORES)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *given: None, raising=False)
    assert run.refused("--quick", "--entry", "adversarial") == "1 core: the task is for 2"
