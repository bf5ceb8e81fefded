"""Launches that are refused before anything is queued, and write nothing."""

import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.launch import slurm
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.local import run_local
from hpcphotoz.launch.request.plan import LaunchPlan
from hpcphotoz.training.run import run_folder
from hpcphotoz.training.trainer import train
from tests.helpers.datasets import make_dataset
from tests.helpers.launch.runs import Install, small


def test_a_new_run_is_checked_without_torch(job: TrainJob) -> None:
    """Whose import takes longer than all else of a submission."""
    code = (
        "import pickle, sys; from hpcphotoz.launch import slurm; "
        "from hpcphotoz.launch.request.plan import LaunchPlan; "
        "slurm.dry_run(LaunchPlan(), pickle.load(sys.stdin.buffer)); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(job), timeout=60, check=False)
    assert done.returncode == 0


def test_refusals_before_anything_is_queued(
    job: TrainJob, tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("sbatch", "echo 'Submitted batch job 7'")
    install("srun", "exit 1")
    with pytest.raises(BadInput, match="unfinished|not a dataset"):
        slurm.submit(LaunchPlan(), TrainJob.of(small(3), tmp_path, tmp_path / "run"))
    with pytest.raises(BadInput, match="no such folder"):
        slurm.dry_run(LaunchPlan(), TrainJob.of(small(3), tmp_path / "none", tmp_path / "run"))
    with pytest.raises(BadInput, match="a local launch has one node"):
        run_local(LaunchPlan(nodes=2), job)
    with pytest.raises(BadInput, match="choose another name"):
        slurm.dry_run(LaunchPlan(), TrainJob.of(small(3), tmp_path, tmp_path / "100%"))
    for name in ("a\nb", "a\tb", "a\x1bb"):
        with pytest.raises(BadInput, match="a control character in this name"):
            slurm.dry_run(LaunchPlan(), TrainJob.of(small(3), tmp_path, tmp_path / name))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="sbatch: not found"):
        slurm.submit(LaunchPlan(), job)
    monkeypatch.setitem(sys.modules, "submitit", None)
    for launch in (slurm.submit, slurm.dry_run, run_local):
        with pytest.raises(BadInput, match=re.escape("pip install 'hpcphotoz[launch]'")):
            launch(LaunchPlan(), job)
    assert not Path(job.out).exists()


def test_a_sink_whose_package_is_missing_is_refused_at_submission(
    dataset: Path, tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("sbatch", "echo 'Submitted batch job 7'")
    install("srun", "exit 1")
    monkeypatch.setattr("hpcphotoz.training.reporting.sinks.find_spec", lambda package: None)
    with pytest.raises(BadInput, match="run.sinks wandb: not installed"):
        slurm.submit(LaunchPlan(), TrainJob.of(small(3, sinks=["wandb"]), dataset, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_used_is_refused_at_submission(
    dataset: Path, tmp_path: Path, install: Install
) -> None:
    """And nothing is made in it."""
    install("sbatch", "echo 'Submitted batch job 7'")
    install("srun", "exit 1")
    copy = Path(shutil.copytree(dataset, tmp_path / "data"))
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    (other / "checkpoints" / "step-00000001.pt").touch()
    (other / "config.toml").write_text(TrainJob.of(small(3, width=16), dataset, other).config)
    for launch in (slurm.submit, slurm.dry_run, run_local):
        with pytest.raises(BadInput, match="is a dataset: choose another folder"):
            launch(LaunchPlan(), TrainJob.of(small(3), dataset, copy))
        with pytest.raises(BadInput, match=r"holds a run with another model.width \(16, now 8\)"):
            launch(LaunchPlan(), TrainJob.of(small(3), dataset, other))
    assert not (copy / "launch").exists() and not (other / "launch").exists()


def test_a_run_on_another_dataset_is_refused_at_submission(
    dataset: Path, tmp_path: Path, install: Install
) -> None:
    """And nothing is made in it."""
    install("sbatch", "echo 'Submitted batch job 7'")
    install("srun", "exit 1")
    run, other = tmp_path / "run", make_dataset(tmp_path / "other", n=64, shard_rows=32)
    train(small(1), dataset, run)
    for launch in (slurm.submit, slurm.dry_run, run_local):
        with pytest.raises(BadInput, match=f"run: was trained on another dataset than {other}"):
            launch(LaunchPlan(), TrainJob.of(small(1), other, run))
    assert not (run / "launch").exists()


def test_a_run_of_a_settled_precision_is_launched_again_with_auto(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step-00000001.pt").touch()
    settled = TrainJob.of(small(3), dataset, run).config.replace('precision = "auto"', 'precision = "fp32"')
    assert 'precision = "fp32"' in settled
    (run / "config.toml").write_text(settled)
    run_folder.check(run, small(3))


def test_a_run_is_launched_again_with_the_same_from_only(dataset: Path, tmp_path: Path) -> None:
    train(small(2), dataset, tmp_path / "run")
    other = TrainJob.of(small(3), dataset, tmp_path / "run", start_from=str(tmp_path / "run"))
    with pytest.raises(BadInput, match="was not begun --from another"):
        slurm.dry_run(LaunchPlan(), other)
