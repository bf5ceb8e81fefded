"""submitit's Slurm executor: the batch script of a launch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcphotoz.launch.request.further_options import parse_option
from hpcphotoz.launch.request.node_python import node_python
from hpcphotoz.launch.request.plan import LaunchPlan
from hpcphotoz.launch.request.slurm_values import parse_memory
from hpcphotoz.launch.requeue.batch_lines import START_LINE, batch_lines

_NO_LIMIT = 10**6  # of submitit's: the job itself limits its requeues


def slurm_executor(plan: LaunchPlan, launch: Path, code: Path, folders: Sequence[Path] = ()) -> Any:
    """submitit's executor for a plan.

    Args:
        plan: what to ask the cluster for.
        launch: folder of scripts, logs and pickles.
        code: folder in which Python starts: the snapshot.
        folders: folders that the job reads and writes, absolute; a container has to see them.
    """
    import submitit

    class Executor(submitit.SlurmExecutor):  # type: ignore[misc]
        @classmethod
        def affinity(cls) -> int:
            return 2  # `submit` has looked for srun; a dry run needs none

        def _make_submission_file_text(self, command: str, uid: str) -> str:
            first, _, rest = str(super()._make_submission_file_text(command, uid)).partition("\n")
            return "\n".join([first, *([f"# {plan.comment}"] if plan.comment else []), rest])

    python = node_python(plan, code, folders)
    executor = Executor(launch, max_num_timeout=_NO_LIMIT, python=python.command)
    names = ("partition", "account", "qos", "constraint", "exclude")
    further = {key: value or True for key, value in map(parse_option, plan.extra)}
    if plan.dependency:
        further |= {"dependency": plan.dependency, "kill-on-invalid-dep": "yes"}
    executor.update_parameters(
        job_name=plan.job_name,
        nodes=plan.nodes,
        ntasks_per_node=plan.ranks_per_node,
        cpus_per_task=plan.cpus_per_task,
        gpus_per_node=plan.gpus_per_node if plan.gpus else None,
        mem=parse_memory(plan.mem) if plan.mem else None,
        time=math.ceil(plan.time_s / 60),  # submitit counts time-outs by it
        signal_delay_s=plan.signal_delay_s,
        stderr_to_stdout=True,
        setup=[*python.setup, START_LINE],
        teardown=batch_lines(python.command, python.srun, launch),
        wckey=None,  # submitit's own would be refused where keys are accounted
        srun_args=[
            "--kill-on-bad-exit=1",  # without it a job with a dead rank keeps its nodes until the time limit
            f"--cpus-per-task={plan.cpus_per_task}",  # since 22.05 srun does not read sbatch's
            "--wait=0",  # a cluster's WaitTime would kill rank 0 while it still validates
            "--export=ALL",  # with SLURM_EXPORT_ENV=NONE ranks would lack submitit's variables
            *plan.srun,
            *python.srun,
        ],
        # The signal by name: submitit takes it from SUBMITIT_PREEMPT_SIGNAL, which the job does not have.
        additional_parameters={
            "requeue": True,
            "chdir": code,
            "signal": f"USR2@{plan.signal_delay_s}",
            "time": plan.time,
        }
        | further,
        **{name: getattr(plan, name) or None for name in names},
    )
    return executor
