"""The job of every rank of a launch of another command than `train`, such as `predict`.

The command runs as it does under torchrun: its ranks share the work, rank 0 prints. Files of the launch are
in OUT.job/launch, beside the output OUT, because a dataset folder takes no others; for `hpcphotoz status`,
`logs` and `cancel`, OUT.job is the run folder.
"""

import importlib
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.rank import find_own_rank
from hpcphotoz.launch.requeue.failures import recording_own_failure
from hpcphotoz.launch.requeue.record import STOPPED, NoProgress, Requeue, RequeueRecord, record_file
from hpcphotoz.launch.requeue.stop_signals import asks_for_requeue

RESUMABLE = ("ingest", "simulate", "predict")  # these keep what is finished
_ONE_PROCESS = ("attack",)


@dataclass(frozen=True)
class CommandJob:
    """A command line as a callable for submitit, small when pickled.

    Args:
        words: of the command line, without "hpcphotoz".
        folder: the working folder in which its paths hold, absolute.
        out: folder of the launch, absolute: that of the output with the suffix .job.
        entry: the function that runs a command line and returns its status, as "module:name".
        inputs: files and folders that the command reads, absolute.
        command: the command line that launched the job.
        code, cpus, max_requeues, visible_gpus: as of `TrainJob`.
    """

    words: tuple[str, ...]
    folder: str
    out: str
    entry: str
    inputs: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    code: str = ""
    cpus: int = 0
    max_requeues: int = 10
    visible_gpus: str | None = None

    @property
    def kind(self) -> str:
        """The command, such as "predict"."""
        return self.words[0]

    def __call__(self) -> str:
        """Run the command on this rank; returns "finished".

        On a rank other than 0, it also returns if another rank has failed, and reports it: a rank that ended
        with another status would have rank 0 killed before that is written.

        Raises:
            BadInput: what the command raises on rank 0, or a rank cannot begin.
            NoProgress: the job is to be requeued, and may not be.
        """
        import submitit

        own = submitit.JobEnvironment()
        with recording_own_failure(Path(self.out), own.job_id, own.global_rank):
            rank = find_own_rank(self.code, self.cpus, self.visible_gpus).rank
            signal.signal(signal.SIGTERM, self._terminate if rank == 0 or self._is_local else signal.SIG_IGN)
            try:
                os.chdir(self.folder)
            except OSError as error:
                raise BadInput(
                    f"{self.folder}: {error.strerror} on this node: launch from a shared folder"
                ) from None
            module, _, name = self.entry.partition(":")
            run = getattr(importlib.import_module(module), name)
            try:
                status = run(self.words)
            except SystemExit as end:
                if rank == 0 or not end.code:
                    raise
                sys.exit(0)
            if status:
                sys.exit(status)
            return "finished"

    @property
    def _is_local(self) -> bool:
        return "SLURM_JOB_ID" not in os.environ

    def _terminate(self, number: int, frame: object) -> None:
        """End at a SIGTERM; where that is a preemption, requeue."""
        if not self._is_local and asks_for_requeue({number}):
            signal.raise_signal(signal.SIGUSR2)  # calls `checkpoint`, requeues, exits
        sys.exit(128 + number)

    def checkpoint(self) -> Any:
        """What submitit runs after the requeue: this command again.

        submitit calls this on rank 0 in its signal handler.

        Raises:
            NoProgress: the job was requeued `max_requeues` times, or is out of time and would start over.
        """
        import submitit

        path = record_file(Path(self.out), submitit.JobEnvironment().job_id)
        record = RequeueRecord.read(path)
        refusal = ""
        if len(record.requeues) >= self.max_requeues:
            refusal = f"not requeued: requeued {self.max_requeues} times already; launch again"
        elif self.kind not in RESUMABLE and not asks_for_requeue({signal.SIGUSR2}, at_time_limit=False):
            refusal = (
                f"not requeued: out of time, and {self.kind} starts over: give more --time, or more ranks"
            )
        if refusal:
            replace(record, ended=refusal).write(path)
            raise NoProgress(refusal)
        restart = int(os.environ.get("SLURM_RESTART_COUNT", len(record.requeues)))
        record.add(Requeue(restart, 0, STOPPED)).write(path)
        return submitit.helpers.DelayedSubmission(self)


def check_ranks(kind: str, ranks: int) -> None:
    """Raise BadInput for several ranks of a command that is for one process."""
    if ranks > 1 and kind in _ONE_PROCESS:
        raise BadInput(f"{kind} is for one process: launch it with --tasks-per-node 1 on one node")
