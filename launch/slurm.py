"""Put a training run on a Slurm cluster, or run it here with the same machinery.

Everything of a launch lies in RUN/launch, which must be on a file system that the nodes share:

    <job>_submission.sh        the sbatch script
    <job>_submitted.pkl        the `TrainJob`
    <job>_<rank>_log.out       output and errors of one rank, continued after a restart
    <job>_<rank>_result.pkl    written when a rank has ended for good
    code-<hash>/               the code that runs
"""

import contextlib
import io
import os
import pickle
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.errors import BadInput
from hpcphotoz.launch import snapshot
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.output import say
from hpcphotoz.training.run import checkpoint, run_folder
from hpcphotoz.world import RANK_NAMES, RANK_PREFIXES

_LOCAL_MINUTES = 60 * 24 * 365  # the local executor wants a limit; a run at home has none
_LAUNCHER_OPTIONS = (
    "account array chdir constraint cpus-per-task error exclude gpus-per-node job-name mem nodes no-requeue "
    "ntasks ntasks-per-node open-mode output partition qos requeue signal time"
).split()
# Options that change what sbatch does or answers, and not the job.
_SBATCH_ACTIONS = "help parsable quiet test-only usage version wait wrap".split()
_SLURM_ONLY = (
    *("mem_gb", "time_minutes", "signal_delay_s", "partition", "account", "qos", "constraint", "exclude"),
    *("job_name", "setup", "extra"),
)
# Variables of the job or launcher that a submission is made from: they would change the new job's shape.
_INHERITED = ("SLURM_", "SLURMD_", "SUBMITIT_", *RANK_PREFIXES)
_INHERITED_NAMES = (*RANK_NAMES, "MASTER_ADDR", "MASTER_PORT")
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
# SBATCH_<NAME> overrides the option of the script that has the same name, or this one.
_SBATCH_NAMES = {
    "NO_REQUEUE": "requeue",
    "TIMELIMIT": "time",
    **dict.fromkeys(("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"), "mem"),
}
# The shape of a job is the launcher's, where the script is silent too: no GPUs are no GPUs.
_SBATCH_SHAPE = (
    *("ARRAY_INX", "CPUS_PER_GPU", "ERROR", "EXPORT", "GPUS", "GPUS_PER_NODE", "GPUS_PER_SOCKET"),
    *("GPUS_PER_TASK", "GRES", "OVERCOMMIT", "TRES_PER_TASK", "WAIT"),
)


