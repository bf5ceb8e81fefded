"""`status` with a squeue of the test's: every state and reason of Slurm, in words and by its exit status."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from hpcphotoz import provenance
from hpcphotoz.__main__ import main
from hpcphotoz.heartbeat import Beat, Heartbeat, write_heartbeat
from hpcphotoz.launch.follow.queue import read_queue
from hpcphotoz.launch.follow.submissions import read_submissions, record_submission, stamp
from hpcphotoz.locks.lock import lock_file
from hpcphotoz.world import World
from tests.helpers.launch.runs import Install

FIELDS = "JobArrayID JobID State Reason StartTime RestartCnt exit_code NodeList SubmitTime WorkDir".split()


def squeue(install: Install, *jobs: str, folder: object = "") -> None:
    """A squeue that knows jobs, each "id state reason start restarts exit_code nodes", ~ for a space.

    Args:
        install: puts a program first in PATH.
        jobs: what it knows.
        folder: in which they started.
    """
    lines = []
    for job in jobs:
        job_id, *values = job.split()
        lines.append(
            "|".join([job_id, job_id, *(one.replace("~", " ") for one in values), "N/A", str(folder), ""])
        )
    install("squeue", "\n".join(["cat <<'END'", *lines, "END"]))


def submitted(run: Path, *job_ids: str) -> Path:
    """A run folder for which jobs were submitted."""
    (run / "launch").mkdir(parents=True, exist_ok=True)
    for number, job_id in enumerate(job_ids):
        record_submission(run / "launch", job_id, ("hpcphotoz", "launch"), 2, 4)
        path = run / "launch" / f"{job_id}.json"
        facts = json.loads(path.read_text())
        path.write_text(json.dumps({**facts, "time": facts["time"] - 100 + number}))
    return run


def started(run: Path, job_id: str, monkeypatch: pytest.MonkeyPatch, **end: Any) -> None:
    """Record a start of a run by a job, with its end if one is given."""
    monkeypatch.setenv("SLURM_JOB_ID", job_id)
    run.mkdir(exist_ok=True)
    provenance.record_start(run, World(), {"last_step": 100, "step": 0})
    monkeypatch.delenv("SLURM_JOB_ID")
    if end:
        provenance.record_end(run, **end)


def told(run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and words of `status`."""
    capsys.readouterr()
    return main(["status", str(run)]), capsys.readouterr().out


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "jobs of higher priority are before it (Priority)"),
        ("Resources", "waits for nodes to become free (Resources)"),
        ("QOSMaxJobsPerUserLimit", "a limit of the QOS is reached (QOSMaxJobsPerUserLimit)"),
        ("AssocGrpGRESMinutes", "a limit of your account is reached (AssocGrpGRESMinutes)"),
        ("MaxCpuPerAccount", "a limit is reached (MaxCpuPerAccount)"),
        ("DependencyNeverSatisfied", "never begins, as the job it depends on failed: cancel it"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "is down, drained or reserved (ReqNodeNotAvail, Unav"),
        ("PartitionConfig", "the partition does not admit such a job: cancel it, and keep to the limits"),
        (
            "PartitionOfALaterSlurm",
            "`scontrol show partition` gives, or take another (PartitionOfALaterSlurm)",
        ),
        ("(Nodes required for job are DOWN)", "Slurm says: (Nodes required for job are DOWN)"),
    ],
)
def test_a_waiting_job_says_why(
    reason: str, words: str, install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = submitted(tmp_path / "run", "12")
    squeue(install, f"12 PENDING {reason.replace(' ', '~')} 2031-01-02T03:04:05 0 0 ~")
    status, text = told(run, capsys)
    assert status == 0 and f"{run}: pending since " in text and words in text
    assert "; expected to begin 2031-01-02T03:04:05" in text and "starts" not in text


def test_a_preempted_job_is_requeued(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path / "run", "12")
    started(run, "12", monkeypatch, outcome="stopped", reason="SIGUSR2 received", step=40)
    squeue(install, "12 PENDING BeginTime N/A 1 0 ~")
    status, text = told(run, capsys)
    assert status == 0
    assert ": requeued at step 40 of 100: job 12 waits for its begin time (BeginTime); requeued once;" in text
    started(run, "12", monkeypatch, outcome="stopped", reason="SIGUSR2 received", step=60)
    squeue(install, "12 PENDING Resources N/A 2 0 ~")
    assert "requeued at step 60 of 100" in (words := told(run, capsys)[1]) and "requeued 2 times" in words
    squeue(install, "12 RUNNING None 2031-01-02T03:04:05 2 0 n[1-2]")
    status, text = told(run, capsys)
    assert status == 0 and ": running on n[1-2] since 2031-01-02T03:04:05" in text and "job 12 begins" in text


ENDS = [
    ("FAILED", 3 << 8, "failed (Slurm: FAILED, exit code 3)"),
    ("TIMEOUT", 0, "reached its time limit (Slurm: TIMEOUT)"),
    ("OUT_OF_MEMORY", 125, "ran out of memory (Slurm: OUT_OF_MEMORY)"),
    ("NODE_FAIL", 0, "lost a node (Slurm: NODE_FAIL)"),
    ("BOOT_FAIL", 0, "had a node that did not boot (Slurm: BOOT_FAIL)"),
    ("DEADLINE", 0, "reached its deadline (Slurm: DEADLINE)"),
    ("PREEMPTED", 0, "was preempted (Slurm: PREEMPTED)"),
]


@pytest.mark.parametrize(("state", "exit_status", "words"), ENDS)
def test_what_slurm_said_of_a_killed_job(
    state: str,
    exit_status: int,
    words: str,
    install: Install,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a job that trained, and of one that never came so far."""
    squeue(install, *(f"{number} {state} None 2031-01-02T03:04:05 0 {exit_status} n1" for number in (12, 13)))
    run = submitted(tmp_path / "run", "12")
    started(run, "12", monkeypatch)
    status, text = told(run, capsys)
    assert status == 1 and "ended without a record" in text and f"; job 12 {words}" in text
    status, text = told(submitted(tmp_path / "never", "13"), capsys)
    assert status == 1 and ": failed, " in text and f": before it trained; job 13 {words}" in text


def test_a_cancelled_job_is_stopped(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue(install, "12 CANCELLED None N/A 0 0 ~")
    status, text = told(submitted(tmp_path / "never", "12"), capsys)
    assert status == 75 and ": cancelled before it trained\n" in text and "saved" not in text
    run = submitted(tmp_path / "run", "12")
    started(run, "12", monkeypatch, outcome="stopped", reason="SIGTERM received", step=40)
    status, text = told(run, capsys)
    assert (
        status == 75
        and "told to stop (SIGTERM); saved; job 12 was" in text
        and "was cancelled (Slurm: CANCELLED)" in text
    )


def test_jobs_of_a_chain_are_named_and_not_asked_for_twice(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path / "run", "12", "13", "14")
    waits = [f"{job} PENDING Dependency N/A 0 0 ~" for job in (13, 14)]
    squeue(install, "12 PENDING Priority N/A 0 0 ~", *waits)
    assert "; then 2 jobs of it: 13, 14\n" in told(run, capsys)[1]
    started(run, "12", monkeypatch, outcome="finished", reason=None, step=100)
    squeue(install, "12 COMPLETED None N/A 0 0 ~", *waits)
    status, text = told(run, capsys)
    assert status == 0 and "finished at step 100 of 100" in text and "then 2 jobs" in text
    squeue(install, *(f"{job} CANCELLED None N/A 0 0 ~" for job in (13, 14)))
    assert "finished at step 100 of 100" in (words := told(run, capsys)[1]) and "then" not in words


def test_a_chain_whose_next_job_never_begins_tells_of_the_failure(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path / "run", "12", "13")
    started(run, "12", monkeypatch, outcome="failed", reason="not finite")
    squeue(install, "12 FAILED None N/A 0 256 n1", "13 PENDING DependencyNeverSatisfied N/A 0 0 ~")
    status, text = told(run, capsys)
    assert status == 1 and ": failed" in text and "not finite" in text and "13" in text


def test_a_job_of_another_cluster_with_the_same_number_is_not_taken_for_the_runs(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = submitted(tmp_path / "run", "12")
    install("squeue", "echo '12|12|RUNNING|None|2020-01-01T00:00:00|0|0|n7|2020-01-01T00:00:00||'")
    status, text = told(run, capsys)
    assert status == 1 and "n7" not in text and "Slurm does not know it any more" in text


def test_without_slurm_the_folder_alone_tells_and_that_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [submitted(tmp_path / "sweep" / name, "12") for name in ("a", "b")]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["status", str(runs[0])]) == 0
    said = capsys.readouterr()
    assert ": pending since " in said.out and said.err.count("no squeue here") == 1
    assert main(["status", str(tmp_path / "sweep")]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2 and said.err.count("no squeue here") == 1
    started(runs[0], "12", monkeypatch, outcome="finished", reason=None, step=100)
    assert main(["status", str(runs[0])]) == 0 and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "Unable to contact slurm controller"),
        ("echo '12|RUNNING|'", "not understood"),
        ("echo 'JOBID PARTITION'", "not understood"),
        ("echo '12|12|RUNNING|None|soon|0|0|n1|N/A||'", "not understood"),
        ("exit 7", "exit status 7"),
        (
            "printf 'squeue: error: no host\\nsqueue: error: no  answer\\n' >&2; exit 1",
            "squeue: no host; no answer:",
        ),
    ],
)
def test_an_answer_that_is_none_is_a_problem(script: str, problem: str, install: Install) -> None:
    install("squeue", script)
    queue = read_queue(["12"])
    assert not queue.jobs and problem in queue.problem and "the run folder alone tells" in queue.problem


def test_squeue_is_asked_once_for_all_jobs_and_never_for_none(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("squeue", f'echo "$@" >> {tmp_path}/asked; env | grep -c SQUEUE_ >> {tmp_path}/asked; exit 0')
    monkeypatch.setenv("SQUEUE_USERS", "nobody")
    assert read_queue([]).jobs == {} and not (tmp_path / "asked").exists()
    read_queue(["13", "12", "13", "4_1"])
    words, filters = (tmp_path / "asked").read_text().splitlines()
    assert "--jobs=12,13,4_1" in words and words.count(":|") == len(FIELDS) and filters == "0"


def test_a_job_that_slurm_has_forgotten(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    run = submitted(tmp_path / "run", "12")
    status, text = told(run, capsys)
    assert status == 1 and "wrote no log, and Slurm does not know it any more" in text
    started(run, "12", monkeypatch)
    (run / "launch" / "12_0_log.out").write_text(
        "rank 0 of 4 on n1, code x, restart 0\n"
        "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some tasks were OOM Killed.\n"
    )
    status, text = told(run, capsys)
    assert status == 1 and "; job 12 ran out of memory (Slurm: OUT_OF_MEMORY)" in text


def test_runs_of_earlier_versions_have_their_job_from_the_script(tmp_path: Path) -> None:
    launch = tmp_path / "run" / "launch"
    launch.mkdir(parents=True)
    (launch / "7_submission.sh").touch()
    record_submission(launch, "9", ("hpcphotoz",), 2, 8)
    (launch / "11.json").write_text("{")
    old, new, torn = read_submissions(tmp_path / "run")
    assert [old.job_id, new.job_id, torn.job_id] == ["7", "9", "11"]
    assert (new.nodes, new.tasks, new.kind) == (2, 8, "train") and abs(new.time - time.time()) < 60


def test_a_running_run_shows_figures_of_its_own_start(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path / "run", "12")
    started(run, "12", monkeypatch)
    (run / "logs").mkdir()
    (run / "config.toml").write_text("[run]\nglobal_batch = 50\n")
    line = {"step": 20, "epoch": 0, "images_per_s": 1000.0, "data_wait": 0.0123}
    (run / "metrics.jsonl").write_text(json.dumps(line) + '\n{"part": "event", "step": 20}\n{"step": 21')
    squeue(install, "12 RUNNING None 2031-01-02T03:04:05 1 0 n1")
    with lock_file(run / "logs" / "lock", "busy", "wait"):
        host, now = os.uname().nodename, time.time()
        beat = Beat(0, host, os.getpid(), "rank", 22, "passes", now, now)
        write_heartbeat(run, Heartbeat(now, 5.0, (beat,)))
        status, text = told(run, capsys)
        assert status == 0
        assert (
            " at step 22 of 100 (1,000 images/s, data wait 1.2 %, ETA 0:00:04); job 12; requeued once" in text
        )
        facts = json.loads((main(["status", str(run), "--json"]), capsys.readouterr().out)[1])
        assert (facts["state"], facts["figures"]["total"], facts["requeues"]) == ("running", 100, 1)


def test_a_sweep_has_a_line_for_each_run_and_its_jobs(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, names = tmp_path / "sweep", ["eps=1", "eps=2"]
    (sweep / "launch").mkdir(parents=True)
    (sweep / "launch" / "3_submission.sh").touch()
    runs = [{"folder": name, "values": {}, "job": f"3_{k}"} for k, name in enumerate(names)]
    (sweep / "sweep.json").write_text(json.dumps({"keys": ["eps"], "runs": runs}))
    squeue(install, "3_0 FAILED None N/A 0 256 n1", "3_1 PENDING JobArrayTaskLimit N/A 0 0 ~")
    (sweep / "launch" / "3_0_0_log.out").write_text("Traceback (most recent call last):\nOSError: no\n")
    assert main(["status", str(sweep)]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:3] == ["failed", "-", str(sweep / "eps=1")] and "OSError: no" in first
    assert second.split()[0] == "pending" and "as many jobs of its array run" in second


def test_a_run_submitted_twice_is_finished_when_the_first_job_has_finished_it(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path / "run", "12")
    started(run, "12", monkeypatch)
    record_submission(run / "launch", "13", ("hpcphotoz",), 2, 4)
    log = run / "launch" / "13_0_log.out"
    log.write_text(
        "Traceback (most recent call last):\nhpcphotoz.errors.BadInput: another process trains here\n"
    )
    path = run / "provenance.json"
    record = json.loads(path.read_text())
    at = time.time()
    end = {"time": stamp(at + 60), "outcome": "finished", "reason": None, "step": 100}
    record["starts"][0] |= {"time": stamp(at - 60), "end": end}
    path.write_text(json.dumps(record))
    install("squeue", "exit 0")
    status, text = told(run, capsys)
    assert status == 0 and ": finished at step 100" in text
    # Had it stopped, and the second job failed after that, the failure would count.
    end["outcome"] = "stopped"
    path.write_text(json.dumps(record))
    assert told(run, capsys)[1].startswith(f"{run}: stopped")
    os.utime(log, (at + 120, at + 120))
    record_submission(run / "launch", "13", ("hpcphotoz",), 2, 4)
    assert told(run, capsys)[1].startswith(f"{run}: failed")


@pytest.mark.parametrize("value", ["1e999", "NaN", "-5", "1" + "0" * 400, "[" * 5000])
def test_damaged_figures_and_times_are_left_out(
    value: str,
    install: Install,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install("squeue", "exit 0")
    run = submitted(tmp_path / "run", "12")
    started(run, "12", monkeypatch, outcome="failed", reason="x", step=3)
    (run / "metrics.jsonl").write_text(f'{{"step": 3, "images_per_s": {value}, "data_wait": {value}}}\n')
    (run / "launch" / "13.json").write_text(f'{{"job_id": "13", "time": {value}}}')
    (run / "logs" / "failures").mkdir(parents=True)
    (run / "logs" / "failures" / "0-rank-0.json").write_text(
        f'{{"time": {value}, "error": "e", "kind": "x"}}'
    )
    assert told(run, capsys)[0] == 1 and main(["logs", str(run), "--errors"]) == 0


def test_a_job_whose_predecessor_did_not_finish_has_not_begun(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm removes it as if it were cancelled, and forgets it."""
    before, run = submitted(tmp_path / "c", "11"), tmp_path / "run"
    started(before, "11", monkeypatch, outcome="failed", reason="not finite")
    (run / "launch").mkdir(parents=True)
    command = ("hpcphotoz", "launch", "slurm", "--after", str(before), "--", "train", "--out", "a b")
    record_submission(run / "launch", "12", command, 1, 1)
    said = f"not begun: the run it waited for ({before}) did not finish"
    for jobs in (["12 CANCELLED None N/A 0 0 ~"], ["12 CANCELLED DependencyNeverSatisfied N/A 0 0 ~"], []):
        squeue(install, *jobs)
        status, text = told(run, capsys)
        assert status == 75 and said in text and "cancelled" not in text
        assert (
            text.splitlines()[1]
            == f"resume with: hpcphotoz launch slurm --after {before} -- train --out 'a b'"
        )
    started(before, "11", monkeypatch, outcome="finished", reason=None, step=100)
    status, text = told(run, capsys)
    assert status == 1 and "was removed from the queue before it began" in text


def test_a_later_job_that_waits_for_more_than_its_turn_says_so(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = submitted(tmp_path / "run", "12", "13", "14")
    squeue(
        install,
        *(f"{12 + k} PENDING {why} N/A 0 0 ~" for k, why in enumerate(["Priority", *["JobHeldUser"] * 2])),
    )
    assert "(Priority); job 13, 14 is held: `scontrol release` lets it go" in told(run, capsys)[1]
    assert main(["status", str(tmp_path)]) == 0
    assert "(job 12; jobs of higher priority" in capsys.readouterr().out


def test_only_a_running_run_has_a_time_to_its_end(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path / "run", "12")
    started(run, "12", monkeypatch, outcome="stopped", reason="SIGUSR2 received", step=20)
    (run / "config.toml").write_text("[run]\nglobal_batch = 50\n")
    (run / "metrics.jsonl").write_text('{"step": 20, "epoch": 0, "images_per_s": 1000.0}\n')
    squeue(install)
    status, text = told(run, capsys)
    assert status == 75 and "1,000 images/s" in text and "ETA" not in text
    assert ": time limit or preemption (SIGUSR2); saved" in text
