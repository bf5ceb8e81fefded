"""The first rank that failed is found among a thousand, from records or logs, by reading tails only."""

import json
import os
from pathlib import Path

import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.launch.follow import failures
from hpcphotoz.launch.follow.failures import first_failure, last_start, read_tail, traceback_in

RANKS = 1024
ERROR = (
    'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\nOSError: rank {} cannot read\n'
)
LOST = ERROR.replace("OSError: rank {} cannot read", "RankLost: rank {} misses rank 700")


def record(run: Path, restart: int, rank: int, time: float, error: str, kind: str = "OSError") -> None:
    """A record of a failure, written at its time."""
    folder = run / "logs" / "failures"
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"time": time, "rank": rank, "host": f"n{rank // 8}", "restart": restart, "kind": kind}
    path = folder / f"{restart}-rank-{rank}.json"
    path.write_text(json.dumps({**facts, "error": error, "traceback": ERROR.format(rank)}))
    os.utime(path, (time, time))


def log(launch: Path, rank: int, text: str, time: float) -> Path:
    """The log of a rank of job 12, last written at a time."""
    launch.mkdir(parents=True, exist_ok=True)
    path = launch / f"12_{rank}_log.out"
    path.write_text(f"rank {rank} of {RANKS} on n{rank // 8}, code /c, restart 0\n{text}")
    os.utime(path, (time, time))
    return path


def test_the_earliest_record_counts_and_not_that_of_rank_0(tmp_path: Path) -> None:
    for rank in range(RANKS):
        record(tmp_path, 0, rank, 2000.0 + (rank - 700) % RANKS, f"rank {rank} failed")
    found = first_failure(tmp_path, None, None)
    assert found and (found.rank, found.host, found.error) == (700, "n87", "rank 700 failed")
    assert found.traceback and found.traceback.endswith("OSError: rank 700 cannot read\n")


def test_a_rank_that_misses_another_one_is_not_the_first_whatever_its_clock_says(tmp_path: Path) -> None:
    record(tmp_path, 0, 3, 2000.0, "broken")
    record(tmp_path, 0, 2, 1999.0, "rank 3 is lost", kind="RankLost")
    found = first_failure(tmp_path, None, None)
    assert found and found.error == "broken"


def test_records_of_an_earlier_start_do_not_count(tmp_path: Path) -> None:
    record(tmp_path, 0, 1, 1000.0, "before")
    record(tmp_path, 1, 5, 2000.0, "now")
    torn = tmp_path / "logs" / "failures" / "1-rank-6.json"
    torn.write_text("{")
    os.utime(torn, (1999.0, 1999.0))
    found = first_failure(tmp_path, None, None)
    assert found and found.error == "now" and found.restart == 1
    assert first_failure(tmp_path, None, None, since=2001.0) is None
    record(tmp_path, 0, 4, 20_000.0, "of a later job, which begins with restart 0 again")
    found = first_failure(tmp_path, None, None)
    assert found and found.rank == 4


def test_a_rank_that_was_killed_is_the_first_though_only_those_that_miss_it_have_records(
    tmp_path: Path,
) -> None:
    launch = tmp_path / "launch"
    for rank in (0, 1, 3):
        record(tmp_path, 0, rank, 2000.0 + rank, "rank 2 is lost", kind="RankLost")
        log(launch, rank, LOST.format(rank), 2000.0)
    log(launch, 0, "srun: error: n2: task 2: Killed\n" + LOST.format(0), 2000.0)
    log(launch, 2, "step 7\n", 1999.0)
    found = first_failure(tmp_path, launch, "12")
    assert found and (found.rank, found.host, found.error) == (2, "n2", "killed, no error recorded")
    log(launch, 0, LOST.format(0), 2000.0)  # without srun
    found = first_failure(tmp_path, launch, "12")
    assert found and found.missed and found.rank == 0


