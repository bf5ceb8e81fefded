"""Judges the nodes of the job, against each other and the login node: pure functions of facts."""

import re
from collections.abc import Iterable, Sequence

from hpcphotoz.launch.doctor.facts import FileFacts, GpuFacts, HostFacts, NodeFacts
from hpcphotoz.launch.doctor.finding import Finding, info, ok, problem, warning
from hpcphotoz.launch.doctor.host_rules import judge_host

_CLOCK_S, _CLOCK_FAR_S = 1.0, 60.0  # a lock without a sign of life for 60 s is stale
_SLOW = {"gloo": 0.1, "nccl": 1.0}  # GB/s between nodes: 1 Gbit/s, 10 Gbit/s
_WRITE_MB_S, _READ_MB_S, _FILES_S = 20.0, 20.0, 20.0
_RENAME_S = 10.0
_IFNAME = {"gloo": "GLOO_SOCKET_IFNAME", "nccl": "NCCL_SOCKET_IFNAME"}


def judge_nodes(nodes: Sequence[NodeFacts], login: HostFacts | None) -> list[Finding]:
    """Findings on the nodes of the job.

    Args:
        nodes: in order of rank.
        login: the login node; None: its Python is not that of the nodes, by the user's choice.
    """
    found: list[Finding] = []
    for node in nodes:
        found += judge_host(node)
        found += [_cores(node), _threads(node), *_gpus(node), *_network(node), *_clock(node), *_files(node)]
    return [*found, *_versions(nodes, login), *_mtu(nodes)]


def _cores(node: NodeFacts) -> Finding:
    if node.cores < node.asked_cores:
        text = (
            f"a rank may use {node.cores} of the {node.asked_cores} cores asked for: its threads share them"
        )
        fix = "leave out --cpu-bind of your own, and look at the limit of cores per GPU of the partition"
        return problem("cores", text, fix, node.where)
    return ok("cores", f"a rank may use the {node.asked_cores} cores asked for, or more", node.where)


def _threads(node: NodeFacts) -> Finding:
    value = node.env.get("OMP_NUM_THREADS", "")
    if value and not re.fullmatch(r"[1-9][0-9]{0,4}(,[1-9][0-9]{0,4})*", value):
        text = f"OMP_NUM_THREADS={value}: not a number, each library guesses"
        return warning(
            "threads", text, "unset OMP_NUM_THREADS: `launch` sets it from --cpus-per-task", node.where
        )
    threads = int(value.split(",")[0]) if value else node.asked_cores
    if threads > min(node.cores, node.asked_cores):
        cores = min(node.cores, node.asked_cores)
        text = f"OMP_NUM_THREADS={threads}, but a rank has {cores} cores: a step can take ten times longer"
        return warning(
            "threads", text, "unset OMP_NUM_THREADS: `launch` sets it from --cpus-per-task", node.where
        )
    return ok("threads", "as many threads as a rank has cores, or fewer", node.where)


def _gpus(node: NodeFacts) -> Iterable[Finding]:
    """The checks "gpu" and "driver"."""
    if not node.asked_gpus:
        yield info("gpu", "no GPU was asked for: --gpus-per-node checks GPUs, driver and NCCL")
        return
    gpu = node.gpu or GpuFacts()
    driver = _driver(gpu, node.where)
    yield driver
    asked = f"{node.asked_gpus} GPU{'s' * (node.asked_gpus > 1)} asked for"
    fix = driver.fix or "look at `nvidia-smi` on the node and at CUDA_VISIBLE_DEVICES; launch with --exclude"
    if gpu.usable < node.asked_gpus:
        yield problem("gpu", f"{asked}, torch sees {gpu.usable}", fix, node.where)
    elif gpu.error:
        yield problem("gpu", f"{gpu.name}: a product of two matrices fails: {gpu.error}", fix, node.where)
    else:
        yield ok("gpu", f"{asked}, usable ({gpu.name})", node.where)


