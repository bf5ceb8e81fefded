"""What a launch asks a cluster for, checked before anything is queued."""

import re
from dataclasses import dataclass, fields

from hpcphotoz.errors import BadInput

_LAUNCHER_OPTIONS = (
    "account array chdir constraint cpus-per-task error exclude gpus-per-node job-name mem nodes no-requeue "
    "ntasks ntasks-per-node open-mode output partition qos requeue signal time"
).split()
# Options that change what sbatch does or prints, not the job.
_SBATCH_ACTIONS = "help parsable quiet test-only usage version wait wrap".split()


@dataclass(frozen=True)
class LaunchPlan:
    """What to ask the cluster for; one task is one rank.

    Raises:
        BadInput: a count, time or extra parameter that cannot be used.
    """

    nodes: int = 1
    tasks_per_node: int = 0  # ranks per node; 0: one per GPU, or one without GPUs
    gpus_per_node: int = 0  # 0: none from Slurm; on this machine, all that are visible
    cpus_per_task: int = 2  # cores of a rank: its reading threads run on them
    mem_gb: float = 0.0  # GB per node; 0: the partition's default
    time_minutes: int = 60  # below 11 every preemption counts as a time-out in submitit
    signal_delay_s: int = 120  # seconds before the limit at which to save; Slurm may be 60 s early
    max_requeues: int = 10  # requeues in a row without progress; then the job fails
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    exclude: str = ""  # nodes not to use
    job_name: str = "hpcphotoz"
    setup: tuple[str, ...] = ()  # shell lines before the start, e.g. "module load cuda"
    extra: tuple[str, ...] = ()  # further sbatch options, "key=value" or "key", e.g. "reservation=photoz"

    def __post_init__(self) -> None:
        minimum = {"nodes": 1, "cpus_per_task": 1, "time_minutes": 1, "signal_delay_s": 0, "max_requeues": 0}
        minimum |= {"tasks_per_node": 0, "gpus_per_node": 0, "mem_gb": 0}
        for name, lowest in minimum.items():
            if getattr(self, name) < lowest:
                option = name.replace("_", "-")
                raise BadInput(f"--{option} {getattr(self, name)}: must be at least {lowest}")
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
            key = parse_option(entry)[0]
            if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
                raise BadInput(f"extra Slurm parameter '{entry}': write key=value, e.g. reservation=photoz")
            # sbatch accepts the beginning of an option's name for the whole name.
            if any(name.startswith(key) for name in _LAUNCHER_OPTIONS):
                raise BadInput(f"extra Slurm parameter '{entry}': {key} is set by the launcher's own options")
            if any(name.startswith(key) for name in _SBATCH_ACTIONS):
                raise BadInput(
                    f"extra Slurm parameter '{entry}': changes what sbatch does, not the job; see --dry-run"
                )

    @property
    def ranks_per_node(self) -> int:
        """Number of ranks on each node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)


def parse_option(entry: str) -> tuple[str, str]:
    """The key and value of a further sbatch option; the value of "key" alone is empty."""
    key, _, value = entry.partition("=")
    return key.removeprefix("--").replace("_", "-"), value
