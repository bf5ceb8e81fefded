"""Sweeps without a cluster: the script of the array, its jobs, sweep.json, what goes on, and the table."""

import json
import pickle
import re
import shlex
import sys
from pathlib import Path

import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.launch import snapshot
from tests.helpers.commands import TINY, fails
from tests.helpers.launch.golden import template_of_end
from tests.helpers.launch.queue import FakeQueue
from tests.helpers.launch.runs import Install

GOLDEN = """\
#!/bin/bash

# Parameters
#SBATCH --array=0-3%2
#SBATCH --chdir={code}
#SBATCH --cpus-per-task=2
#SBATCH --dependency=afterok:7
#SBATCH --job-name=hpcphotoz
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output={launch}/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60

# setup
set +e; echo "hpcphotoz: start ${{SLURM_RESTART_COUNT:-0}} on $SLURM_JOB_NODELIST"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output {launch}/%A_%a_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=2 --wait=0 \
--export=ALL sh -c 'trap "" USR2; exec "$0" "$@"' {python} -u -m submitit.core._submit {launch}


"""
RUNS = """
# 4 of 4 runs
#    0  {out}/width=8_seed=0
#    1  {out}/width=8_seed=1
#    2  {out}/width=16_seed=0
#    3  {out}/width=16_seed=1
"""
SWEEP = ["--sweep", "model.width=8,16", "run.seed=0:2"]


@pytest.fixture
def queue(install: Install, tmp_path: Path) -> FakeQueue:
    return FakeQueue(install, tmp_path)


def words(
    dataset: Path, out: Path, *launch: str, where: str = "slurm", steps: int = 2, train: tuple[str, ...] = ()
) -> list[object]:
    """A command line of a small sweep."""
    given = ["--data", str(dataset), "--out", str(out), "--device", "cpu", *TINY[2:], *train]
    given[given.index("--run.max_steps") + 1] = str(steps)
    return ["launch", where, *launch, "--", "train", "standard", *given]


def run(*given: object) -> int:
    return main([str(word) for word in given])


def entries(out: Path) -> dict[str, str | None]:
    found = json.loads((out / "sweep.json").read_text())
    return {entry["folder"]: entry["job"] for entry in found["runs"]}