def test_without_records_srun_names_the_rank_in_the_log_of_rank_0(tmp_path: Path) -> None:
    launch = tmp_path / "launch"
    told = "srun: error: n87: task 700: Exited with exit code 1\nsrun: error: n1: tasks 8-15: Killed\n"
    log(launch, 0, LOST.format(0) + told, 3000.0)
    log(launch, 9, LOST.format(9), 1000.0)
    log(launch, 700, "warming up\n" + ERROR.format(700) + "2031 flushed\n", 2000.0)
    found = first_failure(tmp_path, launch, "12")
    assert found and (found.rank, found.host, found.error) == (700, "n87", "OSError: rank 700 cannot read")
    log(launch, 700, "", 2000.0)  # killed: it wrote nothing
    found = first_failure(tmp_path, launch, "12")
    assert found and (found.rank, found.error, found.traceback) == (700, "Exited with exit code 1", None)


def test_without_records_and_srun_the_log_that_was_written_first_counts_and_few_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, read = tmp_path / "launch", list[str]()
    for rank in range(RANKS):
        log(launch, rank, "step 1\n" if rank % 2 else LOST.format(rank), 2000.0 + (rank - 701) % RANKS)
    log(launch, 703, ERROR.format(703), 1999.0)

    def reading(path: Path) -> str:
        read.append(path.name)
        return read_tail(path)

    monkeypatch.setattr(failures, "read_tail", reading)
    found = first_failure(tmp_path, launch, "12")
    assert found and (found.rank, found.error) == (703, "OSError: rank 703 cannot read")
    assert sorted(read) == ["12_0_log.out", "12_703_log.out"]


def test_the_traceback_of_an_earlier_start_in_the_same_log_does_not_count(tmp_path: Path) -> None:
    path = log(tmp_path / "launch", 0, ERROR.format(0) + "rank 0 of 4 on n2, code /c, restart 1\ngood\n", 9.0)
    assert first_failure(tmp_path, path.parent, "12") is None
    assert last_start(path.read_text()).startswith("rank 0 of 4 on n2")


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    path = log(tmp_path / "launch", 0, "x" * 99 + "\n", 9.0)
    with path.open("a") as file:
        file.writelines("0123456789" * 9 + "\n" for _ in range(20_000))
        file.write(ERROR.format(0))
    assert len(read_tail(path)) < failures.TAIL
    found = first_failure(tmp_path, path.parent, "12")
    assert found and found.error == "OSError: rank 0 cannot read"


def test_a_traceback_ends_with_its_error_and_holds_what_it_was_raised_from() -> None:
    chained = ERROR.format(1) + "\nDuring handling of the above exception, another exception occurred:\n\n"
    whole = chained + ERROR.format(2)
    assert traceback_in("before\n" + whole + "step 3\n" + ERROR.format(4)) == whole.rstrip("\n")
    assert traceback_in("step 1\n") is None


def test_status_prints_the_first_traceback_with_control_characters_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = tmp_path / "run" / "launch"
    log(launch, 1, ERROR.format("\x1b[31m1"), 4e9)
    (launch / "12_submission.sh").touch()
    assert main(["status", str(launch.parent)]) == 1
    head, *lines = capsys.readouterr().out.splitlines()
    assert ": failed, " in head and "\\x1b[31m1 cannot read" in head
    assert lines[0].startswith("first to fail: rank 1, ") and lines[1].strip() == ERROR.splitlines()[0]
    assert lines[-2].strip() == "OSError: rank \\x1b[31m1 cannot read" and "12_1_log.out" in lines[-1]


def test_a_mistake_of_the_user_is_one_line_from_records_and_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch, said = tmp_path / "run" / "launch", "data: no such dataset: ingest it"
    raised = ERROR.replace("OSError: rank {} cannot read", f"hpcphotoz.errors.BadInput: {said}")
    log(launch, 0, raised, 4e9)
    (launch / "12_submission.sh").touch()
    for _ in ("log", "record"):
        assert main(["status", str(launch.parent)]) == 1
        out = capsys.readouterr().out
        assert out.count(said) == 1 and len(out.splitlines()) == 1 and "Traceback" not in out
        record(launch.parent, 0, 0, 4e9, said, kind="BadInput")
