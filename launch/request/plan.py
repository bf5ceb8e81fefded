"""What a launch asks a cluster for, checked before anything is queued."""

import re
from dataclasses import dataclass, fields

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.request.further_options import check_extra, check_srun
from hpcphotoz.launch.request.slurm_values import parse_gpus, parse_memory, parse_time

RUNTIMES = ("apptainer", "pyxis")


@dataclass(frozen=True)
class LaunchPlan:
    """What to ask the cluster for; one task is one rank.

    Raises:
        BadInput: a count, time or extra parameter that cannot be used.
    """

    nodes: int = 1
    tasks_per_node: int = 0  # ranks per node; 0: one per GPU, or one without GPUs
    gpus_per_node: str = "0"  # "4" or "h100:4"; 0: none from Slurm; on this machine, all that are visible
    cpus_per_task: int = 2  # cores of a rank: its reading threads run on them
    mem: str = ""  # memory per node, "64G"; "0": all of the node; "": the partition's default
    time: str = "60"  # as sbatch's; up to 10 minutes every preemption counts as a time-out in submitit
    signal_delay_s: int = 120  # seconds before the limit at which to save; Slurm may be 60 s early
    max_requeues: int = 10  # requeues in a row without progress; then the job fails
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    exclude: str = ""  # nodes not to use
    job_name: str = "hpcphotoz"
    setup: tuple[str, ...] = ()  # shell lines before the start, e.g. "module load cuda"
    environment: tuple[tuple[str, str], ...] = ()  # variables to export; $NAME in a value is the node's
    python: str = ""  # Python on the nodes; "": this one, or that of the conda environment or container
    conda: str = ""  # name or path of a conda environment
    container: str = ""  # image
    container_runtime: str = "apptainer"
    srun: tuple[str, ...] = ()  # further srun options, e.g. "--cpu-bind=cores"
    extra: tuple[str, ...] = ()  # further sbatch options, "key=value" or "key", e.g. "reservation=photoz"
    dependency: str = ""  # jobs to wait for, as sbatch's; set by --after and --chain
    comment: str = ""  # second line of the script: the profile, and what of it is unverified

    def __post_init__(self) -> None:
        minimum = {"nodes": 1, "cpus_per_task": 1, "signal_delay_s": 0, "max_requeues": 0}
        for name, lowest in (minimum | {"tasks_per_node": 0}).items():
            if getattr(self, name) < lowest:
                raise BadInput(f"{option_of(name)} {getattr(self, name)}: must be at least {lowest}")
        self._refuse_control_characters()
        parse_gpus(self.gpus_per_node)
        if self.mem:
            parse_memory(self.mem)
        if self.signal_delay_s >= self.time_s:
            raise BadInput(
                f"--signal-delay-s {self.signal_delay_s}: longer than the job's --time {self.time}; "
                "the job would stop as soon as it starts"
            )
        if self.conda and self.container:
            raise BadInput(f"--conda {self.conda}: the Python is that of --container: give one of the two")
        if self.container_runtime not in RUNTIMES:
            raise BadInput(f"--container-runtime {self.container_runtime}: valid: {', '.join(RUNTIMES)}")
        for name, _ in self.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise BadInput(f"environment: '{name}' is not the name of a variable")
        for entry in self.extra:
            check_extra(entry)
        for entry in self.srun:
            check_srun(entry)

    def _refuse_control_characters(self) -> None:
        """A newline would begin a line of the batch script, which Slurm and the shell obey."""
        for field in fields(self):
            value = getattr(self, field.name)
            for entry in value if isinstance(value, tuple) else (value,):
                for text in entry if isinstance(entry, tuple) else (entry,):
                    if isinstance(text, str) and not text.replace("\t", " ").isprintable():
                        raise BadInput(f"{option_of(field.name)} {text!r}: has a control character")

    @property
    def gpus(self) -> int:
        """Number of GPUs on each node."""
        return parse_gpus(self.gpus_per_node)[1]

    @property
    def time_s(self) -> int:
        """The time limit in seconds."""
        return parse_time(self.time)

    @property
    def ranks_per_node(self) -> int:
        """Number of ranks on each node."""
        return self.tasks_per_node or max(1, self.gpus)


def option_of(field: str) -> str:
    """The option of the command line that sets a field of the plan: "gpus_per_node" is "--gpus-per-node"."""
    return f"--{field.replace('_', '-')}"
