"""A healthy cluster as facts, and a misconfiguration planted in it for every check of the doctor."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hpcphotoz.launch.doctor.facts import (
    ClusterFacts,
    FileFacts,
    FolderFacts,
    GpuFacts,
    HostFacts,
    JobFacts,
    NodeFacts,
    QuotaFacts,
)
from hpcphotoz.launch.doctor.finding import Finding, Level, arranged
from hpcphotoz.launch.doctor.host_rules import judge_login
from hpcphotoz.launch.doctor.node_rules import judge_nodes
from hpcphotoz.launch.doctor.slurm_rules import judge_cluster, judge_job

SHM, TB = 64 << 30, 10**12
VERSIONS = {"hpcphotoz": "0.1.0", "torch": "2.13.0+cu128", "h5py": "3.16.0", "submitit": "1.5.4"}


@dataclass(frozen=True)
class Facts:
    """Everything that the doctor judges."""

    cluster: ClusterFacts
    login: HostFacts
    job: JobFacts
    nodes: tuple[NodeFacts, ...]

    def judged(self) -> list[Finding]:
        """The doctor's report."""
        found = [*judge_cluster(self.cluster), *judge_login(self.login), *judge_job(self.job, self.nodes)]
        return arranged([*found, *judge_nodes(self.nodes, self.login if self.job.own_python else None)])

    def bad(self) -> dict[str, Level]:
        """Checks that have something to fix, and how bad it is."""
        return {each.name: each.level for each in self.judged() if each.level >= Level.WARNING}


def folder(name: str = "run folder", **fields: Any) -> FolderFacts:
    """A folder with room."""
    room = {"total_bytes": 10 * TB, "free_bytes": TB, "total_inodes": 10**9, "free_inodes": 10**8}
    return FolderFacts(**{"name": name, "path": "/scratch/me", "kind": "lustre", **room, **fields})


def healthy() -> Facts:
    """A cluster without a fault: two nodes of one NVIDIA GPU, a partition that preempts."""
    folders = [
        folder(),
        folder("home", path="/users/me", kind="nfs4"),
        folder("temporary folder", kind=""),
    ]
    common: dict[str, Any] = {"python": "3.11.9", "versions": VERSIONS, "folders": folders}
    common |= {"interfaces": {"lo": 65536, "eth0": 1500, "ib0": 4092}, "has_infiniband": True, "cores": 8}
    gpu = GpuFacts(vendor="nvidia", driver="570.1", driver_cuda="12.8", torch_build="cuda 12.8", usable=1)
    files = FileFacts(write_mb_s=900, read_mb_s=1500, files_s=800, locking="seen", seen_after_s=0.2)
    speeds = {"gloo": 2.0, "nccl": 20.0}
    asked = {"asked_cores": 8, "asked_gpus": 1, "nodes": 2, "gpu": gpu, "files": files, "gb_s": speeds}
    nodes = [
        NodeFacts(where=f"n{rank + 1}", rank=rank, login_ahead_s=(-0.3, 0.2), **asked, **common)
        for rank in range(2)
    ]
    quota = QuotaFacts(file_system="/users", unit="kB", used=10, limit=100)
    config = {"SLURM_VERSION": "23.11.4", "PreemptType": "preempt/partition_prio", "KillWait": "30 sec"}
    config |= {"SlurmctldParameters": "preempt_send_user_signal", "JobRequeue": "1"}
    partition = {"PartitionName": "gpu", "State": "UP", "TotalNodes": "40", "PreemptMode": "REQUEUE"}
    partition |= {"GraceTime": "00:05:00", "MaxTime": "1-00:00:00"}
    config["AccountingStorageType"] = "accounting_storage/slurmdbd"
    return Facts(
        ClusterFacts(config=config, partition=partition),
        HostFacts(quotas=[quota], **common),
        JobFacts(),
        tuple(nodes),
    )


Plant = Callable[[Facts], Facts]


def in_config(**fields: str) -> Plant:
    """Change fields of `scontrol show config`."""
    return lambda facts: replace(
        facts, cluster=facts.cluster.model_copy(update={"config": facts.cluster.config | fields})
    )


def in_partition(**fields: str) -> Plant:
    """Change fields of `scontrol show partition`."""
    return lambda facts: replace(
        facts, cluster=facts.cluster.model_copy(update={"partition": facts.cluster.partition | fields})
    )


