"""`cancel`: jobs by scancel, waiting ones first; a process here by SIGTERM; others by a file STOP."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hpcphotoz import provenance
from hpcphotoz.__main__ import main
from hpcphotoz.launch.jobs.after import active_job
from hpcphotoz.locks.lock import lock_file
from hpcphotoz.locks.owner import LockOwner
from hpcphotoz.world import World
from tests.helpers.commands import fails
from tests.helpers.launch.runs import Install
from tests.launch.follow.test_slurm_status import squeue, submitted

HOLDER = """import sys, time
from pathlib import Path
from hpcphotoz.launch.jobs.after import active_job
from hpcphotoz.locks.lock import lock_file
with lock_file(Path(sys.argv[1]), "busy", "wait"):
    print("held", flush=True)
    time.sleep(60)
"""


def scancel(install: Install, log: Path) -> None:
    install("scancel", f'echo "$@" >> {log}')


def test_waiting_jobs_go_first(install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = submitted(tmp_path / "run", "11", "12", "13", "14")
    states = ("COMPLETED None", "RUNNING None", "PENDING Dependency", "PENDING Dependency")
    squeue(install, *(f"{11 + k} {state} N/A 0 0 ~" for k, state in enumerate(states)))
    scancel(install, tmp_path / "log")
    assert main(["cancel", str(run)]) == 0
    assert (tmp_path / "log").read_text().splitlines() == ["13 14", "12"]
    lines = sorted(capsys.readouterr().out.splitlines())
    assert lines[0].startswith("job 12: cancelled while it ran: it saves a checkpoint first")
    assert [line.split(":")[0] for line in lines] == ["job 12", "job 13", "job 14"]


@pytest.mark.parametrize("elsewhere", ["another", "runs|a/launch/code-1"])
def test_a_job_of_the_same_number_in_another_folder_is_left_alone(
    elsewhere: str, install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = submitted(tmp_path / "run", "12")
    (tmp_path / elsewhere).mkdir(parents=True)
    scancel(install, tmp_path / "log")
    # Of another cluster, after a reset of the counter, or of the run of which this folder is a copy.
    squeue(install, "12 RUNNING None N/A 0 0 n1", folder=tmp_path / elsewhere)
    assert main(["cancel", str(run)]) == 0
    assert capsys.readouterr().out.startswith("nothing to cancel") and not (tmp_path / "log").exists()
    assert active_job(run) is None


@pytest.mark.parametrize("moved", [False, True])
def test_a_job_of_a_run_that_was_moved_is_cancelled(moved: bool, install: Install, tmp_path: Path) -> None:
    run = submitted(tmp_path / "run", "12")
    squeue(install, "12 RUNNING None N/A 0 0 n1", folder=run / "launch" / "code-1")
    scancel(install, tmp_path / "log")
    if moved:
        run = run.rename(tmp_path / "moved")
    assert active_job(run) == "12" and main(["cancel", str(run)]) == 0
    assert (tmp_path / "log").read_text() == "12\n"


def test_variables_of_scancel_leave_out_no_job(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path / "run", "12")
    squeue(install, "12 RUNNING None N/A 0 0 n1")
    install("scancel", f"env | grep -c SCANCEL_ > {tmp_path}/log; exit 0")
    monkeypatch.setenv("SCANCEL_STATE", "PENDING")
    assert main(["cancel", str(run)]) == 0 and (tmp_path / "log").read_text() == "0\n"


def test_all_jobs_of_a_sweep_are_cancelled(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, job_id in (("a", "3_0"), ("b", "3_1")):
        submitted(tmp_path / "sweep" / name, job_id)
    squeue(install, "3_0 RUNNING None N/A 0 0 n1", "3_1 PENDING Resources N/A 0 0 ~")
    scancel(install, tmp_path / "log")
    assert main(["cancel", str(tmp_path / "sweep")]) == 0
    assert (tmp_path / "log").read_text().splitlines() == ["3_1", "3_0"]
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_refusal_of_slurm_is_one_line(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = submitted(tmp_path / "run", "12")
    squeue(install, "12 RUNNING None N/A 0 0 n1")
    install("scancel", "echo 'Access/permission denied' >&2; exit 1")
    fails(capsys, ["cancel", run], "scancel 12: Access/permission denied")
    install("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    fails(capsys, ["cancel", run], "cannot cancel its jobs: squeue: Unable to contact")


def test_a_run_that_has_ended_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["cancel", tmp_path], "want a run folder")
    run = tmp_path / "run"
    run.mkdir()
    provenance.record_start(run, World(), {})
    provenance.record_end(run, "finished", None, step=9)
    assert main(["cancel", str(run)]) == 0
    assert capsys.readouterr().out.startswith(f"nothing to cancel: {run}: finished at step 9")
    assert not (run / "STOP").exists()


def test_a_process_of_this_machine_gets_sigterm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    words = [sys.executable, "-c", HOLDER, str(run / "logs" / "lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout and holder.stdout.readline() == "held\n"
            assert main(["cancel", str(run)]) == 0
            assert f"SIGTERM sent to process {holder.pid}" in capsys.readouterr().out
            assert holder.wait(timeout=30) == -signal.SIGTERM
        finally:
            holder.kill()


def test_a_process_of_another_host_gets_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    lock = run / "logs" / "lock"
    lock.touch()
    owner = LockOwner.of_this_process(lock, lock.stat().st_ino)
    lock.write_text(replace(owner, host="node07", machine="node07 boot pid:[1]").json)
    provenance.record_start(run, World(), {})
    assert main(["cancel", str(run)]) == 0
    text = capsys.readouterr().out
    assert "file STOP made for process" in text and "node07" in text and (run / "STOP").exists()


def test_a_job_of_a_batch_script_of_the_users_own_is_cancelled_by_its_lock(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    squeue(install, "77 RUNNING None N/A 0 0 n1")
    scancel(install, tmp_path / "log")
    with lock_file(run / "logs" / "lock", "busy", "wait"):
        assert main(["cancel", str(run)]) == 0
    assert (tmp_path / "log").read_text() == "77\n" and "job 77: cancelled" in capsys.readouterr().out


def test_what_cancel_did_is_told_when_slurm_has_forgotten_the_job(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run of its own, and of one in a sweep, whose job has no record of its own."""
    sweep = tmp_path / "sweep"
    run, one = submitted(tmp_path / "run", "12"), sweep / "eps=1"
    one.mkdir(parents=True)
    (sweep / "launch").mkdir()
    (sweep / "launch" / "3_submission.sh").touch()
    runs = [{"folder": one.name, "values": {}, "job": "3_0"}]
    (sweep / "sweep.json").write_text(json.dumps({"keys": ["eps"], "runs": runs}))
    scancel(install, tmp_path / "log")
    for folder, job in ((run, "12"), (one, "3_0")):
        squeue(install, f"{job} PENDING Priority N/A 0 0 ~")
        assert main(["cancel", str(folder)]) == 0
        install("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
        capsys.readouterr()
        assert main(["status", str(folder), "--json"]) == 75
        facts = json.loads(capsys.readouterr().out)
        assert (facts["state"], facts["reason"]) == ("stopped", "cancelled before it trained")
        assert main(["status", str(folder.parent)]) == 75
        assert "cancelled before it trained)" in capsys.readouterr().out