@dataclass(frozen=True)
class LaunchPlan:
    """What to ask the cluster for; one task is one rank.

    Raises:
        BadInput: a count, time or extra parameter that cannot be used.
    """

    nodes: int = 1
    tasks_per_node: int = 0  # ranks a node; 0: one a GPU, or one without GPUs
    gpus_per_node: int = 0  # 0: Slurm gives none; on this machine those that are visible are used
    cpus_per_task: int = 2  # the reading threads of a rank run on them
    mem_gb: float = 0.0  # GB a node; 0: the partition's default
    time_minutes: int = 60  # below 11 every preemption counts as a time-out in submitit
    signal_delay_s: int = 120  # seconds before the limit at which to save; Slurm may be 60 s early
    max_requeues: int = 10  # restarts, after time-outs and preemptions together; then the job fails
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    exclude: str = ""  # nodes not to use
    job_name: str = "hpcphotoz"
    setup: tuple[str, ...] = ()  # shell lines before the start, e.g. "module load cuda"
    extra: tuple[str, ...] = ()  # further sbatch options, "key=value" or "key", e.g. "reservation=photoz"

    def __post_init__(self) -> None:
        least = {"nodes": 1, "cpus_per_task": 1, "time_minutes": 1, "signal_delay_s": 0, "max_requeues": 0}
        least |= {"tasks_per_node": 0, "gpus_per_node": 0, "mem_gb": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                option = name.replace("_", "-")
                raise BadInput(f"--{option} {getattr(self, name)}: must be at least {smallest}")
        if self.signal_delay_s >= 60 * self.time_minutes:
            raise BadInput(
                f"--signal-delay-s {self.signal_delay_s}: longer than the job's {self.time_minutes} minutes; "
                "the job would stop as soon as it starts"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            for text in value if isinstance(value, tuple) else (value,):
                # A newline would begin a line of the batch script, which Slurm and the shell obey.
                if isinstance(text, str) and not text.replace("\t", " ").isprintable():
                    raise BadInput(f"--{field.name.replace('_', '-')} {text!r}: has a control character")
        for entry in self.extra:
            key = _option(entry)[0]
            if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
                raise BadInput(f"extra Slurm parameter '{entry}': write key=value, e.g. reservation=photoz")
            # sbatch takes the beginning of a name for the whole of it.
            if any(name.startswith(key) for name in _LAUNCHER_OPTIONS):
                raise BadInput(f"extra Slurm parameter '{entry}': {key} is set by the launcher's own options")
            if any(name.startswith(key) for name in _SBATCH_ACTIONS):
                raise BadInput(f"extra Slurm parameter '{entry}': is no property of a job; see --dry-run")

    @property
    def ranks_per_node(self) -> int:
        """Ranks a node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)


@dataclass(frozen=True)
class Submitted:
    """A job that Slurm has accepted."""

    job_id: str
    logs: Path  # RUN/launch: `<job_id>_<rank>_log.out`


def dry_run(plan: LaunchPlan, job: TrainJob) -> str:
    """The sbatch script that `submit` would hand to Slurm; needs no Slurm here and writes nothing.

    Raises:
        BadInput: submitit is not installed; a run folder whose name Slurm would rewrite.
    """
    launch = _launch_folder(job)
    executor = _executor(plan, launch, snapshot.folder(launch))
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def submit(plan: LaunchPlan, job: TrainJob, tell: Callable[[str], None] = say) -> Submitted:
    """Queue the run on Slurm, from a snapshot of the present code.

    Args:
        plan: what to ask the cluster for.
        job: what to train.
        tell: is given the names of the environment's variables that would override the plan and are left out.

    Raises:
        BadInput: submitit or sbatch is missing, no such dataset, a run folder that cannot be used, or sbatch
            refused (its own message).
    """
    submitit, launch = _submitit(), _launch_folder(job)
    for command in ("sbatch", "srun"):
        if shutil.which(command) is None:
            raise BadInput(
                f"{command}: not found; submit on a login node of the cluster, or use `launch local`"
            )
    _check_folders(job)  # now, not after a day in the queue
    code = _take_snapshot(launch)
    executor = _executor(plan, launch, code)
    script = executor._make_submission_file_text(executor._submitit_command_str, "")
    overriding = _overriding(script, os.environ)
    if overriding:
        tell(f"{', '.join(overriding)} of the environment: left out, the options of this launch hold")
    before = set(launch.iterdir())
    try:
        # submitit prints sbatch's complaint as well: it is told once, below.
        with _outside_any_job(overriding), contextlib.redirect_stderr(io.StringIO()):
            submitted = executor.submit(_with_placement(job, plan, code))
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        for left in set(launch.iterdir()) - before:
            if re.fullmatch(r"[0-9a-f]{32}\.pkl|\.submission_file_[0-9a-f]{32}\.sh", left.name):
                left.unlink()
        raise BadInput(f"sbatch refused the job: {' '.join(str(error).split())}") from None
    return Submitted(submitted.job_id, launch)


def run_local(plan: LaunchPlan, job: TrainJob, tell: Callable[[str], None] = say) -> int:
    """Train on this machine with one process a rank, wait for the end, and return the exit status.

    Ctrl-C, or SIGTERM to this process, saves and stops all ranks after the same step. Main thread only.

    Args:
        plan: nodes must be 1, and what only Slurm understands must be left at its defaults.
        job: what to train.
        tell: is given the folder of the logs at the start, and the reason of a failure.

    Returns:
        0: finished; 130: stopped by the user, saved; 1: failed.

    Raises:
        BadInput: submitit is missing, more than one node, options that only Slurm understands, more GPUs than
            visible, no such dataset, a run folder that cannot be used.
    """
    submitit, launch = _submitit(), _launch_folder(job)
    if plan.nodes != 1:
        raise BadInput(f"--nodes {plan.nodes}: a local launch has one node; use `launch slurm`")
    for field in fields(plan):
        if field.name in _SLURM_ONLY and getattr(plan, field.name) != field.default:
            option = field.name.replace("_", "-")
            raise BadInput(f"--{option}: means nothing on this machine: leave it out, or use `launch slurm`")
    _check_folders(job)
    visible = _visible_gpus(plan.gpus_per_node, os.environ.get("CUDA_VISIBLE_DEVICES"))
    code = _take_snapshot(launch)
    executor = submitit.LocalExecutor(launch, max_num_timeout=plan.max_requeues)
    executor.update_parameters(
        tasks_per_node=plan.ranks_per_node,
        timeout_min=_LOCAL_MINUTES,
        stderr_to_stdout=True,
    )
    placed = replace(_with_placement(job, plan, code), visible_gpus=visible)
    # Ranks inherit ignored signals, and the trainer handles them all the same. The process in between, which
    # would kill them one second after a Ctrl-C, or leave them alone after a hangup, does not see either.
    with (
        contextlib.chdir(code),
        _outside_any_job(),
        _signal_handler(signal.SIGINT, signal.SIG_IGN),
        _signal_handler(signal.SIGHUP, signal.SIG_IGN),
    ):
        running = executor.submit(placed)
    logs = f"{launch}/{running.job_id}_<rank>_log.out"
    interrupted = _wait(
        running._process, lambda: tell(f"{plan.ranks_per_node} ranks, job {running.job_id}, logs in {logs}")
    )
    return _local_status(launch, running.job_id, plan.ranks_per_node, interrupted, tell)


def _option(entry: str) -> tuple[str, str]:
    key, _, value = entry.partition("=")
    return key.removeprefix("--").replace("_", "-"), value


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise BadInput("submitit is not installed: pip install 'hpcphotoz[launch]'") from None
    return submitit


def _launch_folder(job: TrainJob) -> Path:
    if re.search(r"[%\\]", job.out):
        raise BadInput(f"{job.out}: Slurm would rewrite '%' and '\\' in this name: choose another run folder")
    if not job.out.isprintable():
        raise BadInput(f"{job.out!r}: a control character in this name: choose another run folder")
    return Path(job.out) / "launch"


def _check_folders(job: TrainJob) -> None:
    manifest, run = read_manifest(Path(job.data)), Path(job.out)
    run_folder.check(run, job.parsed)
    newest = checkpoint.latest(run)
    if newest is not None:
        checkpoint.check_data(run, checkpoint.load(newest), Path(job.data), manifest.sha256)


def _take_snapshot(launch: Path) -> Path:
    try:
        return snapshot.take(launch)
    except OSError as error:
        raise BadInput(f"{launch}: cannot write the launch folder: {error.strerror}") from None


def _with_placement(job: TrainJob, plan: LaunchPlan, code: Path) -> TrainJob:
    device = "cuda" if plan.gpus_per_node and job.device == "auto" else job.device
    placed = {"code": str(code), "cpus": plan.cpus_per_task, "max_requeues": plan.max_requeues}
    return replace(job, device=device, **placed)  # type: ignore[arg-type]


def _executor(plan: LaunchPlan, launch: Path, code: Path) -> Any:
    _submitit()
    import submitit

    class Executor(submitit.SlurmExecutor):  # type: ignore[misc]
        @classmethod
        def affinity(cls) -> int:
            return 2  # `submit` has looked for srun; a dry run needs none

    # USR2 kills a Python that has no handler yet, and the job with it. Ignored until submitit's is in place;
    # by sh, as `env --ignore-signal` came with coreutils 8.31, after Red Hat 8.
    python = f"""sh -c 'trap "" USR2; exec "$0" "$@"' {shlex.quote(sys.executable)}"""
    executor = Executor(launch, max_num_timeout=plan.max_requeues, python=python)
    named = {
        name: getattr(plan, name) or None for name in ("partition", "account", "qos", "constraint", "exclude")
    }
    further = {key: value or True for key, value in map(_option, plan.extra)}
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
        setup=list(plan.setup) or None,
        wckey=None,  # submitit's own would be refused where keys are accounted
        srun_args=[
            "--kill-on-bad-exit=1",  # without it a job with a dead rank keeps its nodes until the time limit
            f"--cpus-per-task={plan.cpus_per_task}",  # since 22.05 srun does not read sbatch's
            "--wait=0",  # a cluster's WaitTime would kill rank 0 while it still evaluates
            "--export=ALL",  # with SLURM_EXPORT_ENV=NONE ranks would not learn that submitit has started them
        ],
        # The signal by name: submitit reads it from SUBMITIT_PREEMPT_SIGNAL, which the job does not have.
        additional_parameters={
            "requeue": True,
            "chdir": code,
            "signal": f"USR2@{plan.signal_delay_s}",
            **further,
        },
        **named,
    )
    return executor


def _overriding(script: str, env: Collection[str]) -> list[str]:
    """Variables by which sbatch, or srun inside the job, would do otherwise than the script says."""
    options = set(re.findall(r"^#SBATCH --([a-z0-9-]+)", script, re.MULTILINE))
    found = []
    for name in sorted(env):
        of_sbatch, of_srun = name.removeprefix("SBATCH_"), name.startswith("SRUN_")
        option = _SBATCH_NAMES.get(of_sbatch, of_sbatch.lower().replace("_", "-"))
        if of_srun or (of_sbatch != name and (of_sbatch in _SBATCH_SHAPE or option in options)):
            found.append(name)
    return found


@contextlib.contextmanager
def _outside_any_job(further: Collection[str] = ()) -> Iterator[None]:
    """Hide the job or launcher this process runs in, and `further` variables; keep the cluster's name."""
    hidden = {
        name: value
        for name, value in os.environ.items()
        if name in further
        or (name not in _KEPT and (name.startswith(_INHERITED) or name in _INHERITED_NAMES))
    }
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _signal_handler(number: signal.Signals, handler: Any) -> Iterator[None]:
    earlier = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, earlier)


def _visible_gpus(wanted: int, given: str | None) -> str | None:
    """CUDA_VISIBLE_DEVICES of the ranks of a local launch; None: not set.

    Args:
        wanted: GPUs to use; 0: those that are visible.
        given: the variable of this process: numbers, UUIDs of GPUs or of MIG parts, empty, or None.

    Raises:
        BadInput: fewer are visible.
    """
    if not wanted:
        return given
    if given is None:
        return ",".join(map(str, range(wanted)))
    names = [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    if wanted > len(names):
        raise BadInput(f"--gpus-per-node {wanted}: CUDA_VISIBLE_DEVICES names {len(names)}")
    return ",".join(names[:wanted])


def _wait(controller: Any, tell: Callable[[], None]) -> bool:
    """Wait for the controlling process, passing a stop on to the ranks; return whether there was one."""
    stops = []

    def stop(number: int, frame: object) -> None:
        stops.append(number)
        controller.send_signal(signal.SIGTERM)

    with contextlib.ExitStack() as handlers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Under nohup a hangup is ignored, and a closed terminal stops nothing.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                handlers.enter_context(_signal_handler(number, stop))
        tell()
        controller.wait()
    return bool(stops)


def _local_status(
    launch: Path, job_id: str, ranks: int, interrupted: bool, tell: Callable[[str], None]
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
            tell(f"rank {rank} failed: {reason}; see {launch}/{job_id}_{rank}_log.out")
            return 1
        outcomes.add(result)
    if outcomes == {"finished"}:
        return 0
    if interrupted or outcomes == {"stopped"}:
        tell("stopped before the end; the same command goes on from the newest checkpoint")
        return 130
    tell(f"the job ended without a result; see {launch}/{job_id}_0_log.out")
    return 1
