"""Collects facts of this host, the login node or a node of the job; imports neither torch nor submitit."""

import errno
import os
import platform
import re
import resource
import shutil
import socket
import tempfile
from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path
from typing import Any

from hpcphotoz.launch.doctor.facts import LOGIN, FolderFacts, HostFacts, QuotaFacts
from hpcphotoz.launch.doctor.slurm_facts import run
from hpcphotoz.node.folders import network_file_system
from hpcphotoz.node.threads import usable_cores
from hpcphotoz.world import RANK_NAMES, RANK_PREFIXES

_PACKAGES = ("hpcphotoz", "torch", "h5py", "submitit")
_CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
_NAMES = (
    *(*RANK_NAMES, "MASTER_ADDR", "MASTER_PORT", "PYTHONSAFEPATH", "OMP_NUM_THREADS"),
    *("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "HDF5_USE_FILE_LOCKING", "CUDA_VISIBLE_DEVICES"),
)
_PREFIXES = ("SBATCH_", "SRUN_", "SLURM_", *RANK_PREFIXES)
_OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS")


def collect_host(run_folder: Path, where: str = LOGIN, asks_for_quotas: bool = True) -> dict[str, Any]:
    """Fields of `HostFacts` as they are here and now.

    Args:
        run_folder: folder in which runs write; need not exist.
        where: name of this host for the report.
        asks_for_quotas: whether to run `quota` and `lfs quota`.
    """
    folders = {"run folder": run_folder, "home": Path.home(), "temporary folder": _temporary()}
    soft_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return {
        "where": where,
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "missing": {name: "not installed" for name in _PACKAGES if util.find_spec(name) is None},
        "env": variables(os.environ),
        "folders": [look_at_folder(name, path) for name, path in folders.items()],
        "quotas": [*_quotas(), *_lustre_quotas(run_folder)] if asks_for_quotas else [],
        "caches": look_at_caches(),
        "host_address": _address(),
        "interfaces": {name: _mtu(name) for _, name in socket.if_nameindex()},
        "has_infiniband": any(Path("/sys/class/infiniband").glob("*")),
        "cores": usable_cores(),
        "shared_memory": _free(Path("/dev/shm")),
        "open_files": 1 << 40 if soft_files == resource.RLIM_INFINITY else soft_files,
        "locked_memory": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],  # RLIM_INFINITY is -1
    }


def look_at_caches() -> list[FolderFacts]:
    """The folders that the variables of this process name for compiled kernels."""
    paths = {name: Path(os.environ[name]) for name in _CACHES if os.environ.get(name)}
    return [
        FolderFacts(name=name, path=str(path), kind=network_file_system(path)) for name, path in paths.items()
    ]


def collect_login(run_folder: Path) -> HostFacts:
    """Facts of the host on which the doctor was started."""
    return HostFacts(**collect_host(run_folder))


def variables(env: Mapping[str, str]) -> dict[str, str]:
    """Variables that matter to a run or a launch."""
    return {
        name: value
        for name, value in env.items()
        if name not in _OF_THE_CLUSTER and (name in _NAMES or name.startswith(_PREFIXES))
    }


def look_at_folder(name: str, path: Path) -> FolderFacts:
    """File system, space and inodes of a folder, or of its nearest parent that is there; tries to write."""
    there = next((each for each in (path, *path.absolute().parents) if each.is_dir()), Path("/"))
    facts: dict[str, Any] = {"name": name, "path": str(path), "kind": network_file_system(there)}
    try:
        disk = os.statvfs(there)
        facts |= {"total_bytes": disk.f_blocks * disk.f_frsize, "free_bytes": disk.f_bavail * disk.f_frsize}
        facts |= {"total_inodes": disk.f_files, "free_inodes": disk.f_favail}
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"doctor")
            file.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # judged by space and inodes
            facts["error"] = error.strerror or str(error)
    return FolderFacts(**facts)


def parse_quota(text: str) -> list[QuotaFacts]:
    """Quotas in the output of `quota -w -p` or `lfs quota -q`.

    A line is: file system, kB used, soft and hard limit, grace, files used, soft and hard limit, grace.
    Used numbers have a "*" where they are over the limit; a grace of "-" or "0" is none.
    """
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 8 or not re.fullmatch(r"\d+\*?", words[1]):
            continue
        for unit, at in (("kB", 1), ("files", 5)):
            if len(words) > at + 2 and all(re.fullmatch(r"\d+\*?", word) for word in words[at : at + 3]):
                used, soft, hard = (int(word.rstrip("*")) for word in words[at : at + 3])
                found.append(QuotaFacts(file_system=words[0], unit=unit, used=used, limit=soft or hard))
    return found


def _quotas() -> list[QuotaFacts]:
    # Its status is 1 where a quota is exceeded.
    return parse_quota(run(["quota", "-w", "-p"])[0]) if shutil.which("quota") else []


def _lustre_quotas(folder: Path) -> list[QuotaFacts]:
    there = next((each for each in (folder, *folder.absolute().parents) if each.is_dir()), Path("/"))
    if shutil.which("lfs") is None or network_file_system(there) != "lustre":
        return []
    return parse_quota(run(["lfs", "quota", "-q", "-u", str(os.getuid()), str(there)])[0])


def _temporary() -> Path:
    """Where temporary files would go, also if none can be made there."""
    return Path(os.environ.get("TMPDIR") or "/tmp")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _address() -> str:
    try:
        return str(socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return ""


def _mtu(name: str) -> int:
    try:
        return int(Path(f"/sys/class/net/{name}/mtu").read_text())
    except (OSError, ValueError):
        return 0


def _free(folder: Path) -> int:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize
