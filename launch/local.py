"""Run a launch on this machine with submitit, one process per rank."""

import contextlib
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hpcphotoz.errors import BadInput
from hpcphotoz.launch import snapshot
from hpcphotoz.launch.environment import outside_any_job, visible_gpus
from hpcphotoz.launch.jobs.active import refuse_active
from hpcphotoz.launch.preparation import Job, check_folders, import_submitit, launch_folder, with_placement
from hpcphotoz.launch.request.plan import LaunchPlan, option_of
from hpcphotoz.launch.request.slurm_values import parse_gpus
from hpcphotoz.output import number_of, say

_LOCAL_MINUTES = 60 * 24 * 365  # submitit's local executor requires a limit; a local run has none
_OF_THIS_MACHINE = ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "max_requeues")


def run_local(plan: LaunchPlan, job: Job, report: Callable[[str], None] = say) -> int:
    """Train on this machine with one process per rank, wait for the end, and return the exit status.

    Ctrl-C, or SIGTERM to this process, stops all ranks after the same step with a checkpoint; a second time,
    without one. Call it in the main thread.

    Args:
        plan: one node; options that only Slurm understands must have their defaults.
        job: what to run.
        report: called with the folder of the logs at the start, and with how the job has ended.

    Returns:
        0: finished; 75: stopped and saved; 128 + n: ended by signal n without saving; 1: failed.

    Raises:
        BadInput: submitit is missing, more than one node, options that only Slurm understands, more GPUs than
            visible, no such dataset, a run folder that cannot be used, a run that a job or another process
            works on.
    """
    submitit, launch = import_submitit(), launch_folder(job)
    if plan.nodes != 1:
        raise BadInput(f"--nodes {plan.nodes}: a local launch has one node; use `launch slurm`")
    for field in fields(plan):
        if field.name not in _OF_THIS_MACHINE and getattr(plan, field.name) != field.default:
            raise BadInput(
                f"{option_of(field.name)}: means nothing on this machine: leave it out, or use `launch slurm`"
            )
    kind, _ = parse_gpus(plan.gpus_per_node)
    if kind:
        raise BadInput(f"--gpus-per-node {plan.gpus_per_node}: give the number alone on this machine")
    check_folders(job)
    refuse_active(Path(job.out), chain=False)
    visible = visible_gpus(plan.gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    code = snapshot.take(launch)
    executor = submitit.LocalExecutor(launch)
    ranks = plan.ranks_per_node
    executor.update_parameters(tasks_per_node=ranks, timeout_min=_LOCAL_MINUTES, stderr_to_stdout=True)
    placed = replace(with_placement(job, plan, code), visible_gpus=visible)
    # submitit's controlling process would kill the ranks one second after a Ctrl-C, and abandon them after a
    # hangup: it ignores both signals. The ranks inherit that, but the trainer installs its own handlers.
    with (
        contextlib.chdir(code),
        outside_any_job(),
        _signal_handler(signal.SIGINT, signal.SIG_IGN),
        _signal_handler(signal.SIGHUP, signal.SIG_IGN),
    ):
        running = executor.submit(placed)
    logs = f"{launch}/{running.job_id}_<rank>_log.out"
    saves = "saves and stops it, twice ends it without saving" if job.kind == "train" else "ends it"
    said = (
        f"{number_of(ranks, 'rank')}, job {running.job_id}, logs in {logs}; waits for its end: Ctrl-C {saves}"
    )
    interrupted = _wait(running._process, lambda: report(said))
    return _local_status(launch, running.job_id, ranks, interrupted, report)


@contextlib.contextmanager
def _signal_handler(number: signal.Signals, handler: Any) -> Iterator[None]:
    earlier = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, earlier)


def _wait(controller: Any, report: Callable[[], None]) -> int:
    """Wait for submitit's controlling process, passing signals on to the ranks; the last of them, or 0."""
    stops = [0]

    def stop(number: int, frame: object) -> None:
        stops.append(number)
        controller.send_signal(signal.SIGTERM)

    with contextlib.ExitStack() as handlers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Under nohup a hangup stays ignored: closing the terminal stops nothing.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                handlers.enter_context(_signal_handler(number, stop))
        report()
        controller.wait()
    return stops[-1]


def _local_status(
    launch: Path, job_id: str, ranks: int, interrupted: int, report: Callable[[str], None]
) -> int:
    outcomes = set()
    for rank in range(ranks):
        path = launch / f"{job_id}_{rank}_result.pkl"
        if not path.is_file():
            continue
        with open(path, "rb") as file:
            kind, result = pickle.load(file)
        if kind == "error":
            reason = result.strip().splitlines()[-1]
            if reason.startswith("hpcphotoz.errors.BadInput: "):
                raise BadInput(reason.partition(": ")[2])
            report(f"rank {rank} failed: {reason}; see {launch}/{job_id}_{rank}_log.out")
            return 1
        outcomes.add(result)
    if outcomes == {"finished"}:
        report("finished")
        return 0
    if outcomes == {"stopped"}:
        report("saved and stopped before the end; the same command goes on")
        return os.EX_TEMPFAIL
    if interrupted:
        name = signal.Signals(interrupted).name
        saved = any((launch.parent / "checkpoints").glob("step-*.pt"))
        then = "goes on from the newest checkpoint" if saved else "begins the run: it had saved nothing yet"
        report(f"ended by {name} without saving; the same command {then}")
        return 128 + interrupted
    report(f"the job ended without a result; see {launch}/{job_id}_0_log.out")
    return 1
