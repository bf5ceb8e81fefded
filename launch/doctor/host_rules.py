"""Judges one host, the login node or a node of the job: pure functions of facts."""

from collections.abc import Iterable, Sequence

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.doctor.facts import FolderFacts, HostFacts
from hpcphotoz.launch.doctor.finding import Finding, ok, problem, warning
from hpcphotoz.node.interfaces import nccl_interfaces
from hpcphotoz.world import RANK_NAMES, RANK_PREFIXES

GB = 1e9
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_LITTLE_SPACE, _NO_SPACE = 20 * GB, 1 * GB  # a checkpoint of a large network with its optimiser is 1 GB
_LITTLE_IN_TEMPORARY, _NONE_IN_TEMPORARY = 2 * GB, 0.1 * GB
_FEW_INODES, _NO_INODES = 10_000, 500  # a run makes some hundred files
_QUOTA_NEAR, _QUOTA_FULL = 0.9, 0.98
_OPEN_FILES = 4096  # of 1,000 ranks each connects to many, and every rank opens shards
_SHARED_MEMORY = 0.5 * GB  # NCCL takes 10 MB for each pair of GPUs, data workers of others far more


def judge_login(facts: HostFacts) -> list[Finding]:
    """Findings on the host on which the doctor was started."""
    return [*_environment(facts), *_imports(facts), *_folders(facts), *_quotas(facts), *_caches(facts)]


def judge_host(facts: HostFacts) -> list[Finding]:
    """Findings on a node of the job, as far as they concern it alone."""
    return [
        *(*_imports(facts), *_folders(facts), *_caches(facts), *_interfaces(facts)),
        *(_host_name(facts), _shared_memory(facts), _open_files(facts), _locked_memory(facts)),
    ]


def _environment(facts: HostFacts) -> Iterable[Finding]:
    where, before = facts.where, False
    for name, value in sorted(facts.env.items()):
        shown = f"{name}={value}"
        if name.startswith(("SBATCH_", "SRUN_")):
            text = f"{shown}: changes jobs whatever their scripts say; `launch` leaves it out where it can"
        elif name.startswith("SLURM_"):
            text = f"{shown}: this shell is inside a job, whose shape a new job would inherit"
        elif name in (*RANK_NAMES, "MASTER_ADDR", "MASTER_PORT") or name.startswith(RANK_PREFIXES):
            text = f"{shown}: a command started here takes itself for a rank, and waits for others"
        elif name == "PYTHONSAFEPATH" and value:
            before = True
            text = f"{shown}: jobs would import the installed package, not the submitted code"
            yield problem("environment", text, f"unset {name}", where)
            continue
        else:
            continue
        before = True
        yield warning(
            "environment", text, f"unset {name}, and see what sets it in your shell's start files", where
        )
    if not before:
        yield ok("environment", "no variable of the shell disturbs a launch", where)


def _imports(facts: HostFacts) -> Iterable[Finding]:
    for name, why in facts.missing.items():
        fix = "pip install 'hpcphotoz[launch]'" if name == "submitit" else f"install {name} for this Python"
        text = f"{name} cannot be imported: {why}"
        yield problem("imports", text, f"{fix}, in the environment that the nodes use", facts.where)
    if not facts.missing:
        yield ok("imports", "hpcphotoz, torch, h5py and submitit are there", facts.where)


def _folders(facts: HostFacts) -> Iterable[Finding]:
    """The checks "folder", "free space" and "inodes"."""
    for folder in facts.folders:
        at = f"{folder.name} {folder.path}"
        if folder.error:
            fix = "choose a folder on a file system that you may write, and that the nodes mount"
            if folder.name != "run folder":
                fix = (
                    "export TMPDIR to a folder that can be written"
                    if "temp" in folder.name
                    else f"{fix}, or set HOME"
                )
            yield problem("folder", f"{at}: cannot be written: {folder.error}", fix, facts.where)
            continue
        yield ok("folder", f"{at}: can be written ({folder.kind or 'local disk'})", facts.where)
        yield _space(folder, facts.where)
        yield _inodes(folder, facts.where)


def _space(folder: FolderFacts, where: str) -> Finding:
    run = folder.name == "run folder"
    little, none = (_LITTLE_SPACE, _NO_SPACE) if run else (_LITTLE_IN_TEMPORARY, _NONE_IN_TEMPORARY)
    free, at = f"{folder.free_bytes / GB:.1f} GB free", f"{folder.name} {folder.path}"
    fix = f"remove files there (`du -sh {folder.path}/* | sort -h`), or use another file system"
    if folder.free_bytes < none:
        return problem("free space", f"{at}: {free}: checkpoints and caches do not fit", fix, where)
    if folder.free_bytes < little:
        return warning("free space", f"{at}: {free}: little for checkpoints and caches", fix, where)
    return ok("free space", f"{folder.name}: enough is free", where)


