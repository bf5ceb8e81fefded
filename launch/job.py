"""The job of every rank of a launch: connect to the other ranks, train, and requeue after a preemption.

Slurm sends SIGUSR2 to all tasks before the time limit and at a preemption. The trainer then saves a
checkpoint and stops all ranks after the same step. Only then does submitit receive the signal; its rank 0
requeues the job.
"""

import os
import shutil
import signal
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hpcphotoz.config import Config
from hpcphotoz.config.load import parse, to_toml
from hpcphotoz.launch.rank import find_own_rank
from hpcphotoz.launch.requeue.failures import recording_own_failure
from hpcphotoz.launch.requeue.record import (
    STOPPED,
    NoProgress,
    Requeue,
    RequeueRecord,
    newest_step,
    record_file,
)
from hpcphotoz.launch.requeue.stop_signals import STRAGGLING_SIGNAL_S, SignalRecorder, asks_for_requeue
from hpcphotoz.output import say

if TYPE_CHECKING:
    from hpcphotoz.data.datasets import Datasets


@dataclass(frozen=True)
class TrainJob:
    """A training run as a callable for submitit, small when pickled.

    A signal that arrives before submitit's handlers are in place is lost (`executor.py` makes sh ignore it),
    so unpickling must be quick: torch and submitit are imported inside the call.

    Args:
        config: the resolved configuration as TOML text.
        data: dataset folder, absolute; or of several datasets, each folder's weight.
        out: run folder, absolute.
        code: folder with the snapshot of the package; empty: the installed package runs.
        cpus: cores of this rank; 0: as the job says.
        max_requeues: requeues in a row without progress after which the job is not requeued, and fails.
        requeue_at_time_limit: False: the job stays away after its time limit, and returns after a preemption.
        profile: as `train --profile`.
        device: "auto", "cuda" or "cpu", as in `train --device`.
        command: the command line that launched the run, for its provenance.
        start_from: as `train --from`, absolute; "": random weights.
        visible_gpus: CUDA_VISIBLE_DEVICES of a local launch; None: unset. On a cluster Slurm sets it.
        stage: as `trainer.train`.
    """

    config: str
    data: str | dict[str, float]
    out: str
    code: str = ""
    cpus: int = 0
    max_requeues: int = 10
    requeue_at_time_limit: bool = True
    profile: bool = False
    device: str = "auto"
    command: tuple[str, ...] = ()
    start_from: str = ""
    visible_gpus: str | None = None
    stage: str | None = None

    @classmethod
    def of(cls, config: Config, data: "Path | Datasets", out: Path, **options: Any) -> Self:
        """The job that trains `config` on the datasets `data` into `out`; options are further fields."""
        from hpcphotoz.data.datasets import Datasets

        return cls(to_toml(config), Datasets.of(data).absolute().given, str(out.absolute()), **options)

    @property
    def kind(self) -> str:
        """The command: "train"."""
        return "train"

    @property
    def parsed(self) -> Config:
        """The configuration."""
        return parse(tomllib.loads(self.config), "configuration")

    def __call__(self) -> str:
        """Train on this rank; return "finished" or "stopped".

        When the run is to be requeued, this does not return: the process ends once rank 0 has requeued it. On
        a cluster, rank 0 of a run that is stopped and not requeued exits with status 75 (EX_TEMPFAIL): jobs
        that depend on it with `afterok` do not begin.

        Raises:
            BadInput: the package was not imported from the snapshot, or what the trainer raises.
            NoProgress: the job is to be requeued, and was `max_requeues` times in a row without progress.
        """
        import submitit

        own = submitit.JobEnvironment()
        with recording_own_failure(Path(self.out), own.job_id, own.global_rank):
            return self._train()

    def _train(self) -> str:
        rank = find_own_rank(self.code, self.cpus, self.visible_gpus).rank
        if "SLURM_JOB_ID" not in os.environ:
            # submitit ignores SIGTERM. Here, until the trainer handles it, there is nothing to save. On a
            # cluster it may be a preemption, and a rank that dies of it would fail the job.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        from hpcphotoz.data.datasets import Datasets
        from hpcphotoz.training.loop import Outcome
        from hpcphotoz.training.run.signals import ignore_stops
        from hpcphotoz.training.trainer import train

        with SignalRecorder() as signals:
            data, out = Datasets.of(self.data), Path(self.out)
            begin = Path(self.start_from) if self.start_from else None
            how = self.profile, self.device, self.command or None, begin, self.stage
            outcome = train(self.parsed, data, out, *how)
            if outcome is Outcome.FINISHED or rank:
                ignore_stops()
            if outcome is Outcome.FINISHED:
                return "finished"
            if rank:
                # Success, without a result pickle: with --kill-on-bad-exit=1 a failure here would end the job
                # before rank 0 has requeued it. Nothing waits for this rank any more.
                sys.exit(0)
            seen = signals.seen(wait_s=STRAGGLING_SIGNAL_S)
        if asks_for_requeue(seen, self.requeue_at_time_limit):
            if "SLURM_JOB_ID" in os.environ and shutil.which("scontrol") is None:
                # A container without Slurm's programs: submitit cannot requeue the job, the batch script can.
                ignore_stops()
                self.checkpoint()
                say("saved on all ranks; no scontrol here: the batch script requeues the job")
                sys.exit(os.EX_UNAVAILABLE)
            say("saved on all ranks; passing SIGUSR2 to submitit")
            signal.raise_signal(signal.SIGUSR2)  # calls `checkpoint`, requeues, exits
        ignore_stops()
        if "SLURM_JOB_ID" in os.environ:
            say("saved on all ranks; unless Slurm requeues the job, launch again to continue")
            sys.exit(os.EX_TEMPFAIL)
        return "stopped"

    def checkpoint(self) -> Any:
        """What submitit runs after the requeue: this job again.

        submitit calls this on rank 0 in its signal handler, after the trainer has saved.

        Raises:
            NoProgress: the job was requeued `max_requeues` times in a row without progress.
        """
        import submitit

        run, step = Path(self.out), newest_step(Path(self.out))
        path = record_file(run, submitit.JobEnvironment().job_id)
        record = RequeueRecord.read(path)
        if refusal := record.refusal(step, self.max_requeues):
            replace(record, ended=refusal).write(path)
            raise NoProgress(refusal)
        restart = int(os.environ.get("SLURM_RESTART_COUNT", len(record.requeues)))
        record.add(Requeue(restart, step, STOPPED)).write(path)
        return submitit.helpers.DelayedSubmission(self)
