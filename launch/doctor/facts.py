"""Facts that the doctor collects, and judges afterwards: of the cluster, of a host, of a node of the job."""

from pydantic import BaseModel, ConfigDict

LOGIN = "login node"


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClusterFacts(_Facts):
    """What Slurm says of itself and of a partition: fields as `scontrol` prints them."""

    installed: bool = True  # whether Slurm's commands are on this machine
    error: str = ""  # why the controller does not answer; "": it does
    config: dict[str, str] = {}  # scontrol show config
    partition: dict[str, str] = {}  # scontrol show partition
    munge_error: str = ""
    has_sacct: bool = True
    signal_delay_s: int = 120  # of the launch: seconds that saving may take
    time_s: int = 3600  # of the launch: its time limit


class JobFacts(_Facts):
    """What became of the doctor's job."""

    job_id: str = "1"
    refusal: str = ""  # what sbatch said; "": it accepted the job
    state: str = "COMPLETED"  # the last one seen
    reason: str = "None"  # why it is pending
    has_ended: bool = True  # within `wait_s`; otherwise it was cancelled
    may_requeue: bool = True
    nodes: int = 2  # asked for
    own_python: bool = True  # the nodes use the Python of the login node
    wait_s: float = 600.0
    last_lines: dict[int, str] = {}  # of the logs of ranks without all facts


class FolderFacts(_Facts):
    """A folder in which runs write."""

    name: str  # "run folder", "home", "temporary folder"
    path: str
    kind: str = ""  # of its network file system, such as "lustre"; "": on a disk of this host
    error: str = ""  # why no file can be written; "": one can
    total_bytes: int = 0
    free_bytes: int = 0
    total_inodes: int = 0  # 0: the file system does not count them
    free_inodes: int = 0


class QuotaFacts(_Facts):
    """A quota of the user, in kilobytes or files."""

    file_system: str
    unit: str  # "kB" or "files"
    used: int
    limit: int  # the first limit that matters; 0: none


class HostFacts(_Facts):
    """What is so on the login node or on a node of the job."""

    where: str = LOGIN
    python: str = ""  # version
    versions: dict[str, str] = {}  # of torch, hpcphotoz, h5py, submitit
    missing: dict[str, str] = {}  # packages that cannot be imported, and why
    env: dict[str, str] = {}  # variables that matter to a run
    folders: list[FolderFacts] = []
    quotas: list[QuotaFacts] = []
    caches: list[FolderFacts] = []  # where compiled kernels are kept, by the name of their variable
    host_address: str = "10.0.0.1"  # of the host's name; "": it does not resolve
    interfaces: dict[str, int] = {}  # MTU in bytes
    has_infiniband: bool = False
    cores: int = 1  # that this process may use
    shared_memory: int = 1 << 40  # bytes free in /dev/shm
    open_files: int = 1 << 20  # soft limit
    locked_memory: int = -1  # bytes that may be locked; -1: no limit


class GpuFacts(_Facts):
    """GPUs of a node, as the driver and torch see them."""

    vendor: str = ""  # of the driver: "nvidia", "amd"; "": none
    driver: str = ""  # version
    driver_cuda: str = ""  # the newest CUDA that the driver runs
    torch_build: str = ""  # "cuda 12.8", "rocm 6.4" or "cpu"
    usable: int = 0  # GPUs that torch sees
    name: str = ""
    error: str = ""  # of a product of two matrices; "": it is right


class FileFacts(_Facts):
    """The shared folder, seen from a node."""

    errors: dict[str, str] = {}  # by check: why it could not be made
    write_mb_s: float = 0.0
    read_mb_s: float = 0.0  # of the other node's file
    files_s: float = 0.0  # small files made and removed each second
    locking: str = ""  # "seen", "not seen" on the other node, or "none"; "": not tried
    missing: int = 0  # times that a file being replaced was not there
    torn: int = 0  # times that it was neither old nor new
    seen_after_s: float = 0.0  # until the other node's last rename was seen; -1: not at all


class NodeFacts(HostFacts):
    """What is so on a node of the job, and between it and the others."""

    rank: int = 0
    stage: str = "end"  # what it did when this was written; "end": everything
    asked_cores: int = 1
    asked_gpus: int = 0
    nodes: int = 1
    gpu: GpuFacts | None = None
    files: FileFacts | None = None  # None: not reached
    gb_s: dict[str, float] = {}  # of an all-reduce over one rank a node, by backend
    errors: dict[str, str] = {}  # of gloo and NCCL
    clock_ahead_s: float = 0.0  # of that of rank 0's node
    # The clock is ahead of the login node's by something between these.
    login_ahead_s: tuple[float, float] = (-1e9, 1e9)
