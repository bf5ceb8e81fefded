"""The file of a rank's failure, and which failure came first."""

import json
from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.requeue.failures import read_failures, recording_own_failure


def fail(run: Path, rank: int, error: BaseException, job: str = "7") -> None:
    with pytest.raises(type(error)), recording_own_failure(run, job, rank):
        raise error


def test_the_first_failure_of_a_start_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    fail(tmp_path, 11, ValueError("first\nsecond line"))
    fail(tmp_path, 2, RuntimeError("a consequence"))
    fail(tmp_path, 1, ValueError("of another job"), "8")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    fail(tmp_path, 4, ValueError("of another start"))
    found = read_failures(tmp_path, "7", 2)
    assert [(each.rank, each.host, each.kind, each.error) for each in found] == [
        (11, "n2", "ValueError", "ValueError: first"),
        (2, "n2", "RuntimeError", "RuntimeError: a consequence"),
    ]
    assert "test_failures.py" in found[0].traceback and found[0].traceback.rstrip().endswith("second line")
    content = json.loads((tmp_path / "logs" / "failures" / "2-rank-11.json").read_text())
    assert {"time", "rank", "host", "restart", "error", "traceback"} <= set(content)


def test_bad_input_is_told_by_its_line_and_another_rank_s_failure_not_at_all(tmp_path: Path) -> None:
    fail(tmp_path, 0, BadInput("data: no such dataset"))
    fail(tmp_path, 1, SystemExit(2))
    assert [each.error for each in read_failures(tmp_path, "7", 0)] == ["data: no such dataset"]


def test_a_damaged_file_is_left_out_and_a_folder_that_cannot_be_written_hides_no_failure(
    tmp_path: Path,
) -> None:
    (tmp_path / "logs" / "failures").mkdir(parents=True)
    (tmp_path / "logs" / "failures" / "0-rank-0.json").write_text("{")
    assert read_failures(tmp_path, "7", 0) == []
    (tmp_path / "file").touch()
    fail(tmp_path / "file", 0, ValueError("the failure"))
