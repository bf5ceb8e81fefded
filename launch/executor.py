"""submitit's Slurm executor: the batch script of a launch."""

import shlex
import sys
from pathlib import Path
from typing import Any

from hpcphotoz.launch.request.plan import LaunchPlan, parse_option
from hpcphotoz.launch.requeue.batch_lines import START_LINE, batch_lines

_NO_LIMIT = 10**6  # the job itself limits its requeues


def slurm_executor(plan: LaunchPlan, launch: Path, code: Path) -> Any:
    """submitit's executor for a plan.

    Args:
        plan: what to ask the cluster for.
        launch: folder of scripts, logs and pickles.
        code: folder in which Python starts: the snapshot.
    """
    import submitit

    class Executor(submitit.SlurmExecutor):  # type: ignore[misc]
        @classmethod
        def affinity(cls) -> int:
            return 2  # `submit` has looked for srun; a dry run needs none

    # USR2 kills a Python process that has no handler yet, and the job with it. sh ignores it until submitit's
    # handler is in place, because `env --ignore-signal` is newer (coreutils 8.31) than Red Hat 8.
    python = f"""sh -c 'trap "" USR2; exec "$0" "$@"' {shlex.quote(sys.executable)}"""
    executor = Executor(launch, max_num_timeout=_NO_LIMIT, python=python)
    names = ("partition", "account", "qos", "constraint", "exclude")
    further = {key: value or True for key, value in map(parse_option, plan.extra)}
    executor.update_parameters(
        job_name=plan.job_name,
        nodes=plan.nodes,
        ntasks_per_node=plan.ranks_per_node,
        cpus_per_task=plan.cpus_per_task,
        gpus_per_node=plan.gpus_per_node or None,
        mem=f"{round(plan.mem_gb * 1024)}M" if plan.mem_gb else None,
        time=plan.time_minutes,
        signal_delay_s=plan.signal_delay_s,
        stderr_to_stdout=True,
        setup=[*plan.setup, START_LINE],
        teardown=batch_lines(shlex.quote(sys.executable), launch),  # a job whose step has failed comes back
        wckey=None,  # submitit's own would be refused where keys are accounted
        srun_args=[
            "--kill-on-bad-exit=1",  # without it a job with a dead rank keeps its nodes until the time limit
            f"--cpus-per-task={plan.cpus_per_task}",  # since 22.05 srun does not read sbatch's
            "--wait=0",  # a cluster's WaitTime would kill rank 0 while it still validates
            "--export=ALL",  # with SLURM_EXPORT_ENV=NONE ranks would lack submitit's variables
        ],
        # The signal by name: submitit takes it from SUBMITIT_PREEMPT_SIGNAL, which the job does not have.
        additional_parameters={"requeue": True, "chdir": code, "signal": f"USR2@{plan.signal_delay_s}"}
        | further,
        **{name: getattr(plan, name) or None for name in names},
    )
    return executor
