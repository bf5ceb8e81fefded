"""`launch doctor` as a command: its report, exit status and options."""

import json
from pathlib import Path

import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.cli.cluster.doctor import table
from hpcphotoz.launch.doctor.finding import ok, problem, warning


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without Slurm."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "SBATCH_TIMELIMIT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_without_slurm_it_checks_this_machine(no_slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["launch", "doctor", "--folder", str(no_slurm)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("no Slurm on this machine: local checks only")
    assert any("no job was submitted" in line for line in lines) and "problem" in lines[-1]


def test_a_problem_gives_status_1_and_json_holds_it(
    no_slurm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    assert main(["launch", "doctor", "--folder", str(no_slurm), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    (bad,) = (each for each in found["findings"] if each["name"] == "interfaces")
    assert found["problems"] >= 1 and bad["level"] == "problem" and "nosuch0" in bad["text"] and bad["fix"]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "doctor", "--folder", str(tmp_path / "none")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no such folder" in line


def test_a_folder_to_which_slurm_cannot_write_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run%j").mkdir()
    assert main(["launch", "doctor", "--folder", str(tmp_path / "run%j")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Slurm would rewrite '%'" in line


def test_the_table_says_where_and_what_to_fix() -> None:
    lines = table(
        [ok("gloo", "2 GB/s"), warning("open files", "few", "more", "n1"), problem("job", "no", "yes")]
    )
    assert lines[0].split(maxsplit=2) == ["ok", "gloo", "2 GB/s"]
    assert "n1: few" in lines[1] and lines[2].split() == ["fix:", "more"]
    assert lines[-1] == "1 problem, 1 warning"