def in_cluster(**fields: Any) -> Plant:
    """Change facts of the cluster."""
    return lambda facts: replace(facts, cluster=facts.cluster.model_copy(update=fields))


def in_job(**fields: Any) -> Plant:
    """Change facts of the job."""
    return lambda facts: replace(facts, job=facts.job.model_copy(update=fields))


def on_login(**fields: Any) -> Plant:
    """Change facts of the login node."""
    return lambda facts: replace(facts, login=facts.login.model_copy(update=fields))


def on_node(**fields: Any) -> Plant:
    """Change facts of the second node."""
    return lambda facts: replace(facts, nodes=(facts.nodes[0], facts.nodes[1].model_copy(update=fields)))


def in_files(**fields: Any) -> Plant:
    """Change what the second node found in the shared folder."""

    def plant(facts: Facts) -> Facts:
        assert facts.nodes[1].files
        return on_node(files=facts.nodes[1].files.model_copy(update=fields))(facts)

    return plant


def in_gpu(**fields: Any) -> Plant:
    """Change what is known of the second node's GPU."""

    def plant(facts: Facts) -> Facts:
        assert facts.nodes[1].gpu
        return on_node(gpu=facts.nodes[1].gpu.model_copy(update=fields))(facts)

    return plant


def _both_slow(facts: Facts) -> Facts:
    return replace(
        facts, nodes=tuple(n.model_copy(update={"gb_s": {"gloo": 0.01, "nccl": 20.0}}) for n in facts.nodes)
    )