def test_a_dry_run_prints_the_array_and_its_runs_and_writes_nothing(
    queue: FakeQueue, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue.set_states({"7": "RUNNING"})
    out = tmp_path / "sweep"
    options = [*SWEEP, "--at-most", "2", "--after", "7", "--dry-run"]
    assert run(*words(dataset, out, *options)) == 0
    launch = out / "launch"
    code, python = snapshot.folder(launch), shlex.quote(sys.executable)
    assert capsys.readouterr().out == (GOLDEN + template_of_end() + RUNS).format(
        out=out, launch=launch, code=code, python=python
    )
    assert not out.exists()


def test_one_array_of_jobs_each_with_its_own_configuration(
    queue: FakeQueue, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    assert run(*words(dataset, out, *SWEEP)) == 0
    assert list(queue.scripts) == ["11"] and queue.option("11", "array") == "0-3%4"
    names = [f"width={width}_seed={seed}" for width in (8, 16) for seed in (0, 1)]
    assert entries(out) == {name: f"11_{number}" for number, name in enumerate(names)}
    for number, name in enumerate(names):
        job = pickle.loads((out / f"launch/11_{number}_submitted.pkl").read_bytes()).function
        width, seed = map(int, re.findall(r"\d+", name))
        assert (job.parsed.model.width, job.parsed.run.seed) == (width, seed)
        assert job.out == str(out / name) and job.requeue_at_time_limit
        assert job.code == str(snapshot.folder(out / "launch"))
    assert not list((out / "launch").glob("?" * 32 + ".pkl"))
    shown = capsys.readouterr().out
    assert "4 of 4 runs" in shown and f"hpcphotoz compare {out}" in shown
    queue.set_states({f"11_{number}": "PENDING" for number in range(4)})
    assert run("compare", out) == 0
    assert capsys.readouterr().out.count("pending") == 4


def test_the_same_sweep_again_goes_on_with_the_unfinished_runs(
    queue: FakeQueue, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    given = [*words(dataset, out, *SWEEP)]
    assert run(*given) == 0
    finished = out / "width=8_seed=1"
    config = given[given.index("--") + 1 :]
    config[config.index("--out") + 1] = finished
    assert run(*config, "--model.width", "8", "--run.seed", "1") == 0
    queue.set_states({"11_0": "RUNNING", "11_1": "COMPLETED", "11_2": "FAILED"})
    capsys.readouterr()
    assert run(*given) == 0
    said = capsys.readouterr().out
    assert "2 of 4 runs; not launched again: 1 queued or running, 1 finished" in said
    jobs = ["11_0", "11_1", "12_0", "12_1"]
    assert list(entries(out).values()) == jobs and queue.option("12", "array") == "0-1%2"
    # A further value is added, and one run is an ordinary job.
    queue.set_states({job: "PENDING" for job in jobs if job != "11_1"})
    assert run(*words(dataset, out, "--sweep", "model.width=8", "run.seed=0:3")) == 0
    assert entries(out)["width=8_seed=2"] == "13" and queue.option("13", "array") is None
    assert len(entries(out)) == 5
    queue.set_states({job: "PENDING" for job in ("11_0", "13")})
    assert run(*words(dataset, out, "--sweep", "model.width=8", "run.seed=0:3")) == 0
    assert "0 of 3 runs" in capsys.readouterr().out and len(queue.scripts) == 3


def test_a_refused_sweep_leaves_nothing(
    install: Install, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeQueue(install, tmp_path, refuse=1)
    fails(capsys, words(dataset, tmp_path / "sweep", *SWEEP), "sbatch refused the job: QOSMax")
    assert not (tmp_path / "sweep").exists()


def test_every_run_is_checked_before_anything_is_queued(
    queue: FakeQueue, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"

    def refused(says: str, *launch: str, train: tuple[str, ...] = ()) -> None:
        fails(capsys, words(dataset, out, *launch, train=train), says)
        assert not out.exists() and not queue.scripts

    refused("--model.width -1: must be", "--sweep", "run.seed=0:2", "model.width=8,-1")
    refused("--run.sed: unknown option (did you mean run.seed", "--sweep", "run.sed=1")
    refused("--run.seed is given after `train` too", "--sweep", "run.seed=1", train=("--run.seed", "2"))
    refused("--chain with --sweep", "--sweep", "run.seed=1", "--chain", "2")
    refused("--at-most: is for --sweep", "--at-most", "2")
    missing = [tmp_path / "none" if word == str(dataset) else word for word in words(dataset, out, *SWEEP)]
    fails(capsys, missing, "no such folder")
    (out / "config.toml").parent.mkdir()
    (out / "config.toml").write_text("")
    fails(capsys, words(dataset, out, *SWEEP), "holds a run: choose another --out for a sweep")
    (out / "config.toml").unlink()
    (out / "sweep.json").write_text('{"keys": ["attack.eps"], "runs": []}')
    fails(capsys, words(dataset, out, *SWEEP), "holds a sweep of attack.eps")
    swept = {"attack.eps": "0.5", "run.seed": "1"}
    entry = {"folder": "eps=0.5_seed=1", "values": swept, "job": None}
    (out / "sweep.json").write_text(json.dumps({"keys": [*swept], "runs": [entry]}))
    for again in (("run.seed=1", "attack.eps=0.5"), ("attack.eps=0.50", "run.seed=1")):
        told = (
            "in this order"
            if again[0] == "run.seed=1"
            else "eps=0.5_seed=1 has the values of eps=0.50_seed=1"
        )
        fails(capsys, words(dataset, out, "--sweep", *again), told)
    for text in ("{", "[]", '{"keys": [], "runs": [{"folder": "../x", "values": {}, "job": null}]}'):
        (out / "sweep.json").write_text(text)
        fails(capsys, words(dataset, out, *SWEEP), "sweep.json: damaged")
    assert not queue.scripts


@pytest.mark.slow
def test_a_local_sweep_and_its_table(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Widths that differ in their result; one run that cannot begin leaves the others."""
    out = tmp_path / "sweep"
    train = ("--data.validation", "0.2", "--run.log_steps", "1")
    given = words(
        dataset, out, "--sweep", "model.width=8,16", "run.seed=3", where="local", steps=5, train=train
    )
    out.mkdir()
    (out / "width=16_seed=3").write_text("a file where the run would be")
    fails(capsys, given, "width=16_seed=3")  # found before the first run
    (out / "width=16_seed=3").unlink()
    assert run(*given) == 0
    capsys.readouterr()
    assert run("compare", out) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = "width seed state step loss bias sigma eta images/s".split()
    assert lines[0].split() == heads and lines[1].split()[2:4] == ["finished", "5"]
    assert len(lines) == 5 and lines[3] == "best first by sigma (run.criterion clean)"
    assert run("compare", out, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [row["score"] for row in rows] == sorted(row["sigma_mad"] for row in rows)
    assert {row["values"]["model.width"] for row in rows} == {"8", "16"}
    assert entries(out) == {"width=8_seed=3": None, "width=16_seed=3": None}
    assert run(*given) == 0
    assert "0 of 2 runs; not launched again: 2 finished" in capsys.readouterr().out
    # Any three runs: here one of the sweep twice, and the sweep as a whole.
    one = out / "width=8_seed=3"
    assert run("compare", one, one, out, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert len(rows) == 4 and {tuple(row["values"]) for row in rows} == {("model.width",)}
    fails(capsys, ["compare", one], "one run: give OTHER runs too")
    fails(capsys, ["compare", one, one, dataset], "not a run folder")
    fails(capsys, ["compare", out, "--plot", tmp_path / "a.png"], "is for two runs")