def _inodes(folder: FolderFacts, where: str) -> Finding:
    at, free = f"{folder.name} {folder.path}", f"{folder.free_inodes} more files fit"
    fix = "remove small files there, or use another file system (inodes are used up, not bytes)"
    if folder.total_inodes and folder.free_inodes < _NO_INODES:
        return problem("inodes", f"{at}: {free}: a run makes some hundred", fix, where)
    if folder.total_inodes and folder.free_inodes < _FEW_INODES:
        return warning("inodes", f"{at}: {free}", fix, where)
    return ok("inodes", f"{folder.name}: enough files fit", where)


def _quotas(facts: HostFacts) -> Iterable[Finding]:
    fine = True
    for quota in facts.quotas:
        if not quota.limit or quota.used < _QUOTA_NEAR * quota.limit:
            continue
        fine = False
        text = f"{quota.file_system}: {quota.used} of {quota.limit} {quota.unit} are used"
        fix = "remove files, ask for a larger quota, or give a run folder on another file system"
        full = quota.used >= _QUOTA_FULL * quota.limit
        yield (problem if full else warning)("quota", text, fix, facts.where)
    if fine:
        told = "no quota is nearly used up" if facts.quotas else "no quota is told"
        yield ok("quota", told, facts.where)


def _caches(facts: HostFacts) -> Iterable[Finding]:
    """Caches of compiled kernels: each rank looks there hundreds of times as it starts."""
    slow = [folder for folder in facts.caches if folder.kind]
    for folder in slow:
        text = f"{folder.name}={folder.path}: on {folder.kind}, which all ranks share: slow starts"
        yield warning("caches", text, f"unset {folder.name}: `launch` uses a folder of the node", facts.where)
    if not slow:
        yield ok("caches", "no cache of compiled kernels is on a network file system", facts.where)


def _interfaces(facts: HostFacts) -> Iterable[Finding]:
    fine = True
    have = ", ".join(sorted(name for name in facts.interfaces if name != "lo")) or "none but lo"
    for variable in _INTERFACES:
        value = facts.env.get(variable, "")
        if value and not _names_one(variable, value, list(facts.interfaces)):
            fine = False
            text = f"{variable}={value}: no such network interface; it has {have}"
            fix = (
                f"set {variable} to the interface towards the other nodes (`ip -brief address`), or unset it"
            )
            yield problem("interfaces", text, fix, facts.where)
    if fine:
        yield ok(
            "interfaces", "the network interfaces asked for are there, or none is asked for", facts.where
        )


def _names_one(variable: str, value: str, interfaces: Sequence[str]) -> bool:
    """Whether the value names an interface. gloo wants each whole; NCCL wants the beginning of one."""
    if variable.startswith("GLOO"):
        return all(name in interfaces for name in value.split(","))
    try:
        left = nccl_interfaces({variable: value}, interfaces)
    except BadInput:
        return False
    return left != ["lo"] or not value.startswith("^")  # all but lo are excluded: no way to other nodes


def _host_name(facts: HostFacts) -> Finding:
    fix = "export GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME as the interface towards the other nodes"
    if not facts.host_address:
        text = "the name of the host has no address: gloo listens where no other node reaches it"
        return warning("host name", text, fix, facts.where)
    if facts.host_address.startswith("127.") or facts.host_address == "::1":
        text = (
            f"the name of the host stands for {facts.host_address}, which other nodes cannot reach; training "
        )
        text += "looks for another interface by itself, other programs do not"
        return warning("host name", text, fix, facts.where)
    return ok("host name", "the name of the host has an address on the network", facts.where)


def _shared_memory(facts: HostFacts) -> Finding:
    if facts.shared_memory < _SHARED_MEMORY:
        text = (
            f"/dev/shm: {facts.shared_memory / GB:.2f} GB free: NCCL and data workers fail with a bus error"
        )
        fix = "remove stale files from /dev/shm, or start the container with a larger one (--shm-size=8g)"
        return problem("shared memory", text, fix, facts.where)
    return ok("shared memory", "/dev/shm is large enough", facts.where)


def _open_files(facts: HostFacts) -> Finding:
    if facts.open_files < _OPEN_FILES:
        text = f"ulimit -n is {facts.open_files}: many ranks or shards need more open files"
        return warning("open files", text, "launch with --setup 'ulimit -n $(ulimit -Hn)'", facts.where)
    return ok("open files", f"ulimit -n is at least {_OPEN_FILES}", facts.where)


def _locked_memory(facts: HostFacts) -> Finding:
    if facts.has_infiniband and 0 <= facts.locked_memory < GB:
        text = f"ulimit -l is {facts.locked_memory // 1024} kB: InfiniBand needs locked memory, NCCL fails"
        fix = "ask the administrators for PropagateResourceLimitsExcept=MEMLOCK and LimitMEMLOCK=infinity"
        return problem("locked memory", text, fix, facts.where)
    return ok("locked memory", "enough memory may be locked", facts.where)
