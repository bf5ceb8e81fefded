"""The job of a rank: its options, its port, its requeues and its end."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from hpcphotoz import cli
from hpcphotoz.launch import slurm
from hpcphotoz.launch.job import TrainJob


def test_every_option_of_train_reaches_the_ranks(dataset: Path, tmp_path: Path) -> None:
    """Options of the configuration reach them as its text."""
    run = tmp_path / "run"
    begin = tmp_path / "begin"
    given = {"--data": str(dataset), "--out": str(run), "--device": "cpu", "--profile": None}
    given |= {"--from": str(begin), "--stage": str(tmp_path)}
    shown = cli._parser().parse_args(["train", "standard", "--data", "d", "--out", "r"])
    ours = {f"--{name}".replace("start_from", "from") for name in vars(shown) if "." not in name}
    here = {"--command", "--function", "--config", "--rehearse"}
    assert ours - here == set(given), "give it here, and to TrainJob"
    words = [word for pair in given.items() for word in pair if word is not None]
    with mock.patch.object(slurm, "submit") as submit:
        cli.run(["launch", "slurm", "--", "train", "standard", *words])
    job = submit.call_args.args[1]
    assert (job.data, job.out, job.device, job.profile) == (str(dataset), str(run), "cpu", True)
    assert (job.start_from, job.stage) == (str(begin), str(tmp_path))
    assert job.command == ("hpcphotoz", "launch", "slurm", "--", "train", "standard", *words)


def test_the_job_unpickles_without_torch(job: TrainJob, tmp_path: Path) -> None:
    # A signal during these imports would be lost.
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    check = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb')); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check, tmp_path / "job"], check=True, timeout=60)


LEAVING = """\
import os, signal, sys
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.training import trainer

class Late:  # deleted after Python has taken its signal handlers down
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGUSR2):
        kill(pid, number)

late = Late()
signal.signal(signal.SIGUSR2, print)
trainer.train = lambda *_: trainer.Outcome[sys.argv[1]]
TrainJob("", "", "")()
"""


@pytest.mark.parametrize(("rank", "outcome"), [(0, "FINISHED"), (1, "STOPPED")])
def test_a_rank_that_is_leaving_does_not_die_of_the_signal(rank: int, outcome: str) -> None:
    world = {"JOB_ID": "1", "NTASKS": "2", "GLOBALID": str(rank), "LOCALID": str(rank)}
    env = {**os.environ, "SUBMITIT_EXECUTOR": "local", **{f"SUBMITIT_LOCAL_{k}": v for k, v in world.items()}}
    subprocess.run([sys.executable, "-c", LEAVING, outcome], env=env, check=True, timeout=60)