def _driver(gpu: GpuFacts, where: str) -> Finding:
    built, _, version = gpu.torch_build.partition(" ")
    if not gpu.vendor:
        text = "no NVIDIA or AMD driver is loaded"
        return problem("driver", text, "choose a partition with GPUs, or report the node", where)
    wanted = {"nvidia": "cuda", "amd": "rocm"}[gpu.vendor]
    if built != wanted:
        text = (
            f"the node has {gpu.vendor.upper()} GPUs, torch is built for {built or 'unknown'}: it sees none"
        )
        return problem("driver", text, f"install torch for {wanted.upper()} (pytorch.org/get-started)", where)
    if wanted == "cuda" and gpu.driver_cuda and version:
        newest, needed = (tuple(map(int, v.split(".")[:2])) for v in (gpu.driver_cuda, version))
        if newest[0] < needed[0]:
            text = f"driver {gpu.driver} runs CUDA up to {gpu.driver_cuda}, torch is built for CUDA {version}"
            fix = f"install a torch for CUDA {newest[0]} (pytorch.org/get-started/previous-versions)"
            return problem("driver", text, fix, where)
    return ok("driver", f"driver {gpu.driver} suits torch for {gpu.torch_build}", where)


def _network(node: NodeFacts) -> Iterable[Finding]:
    """The checks "gloo" and "nccl"."""
    if node.nodes < 2:
        yield info("gloo", "one node alone: the network between nodes is not checked")
        return
    for backend in ("gloo", "nccl"):
        if backend == "nccl" and not node.asked_gpus:
            continue
        fix = f"set {_IFNAME[backend]} to the fastest interface between the nodes (`ip -brief address`)"
        if error := node.errors.get(backend):
            yield problem(backend, f"the nodes cannot sum over {backend}: {error}", fix, node.where)
        elif backend not in node.gb_s:
            text = f"the sum over {backend} was not reached, or did not end (last seen at: {node.stage})"
            yield problem(backend, text, fix, node.where)
        elif node.rank == 0:
            speed = node.gb_s[backend]
            text = f"all-reduce over {node.nodes} nodes: {speed:.2f} GB/s"
            if speed < _SLOW[backend]:
                yield warning(backend, f"{text}: slow", fix)
            else:
                yield ok(backend, text)


def _clock(node: NodeFacts) -> Iterable[Finding]:
    low, high = node.login_ahead_s
    # What is certain: the clock is ahead by at least `low`, and at most `high`.
    of_login = low if low > 0 else high if high < 0 else 0.0
    fine = True
    for ahead, other in ((node.clock_ahead_s, "the first node's"), (of_login, "the login node's")):
        if abs(ahead) <= _CLOCK_S:
            continue
        fine = False
        text = f"the clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} {other}"
        fix = "report the node: its clock is not synchronised (`chronyc tracking`); launch with --exclude"
        if abs(ahead) > _CLOCK_FAR_S:
            yield problem("clock", f"{text}: locks are taken for stale, credentials expire", fix, node.where)
        else:
            yield warning("clock", f"{text}: times in logs are too", fix, node.where)
    if fine:
        yield ok("clock", "clocks agree within a second", node.where)


def _versions(nodes: Sequence[NodeFacts], login: HostFacts | None) -> Iterable[Finding]:
    fine, first = True, login or (nodes[0] if nodes else HostFacts())
    for node in nodes:
        there, here = ({"python": host.python, **host.versions} for host in (node, first))
        for name in sorted(there.keys() & here.keys()):
            if there[name] != here[name]:
                at = "the login node" if login else first.where
                fine = False
                text = f"{name} is {there[name]}, on {at} {here[name]}: results may differ"
                fix = "activate one environment on a shared file system, with --setup or a profile"
                yield problem("versions", text, fix, node.where)
    if fine and nodes:
        yield ok("versions", "Python and packages are the same everywhere")