W, P = Level.WARNING, Level.PROBLEM
# By check: what is planted, how bad the doctor says it is, and further checks that it disturbs.
PLANTED: dict[str, list[tuple[Plant, Level, set[str]]]] = {
    "slurm": [
        (in_cluster(error="Unable to contact slurm controller"), P, set()),
        (in_config(SLURM_VERSION="19.05.2"), W, set()),
    ],
    "munge": [(in_cluster(munge_error="munge: Error: Expired credential"), P, set())],
    "partition": [(in_partition(State="DOWN"), P, set()), (in_partition(State="DRAIN"), P, set())],
    "preemption signal": [(in_config(SlurmctldParameters="(null)"), W, set())],
    "grace time": [
        (in_partition(GraceTime="0"), P, set()),
        (in_partition(GraceTime="00:01:00"), W, set()),
    ],
    "kill wait": [(in_config(KillWait="5 sec"), W, set())],
    "requeue": [(in_partition(PreemptMode="CANCEL"), W, set()), (in_job(may_requeue=False), P, set())],
    "time limit": [
        (in_partition(MaxTime="00:10:00"), W, set()),
        (in_partition(MaxTime="00:30:00"), W, set()),
    ],
    "accounting": [],  # worth knowing only: see test_no_accounting_is_told
    "environment": [
        (on_login(env={"SBATCH_TIMELIMIT": "2"}), W, set()),
        (on_login(env={"SRUN_EXPORT_ENV": "NONE"}), W, set()),
        (on_login(env={"SLURM_NTASKS": "4"}), W, set()),
        (on_login(env={"RANK": "0"}), W, set()),
        (on_login(env={"OMPI_COMM_WORLD_SIZE": "4"}), W, set()),
        (on_login(env={"MASTER_ADDR": "elsewhere"}), W, set()),
        (on_login(env={"PYTHONSAFEPATH": "1"}), P, set()),
    ],
    "job": [
        (in_job(refusal="Invalid account"), P, set()),
        (in_job(state="PENDING", has_ended=False, reason="Resources"), W, set()),
        (in_job(state="PENDING", has_ended=False, reason="PartitionConfig"), P, set()),
        (lambda facts: on_node(stage="nccl")(in_job(state="FAILED")(facts)), P, set()),
        (lambda facts: replace(facts, nodes=facts.nodes[:1]), P, set()),
    ],
    "imports": [
        (on_login(missing={"submitit": "not installed"}), P, set()),
        (on_node(missing={"h5py": "not installed"}), P, set()),
    ],
    "versions": [
        (on_node(versions=VERSIONS | {"torch": "2.11.0"}), P, set()),
        (on_node(python="3.12.1"), P, set()),
    ],
    "cores": [(on_node(cores=1), P, {"threads"})],
    "threads": [
        (on_node(env={"OMP_NUM_THREADS": "64"}), W, set()),
        (on_node(env={"OMP_NUM_THREADS": "many"}), W, set()),
    ],
    "gpu": [(in_gpu(usable=0), P, set()), (in_gpu(error="GPU 0 computes a wrong result"), P, set())],
    "driver": [
        (in_gpu(driver_cuda="11.8"), P, set()),
        (in_gpu(torch_build="cpu"), P, set()),
        (in_gpu(torch_build="rocm 6.4"), P, set()),
        (in_gpu(vendor="amd"), P, set()),
        (in_gpu(vendor=""), P, set()),
    ],
    "host name": [(on_node(host_address="127.0.1.1"), W, set()), (on_node(host_address=""), W, set())],
    "interfaces": [
        (on_node(env={"GLOO_SOCKET_IFNAME": "ib1"}), P, set()),
        (on_node(env={"NCCL_SOCKET_IFNAME": "hsn"}), P, set()),
        (on_node(env={"NCCL_SOCKET_IFNAME": "^eth,ib"}), P, set()),
        (on_node(env={"NCCL_SOCKET_IFNAME": "=ib"}), P, set()),
    ],
    "mtu": [(on_node(interfaces={"lo": 65536, "eth0": 9000, "ib0": 4092}), P, set())],
    "gloo": [(on_node(errors={"gloo": "Connection refused"}), P, set()), (_both_slow, W, set())],
    "nccl": [(on_node(gb_s={"gloo": 2.0}), P, set()), (on_node(errors={"nccl": "no route"}), P, set())],
    "clock": [
        (on_node(clock_ahead_s=3.0), W, set()),
        (on_node(clock_ahead_s=-90.0), P, set()),
        (on_node(login_ahead_s=(5.0, 6.0)), W, set()),
        (on_node(login_ahead_s=(-400.0, -300.0)), P, set()),
    ],
    "folder": [
        (on_login(folders=[folder(error="Read-only file system")]), P, set()),
        (on_node(folders=[folder("temporary folder", error="Permission denied")]), P, set()),
    ],
    "shared folder": [(in_files(errors={"shared folder": "did not appear"}), P, set())],
    "free space": [
        (on_login(folders=[folder(free_bytes=0)]), P, set()),
        (on_login(folders=[folder(free_bytes=5 * 10**9)]), W, set()),
        (on_node(folders=[folder("temporary folder", free_bytes=10**7)]), P, set()),
    ],
    "inodes": [
        (on_login(folders=[folder(free_inodes=3)]), P, set()),
        (on_login(folders=[folder(free_inodes=2000)]), W, set()),
    ],
    "quota": [
        (on_login(quotas=[QuotaFacts(file_system="/users", unit="kB", used=95, limit=100)]), W, set()),
        (on_login(quotas=[QuotaFacts(file_system="/users", unit="files", used=100, limit=100)]), P, set()),
    ],
    "file speed": [
        (in_files(write_mb_s=3.0), W, set()),
        (in_files(read_mb_s=3.0), W, set()),
        (in_files(files_s=3.0), W, set()),
        (in_files(errors={"file speed": "No space left on device"}), P, set()),
    ],
    "file locking": [
        (in_files(locking="not seen"), W, set()),
        (in_files(locking="none"), W, set()),
        (in_files(errors={"file locking": "I/O error"}), W, set()),
    ],
    "rename": [
        (in_files(missing=2), P, set()),
        (in_files(torn=1), P, set()),
        (in_files(seen_after_s=-1.0), P, set()),
        (in_files(seen_after_s=30.0), W, set()),
        (in_files(errors={"rename": "I/O error"}), P, set()),
    ],
    "hdf5": [(in_files(errors={"hdf5": "unable to lock file"}), P, set())],
    "caches": [
        (on_login(caches=[folder("TRITON_CACHE_DIR", kind="nfs4")]), W, set()),
        (on_node(caches=[folder("TORCHINDUCTOR_CACHE_DIR", kind="lustre")]), W, set()),
    ],
    "shared memory": [(on_node(shared_memory=64 << 20), P, set())],
    "open files": [(on_node(open_files=1024), W, set())],
    "locked memory": [(on_node(locked_memory=65536), P, set())],
}
