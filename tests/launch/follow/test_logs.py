"""`logs`: the newest log of a rank, its end, what follows, and the tracebacks of those that failed."""

import os
from pathlib import Path

import pytest

from hpcphotoz import provenance
from hpcphotoz.__main__ import main
from hpcphotoz.launch.follow import logs
from hpcphotoz.launch.follow.logs import follow, last_lines, newest_log
from hpcphotoz.launch.follow.submissions import record_submission
from hpcphotoz.launch.requeue.record import KILLED, Requeue, RequeueRecord, record_file
from hpcphotoz.locks.lock import lock_file
from hpcphotoz.world import World
from tests.helpers.commands import fails
from tests.helpers.launch.runs import Install
from tests.launch.follow.test_failures import ERROR, log, record


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that a job begins again and again."""
    folder = tmp_path / "run"
    (folder / "logs").mkdir(parents=True)
    provenance.record_start(folder, World(), {})
    return folder


def test_the_newest_log_of_a_rank(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["logs", run], "rank 0 has written no log yet")
    (run / "logs" / "rank-0.log").write_text("of the trainer\n")
    assert newest_log(run, 0).name == "rank-0.log"
    newer = log(run / "launch", 0, "new\x1b[2J\tline\n", 2000.0)
    older = newer.with_name("7_0_log.out")
    older.write_text("old\n")
    os.utime(older, (1000.0, 1000.0))
    log(run / "launch", 10, "of rank 10\n", 3000.0)
    assert main(["logs", str(run), "--lines", "1"]) == 0
    assert capsys.readouterr().out == "new\\x1b[2J line\n"
    assert main(["logs", str(run), "--rank", "10", "--lines", "1"]) == 0
    assert capsys.readouterr().out == "of rank 10\n"


@pytest.mark.parametrize("count", [1, 7, 5000, 10**6])
def test_the_last_lines_of_a_long_file(count: int, tmp_path: Path) -> None:
    lines = [f"line {number} " + "x" * (number % 300) for number in range(6000)]
    (tmp_path / "log").write_text("\n".join(lines) + "\n")
    assert last_lines(tmp_path / "log", count) == lines[-count:]


def test_following_goes_on_through_the_next_job_and_ends_with_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_STATUS_EVERY", 1)
    first = log(run / "launch", 0, "one\n", 1000.0)
    steps = iter([b"tw", b"o\nthr", b"ee\n"])
    written: list[str] = []

    def wait(_: float) -> None:
        part = next(steps, None)
        if part is not None:
            with first.open("ab") as file:
                file.write(part)
            os.utime(first, (1000.0, 1000.0))
        elif not written:
            written.append("the next job")
            first.with_name("13_0_log.out").write_text("four\nend")
        else:
            lock.__exit__(None, None, None)

    lock = lock_file(run / "logs" / "lock", "busy", "wait")
    lock.__enter__()
    lines = list(follow(run, 0, 1, wait))
    assert lines == ["one", "two", "three", f"==> {first.with_name('13_0_log.out')} <==", "four", "end"]


def test_what_is_written_is_followed_once_and_in_whole_lines(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_STATUS_EVERY", 1)
    file = log(run / "launch", 0, "one\ntw", 1000.0)
    head = file.read_text().removesuffix("tw")
    contents = iter([f"{head}two\nthree\n", "new\n"])  # the second is shorter: the log was cut

    def wait(_: float) -> None:
        content = next(contents, None)
        if content is None:
            lock.__exit__(None, None, None)
        else:
            file.write_text(content)

    lock = lock_file(run / "logs" / "lock", "busy", "wait")
    lock.__enter__()
    found = follow(run, 0, 1, wait)
    assert next(found) == "one"
    file.write_text(f"{head}two\n")  # between the first look and the next
    assert list(found) == ["two", "three", "new"]


def test_errors_are_those_of_the_ranks_that_failed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(run), "--errors"]) == 0
    assert capsys.readouterr().out == f"{run}: no rank has recorded an error\n"
    for rank in range(40):
        record(run, 0, rank, 2000.0 + rank, f"rank {rank} failed", "OSError" if rank == 3 else "RankLost")
    assert main(["logs", str(run), "--errors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if line.startswith("rank ")]
    assert len(heads) == 40 and heads[0].endswith(": rank 3 failed") and heads[1].endswith(": rank 0 failed")
    assert lines[1:5] == ["  " + line for line in ERROR.format(3).splitlines()]
    assert main(["logs", str(run), "--errors", "--rank", "7"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(": rank 7 failed")
    fails(capsys, ["logs", run, "--errors", "--follow"], "leave out --follow")


def test_errors_without_records_are_read_from_the_logs_once_each(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = run / "launch"
    launch.mkdir()
    (launch / "12_submission.sh").touch()
    for rank in range(3):
        log(launch, rank, ERROR.format("any"), 2000.0 - rank)
    assert main(["logs", str(run), "--errors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines if line.startswith("rank")] == ["rank 2", "rank 1", "rank 0"]
    assert lines.count("  OSError: rank any cannot read") == 1
    assert lines.count("  traceback: that of rank 2") == 2


def test_a_folder_of_several_runs_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["logs", run.parent], f"holds several runs: give one, such as {run}")


def test_a_killed_rank_is_told_first_and_those_that_lost_it_have_a_line_each(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job was requeued since: its record and the log of the start before tell."""
    launch = run / "launch"
    record_submission(launch_of(run), "12", ("hpcphotoz", "launch"), 1, 3)
    for rank in (1, 2):
        record(run, 0, rank, 2000.0 + rank, "RankLost: misses rank 0", "RankLost")
    starts = "hpcphotoz: start 0 on n1\nsrun: error: n1: task 0: Killed\nhpcphotoz: start 1 on n1\nstep 9\n"
    (launch / "12_0_log.out").write_text(starts)
    RequeueRecord((Requeue(0, 4, KILLED, "n1"),)).write(record_file(run, "12"))
    assert main(["logs", str(run), "--errors"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("rank 0 on n1, ") and first.endswith(": killed, no error recorded")
    assert [line.split(",")[0] for line in others] == ["rank 1 on n0", "rank 2 on n0"]
    (launch / "12_0_log.out").write_text("")
    assert main(["logs", str(run), "--errors"]) == 0
    assert capsys.readouterr().out.startswith("a rank on n1, ")


def test_a_rank_without_a_log_says_why(
    run: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, ["logs", run, "--rank", "1"], "has rank 0 alone: there is no rank 1")
    (run / "provenance.json").unlink()
    record_submission(launch_of(run), "12", ("hpcphotoz", "launch"), 1, 2)
    install("squeue", "echo '12|12|PENDING|Priority|N/A|0|0||N/A||'")
    fails(
        capsys, ["logs", run], "the job is pending: job 12 jobs of higher priority are before it (Priority)"
    )
    fails(capsys, ["logs", run, "--rank", "7"], "has ranks 0 and 1: there is no rank 7")


def launch_of(run: Path) -> Path:
    """The launch folder of a run, made."""
    (run / "launch").mkdir(exist_ok=True)
    return run / "launch"
