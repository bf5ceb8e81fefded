"""Launches of commands other than `train`: checked before, run from the snapshot, requeued where it helps."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.cli.cluster.launched_command import command_job
from hpcphotoz.launch.command_job import CommandJob
from hpcphotoz.launch.requeue.record import NoProgress, RequeueRecord, record_file
from hpcphotoz.launch.slurm import dry_run, submit
from tests.helpers.commands import TINY, copy, fails
from tests.helpers.launch.cluster import Cluster, until
from tests.helpers.launch.jobs import PLAN, cluster_or_skip, log
from tests.helpers.launch.runs import Install

pytest.importorskip("submitit", reason="submitit is not installed")


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "standard"
    assert main(["train", "standard", "--data", str(dataset), "--out", str(out), *TINY]) == 0
    return out


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from cluster_or_skip(preempt_signal=True)


def predict(run: Path, data: Path, out: Path) -> list[str]:
    return ["predict", str(run), "--data", str(data), "--out", str(out), "--device", "cpu"]


LOCAL = ["launch", "local", "--tasks-per-node", "2", "--cpus-per-task", "1", "--"]


@pytest.mark.slow
def test_two_local_ranks_predict_from_the_snapshot_in_the_folder_of_the_launch(
    run: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(dataset)
    assert main(predict(run, Path("data"), Path("one.hdf5"))) == 0
    assert main([*LOCAL, *predict(run, Path("data"), Path("all.hdf5"))]) == 0
    launch = tmp_path / "all.hdf5.job/launch"
    first, second = (next(launch.glob(f"*_{rank}_log.out")).read_text() for rank in range(2))
    (code,) = launch.glob("code-*")
    assert "rank 1 of 2 on " in second and f"code {code}" in second
    assert "all.hdf5: 75 PDFs" in first and "PDFs" not in second
    one, found = (tmp_path / name for name in ("one.hdf5", "all.hdf5"))
    assert found.stat().st_size == one.stat().st_size


@pytest.mark.slow
def test_the_line_of_a_failing_rank_is_that_of_the_launch(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = copy(dataset, tmp_path / "data")
    last = sorted(data.glob("shard-*.hdf5"))[-1]
    last.write_bytes(last.read_bytes()[:-4096] + bytes(4096))
    fails(capsys, [*LOCAL, *predict(run, data, tmp_path / "pz.hdf5")], last.name)
    assert not (tmp_path / "pz.hdf5").exists()


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("pz.hdf5", ["--tta", "--bogus"], "--bogus"),
        ("pz.csv", [], "names end in .hdf5"),
        ("absent/pz.hdf5", [], "no such folder"),
        ("a%j.hdf5", [], "Slurm would rewrite"),
        ("a\n.hdf5", [], "control character"),
    ],
)
def test_what_can_be_refused_is_refused_before_anything_is_queued(
    run: Path,
    dataset: Path,
    tmp_path: Path,
    install: Install,
    capsys: pytest.CaptureFixture[str],
    name: str,
    words: list[str],
    says: str,
) -> None:
    for program in ("sbatch", "srun"):
        install(program, "echo queued; exit 1")
    launched: list[object] = ["launch", "slurm", "--", *predict(run, dataset, tmp_path / name), *words]
    fails(capsys, launched, says)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_absent_input_and_commands_that_are_not_launched_are_refused(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch, out = ["launch", "slurm", "--tasks-per-node", "2", "--"], tmp_path / "out"
    fails(capsys, [*launch, *predict(run, tmp_path / "nowhere", out)], "nowhere: no such file")
    fails(capsys, [*launch, "evaluate", tmp_path / "no", "--data", dataset, "--out", out], "no: no such")
    fails(capsys, [*launch, "simulate", dataset, "--n", "3"], "already holds a finished dataset")
    fails(capsys, [*launch, "attack", run, "--data", dataset, "--out", out], "attack is for one process")
    fails(
        capsys, [*launch, "merge", out, dataset], "merge is for one process: run it here; launched are train"
    )
    assert not list(tmp_path.iterdir())


def test_the_script_of_a_launched_command(run: Path, dataset: Path, tmp_path: Path) -> None:
    job = command_job(predict(run, dataset, tmp_path / "pz.hdf5"), ["hpcphotoz"])
    script = dry_run(PLAN, job)
    assert f"{tmp_path}/pz.hdf5.job/launch/" in script and "--ntasks-per-node=2" in script
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "preempted", "refused"),
    [
        (("predict",), True, ""),
        (("evaluate",), False, "out of time, and evaluate starts over"),
        (("predict",), False, ""),
        (("ingest",), False, ""),
    ],
)
def test_a_stopped_command_comes_back_if_that_gets_on(
    tmp_path: Path,
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    preempted: bool,
    refused: str,
) -> None:
    for name, value in {"SLURM_JOB_ID": "7", "SUBMITIT_EXECUTOR": "slurm", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    install("scontrol", f"echo JobId=7 PreemptTime={'2026-01-01T00:00:00' if preempted else 'None'}")
    job = CommandJob(words, str(tmp_path), str(tmp_path / "o.job"), "hpcphotoz.cli:run", max_requeues=1)
    (tmp_path / "o.job/launch").mkdir(parents=True)
    if refused:
        with pytest.raises(NoProgress, match=refused):
            job.checkpoint()
        return
    assert job.checkpoint().function == job
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(NoProgress, match="requeued 1 times already"):
        job.checkpoint()
    record = RequeueRecord.read(record_file(tmp_path / "o.job", "7"))
    assert len(record.requeues) == 1 and record.ended.startswith("not requeued")


@pytest.mark.slow
def test_four_ranks_on_two_nodes_predict_evaluate_and_simulate(
    cluster: Cluster, run: Path, dataset: Path, tmp_path: Path
) -> None:
    small = ["--attacks", "fgsm", "--eps", "0.1", "--device", "cpu", "--precision", "fp32"]
    evaluate = ["evaluate", str(run), "--data", str(dataset), "--out", str(tmp_path / "report"), *small]
    simulate = ["simulate", str(tmp_path / "sky"), "--n", "10", "--shard-rows", "3"]
    for words, out in (
        (predict(run, dataset, tmp_path / "pz.hdf5"), "pz.hdf5"),
        (evaluate, "report"),
        (simulate, "sky"),
    ):
        submitted = submit(PLAN, command_job(words, ["hpcphotoz", *words]))
        cluster.wait_for(submitted.job_id, "COMPLETED", 120)
        assert out in log(submitted, 0) and (tmp_path / out).exists()
        record = json.loads((submitted.logs / f"{submitted.job_id}.json").read_text())
        assert record["kind"] == words[0] and record["tasks"] == 4
        assert main(["status", f"{tmp_path / out}.job"]) == 0
    assert main(predict(run, dataset, tmp_path / "one.hdf5")) == 0
    assert (tmp_path / "one.hdf5").read_bytes() == (tmp_path / "pz.hdf5").read_bytes()
    evaluate[evaluate.index(str(tmp_path / "report"))] = str(tmp_path / "alone")
    assert main(evaluate) == 0
    one, found = (tmp_path / name / "metrics.json" for name in ("alone", "report"))
    assert found.read_text() == one.read_text()


@pytest.mark.slow
def test_a_preempted_simulation_comes_back_and_keeps_its_shards(cluster: Cluster, tmp_path: Path) -> None:
    pytest.importorskip("galsim")
    words = ["simulate", str(tmp_path / "sky"), "--n", "3000", "--shard-rows", "50"]
    submitted = submit(PLAN, command_job(words, ["hpcphotoz", *words]))
    until("a shard", lambda: list((tmp_path / "sky").glob("*.done.json")), 90)
    high = "sbatch --parsable --partition high --nodes 2 --exclusive --output /dev/null --wrap true"
    cluster.command(*high.split())
    facts = cluster.wait_for(submitted.job_id, "COMPLETED", 300)
    assert facts["Restarts"] == "1" and "3000 galaxies in 60 shards" in log(submitted, 0)
    assert re.search(r"kept \d+ finished shards? of an earlier run", log(submitted, 0))
    assert not list((tmp_path / "sky").glob("*.done.json"))