def _mtu(nodes: Sequence[NodeFacts]) -> Iterable[Finding]:
    if not nodes:
        return
    fine, first = True, nodes[0]
    for node in nodes[1:]:
        for name in sorted((node.interfaces.keys() & first.interfaces.keys()) - {"lo"}):
            if node.interfaces[name] != first.interfaces[name]:
                fine = False
                there = f"on {first.where} {first.interfaces[name]}"
                text = f"MTU of {name} is {node.interfaces[name]}, {there}: large messages hang"
                fix = "report the node; until then choose another interface, or --exclude it"
                yield problem("mtu", text, fix, node.where)
    if fine:
        yield ok("mtu", "interfaces of one name have one MTU")


def _files(node: NodeFacts) -> Iterable[Finding]:
    """The checks "shared folder", "file speed", "file locking", "rename" and "hdf5"."""
    files, where = node.files, node.where
    if files is None:
        return
    if error := files.errors.get("shared folder"):
        fix = "give a --folder, and a run folder, on a file system that all nodes mount"
        yield problem("shared folder", error, fix, where)
        return
    yield ok("shared folder", "the nodes see each other's files", where)
    yield _file_speed(node, files)
    if node.nodes < 2:
        return
    yield _locking(node, files)
    yield _rename(node, files)
    if error := files.errors.get("hdf5"):
        setting = node.env.get("HDF5_USE_FILE_LOCKING", "")
        said = f" (HDF5_USE_FILE_LOCKING={setting})" if setting else ""
        fix = (
            "export HDF5_USE_FILE_LOCKING=FALSE (the file system has no locks), or unset it where it is TRUE"
        )
        yield problem("hdf5", f"a shard that another node wrote cannot be read{said}: {error}", fix, where)
    else:
        yield ok("hdf5", "a shard that another node wrote is read whole", where)


def _file_speed(node: NodeFacts, files: FileFacts) -> Finding:
    if error := files.errors.get("file speed"):
        fix = "choose another file system for the run folder"
        return problem("file speed", f"the run folder cannot be written and read: {error}", fix, node.where)
    read = f", {files.read_mb_s:.0f} MB/s read" if node.nodes > 1 else ""
    text = f"{files.write_mb_s:.0f} MB/s written{read}, {files.files_s:.0f} small files a second"
    slow = files.write_mb_s < _WRITE_MB_S or files.files_s < _FILES_S
    if slow or (node.nodes > 1 and files.read_mb_s < _READ_MB_S):
        fix = "put run folder and data on the scratch file system, not in home; copy data to the node's disk"
        return warning("file speed", f"{text}: slow", fix, node.where)
    return ok("file speed", text, node.where)


def _locking(node: NodeFacts, files: FileFacts) -> Finding:
    said = "runs guard their folders by signs of life instead, which takes a minute to tell"
    fix = "mount with flock (Lustre: -o flock), or use another file system; never start one run twice at once"
    if error := files.errors.get("file locking"):
        return warning("file locking", f"flock fails: {error}", fix, node.where)
    if files.locking == "none":
        return warning("file locking", f"the file system has no flock: {said}", fix, node.where)
    if files.locking == "not seen":
        return warning("file locking", f"flock is kept within a node: {said}", fix, node.where)
    return ok("file locking", "flock is seen on other nodes", node.where)


def _rename(node: NodeFacts, files: FileFacts) -> Finding:
    fix = "choose another file system for the run folder (not SSHFS or an object store)"
    if error := files.errors.get("rename"):
        return problem("rename", f"files cannot be replaced: {error}", fix, node.where)
    if files.missing or files.torn:
        text = (
            f"a file that another node replaces was missing {files.missing} times, mixed {files.torn} times"
        )
        return problem("rename", f"{text}: a checkpoint may look lost or damaged", fix, node.where)
    if files.seen_after_s < 0:
        return problem("rename", "a file that another node renamed is not seen", fix, node.where)
    if files.seen_after_s > _RENAME_S:
        text = f"a renamed file is seen on another node after {files.seen_after_s:.0f} s"
        slow = "wait so long before starting what reads a run's files; mount with a shorter actimeo"
        return warning("rename", text, slow, node.where)
    return ok("rename", "renamed files are seen whole on other nodes", node.where)
