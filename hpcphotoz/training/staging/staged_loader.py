"""Copies the shards of a run to the disk of every node: its ranks share the files, and stop together."""

import hashlib
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from hpcphotoz.data.datasets import Datasets
from hpcphotoz.data.format.manifest import MANIFEST, Manifest
from hpcphotoz.data.format.shards import CHECKSUM_SUFFIX
from hpcphotoz.errors import BadInput
from hpcphotoz.node.folders import network_file_system, temporary_base
from hpcphotoz.node.staging import FileToCopy, copy_files, staging_folder
from hpcphotoz.output import number_of, say
from hpcphotoz.progress import track
from hpcphotoz.training.dataloader import RankLoader
from hpcphotoz.training.distributed import group
from hpcphotoz.training.run.signals import StopRequest

_ROUND_S = 2.0  # after which the ranks agree on whether to go on
_MB = 10**6


@contextmanager
def staged_loader(loader: RankLoader, base: str, stop: StopRequest) -> Iterator[RankLoader | None]:
    """Context manager that yields a loader of copies on this node's disk, and removes them at the end.

    Call it on all ranks. It yields None, on all ranks, if one of them is asked to stop before the copies are
    complete.

    Args:
        loader: reads the datasets where they are.
        base: an existing folder on every node; "": `temporary_base`.
        stop: looked at after every piece.

    Raises:
        BadInput: a node has too little room, or a file cannot be copied.
        group.OtherRankFailed: so it is on another rank.
    """
    world, data = loader.world, loader.data
    manifests = [part.manifest for part in loader.train.parts]
    hosts = group.gather_texts(socket.gethostname(), world)
    here = [rank for rank, host in enumerate(hosts) if host == hosts[world.rank]]
    nodes, size = len(set(hosts)), sum(shard.bytes for manifest in manifests for shard in manifest.shards)
    start = time.monotonic()
    with ExitStack() as stack:
        made: Path | None = None
        with group.failing_together(world):
            if world.rank == here[0]:
                where = Path(base) if base else temporary_base()
                made = stack.enter_context(staging_folder(where, size))
                for number in range(len(manifests)):
                    (made / str(number)).mkdir()
                if world.is_first and (kind := network_file_system(where)):
                    say(f"hpcphotoz: warning: --stage {where}: on {kind}, no local disk", sys.stderr)
        folder = Path(group.gather_texts(str(made) if made else None, world)[here[0]] or "")
        own = _files(data, manifests, here.index(world.rank), len(here))
        rounds = _copy_in_rounds(copy_files(own, folder, loader.config.data.damaged == "skip"), loader, stop)
        if world.is_first:
            total = max(1, -(-size * nodes // _MB))
            rounds = track(rounds, f"MB copied to {number_of(nodes, 'node')}", total, weight=lambda mb: mb)
        for _ in rounds:
            pass
        stop.budget.forget_looks()
        if any(group.gather_texts(stop.reason, world)):
            if world.is_first:
                say(f"{data}: stopped while it was copied: the same command begins, or goes on")
            yield None
            return
        with group.failing_together(world):
            if made:
                _write_manifests(data, manifests, made)
        if world.is_first:
            took = f"{size / 1e9:.3g} GB a node in {time.monotonic() - start:.0f} s"
            say(f"{data}: copied to {folder} on {number_of(nodes, 'node')}: {took}")
        folders = tuple(folder / str(number) for number in range(len(manifests)))
        yield replace(loader, staged=replace(data, folders=folders))


def _copy_in_rounds(pieces: Iterator[int], loader: RankLoader, stop: StopRequest) -> Iterator[int]:
    """Copy this rank's files until all ranks are done or one is to stop; yields the MB of all ranks."""
    world, copied, told, done = loader.world, 0, 0, False
    while True:
        problem, end = None, time.monotonic() + _ROUND_S
        while not (done or problem or stop.reason) and time.monotonic() < end:
            try:
                copied += next(pieces)
            except StopIteration:
                done = True
            except (BadInput, OSError) as error:
                problem = str(error)
        flags = [copied, not done, bool(stop.reason), bool(problem)]
        sums = torch.tensor(flags, dtype=torch.float64, device=loader.device)
        total, unfinished, stopping, failed = group.sum_over_ranks(sums, world).tolist()
        if failed:
            group.fail_together(problem, world)
        megabytes = -(-int(total) // _MB)
        yield megabytes - told
        told = megabytes
        if stopping or not unfinished:
            return


def _files(data: Datasets, manifests: Sequence[Manifest], first: int, step: int) -> list[FileToCopy]:
    """Every `step`-th shard that the manifests name, with the checksums beside it if it is a foreign one."""
    named = [(number, shard) for number, manifest in enumerate(manifests) for shard in manifest.shards]
    found = []
    for number, shard in named[first::step]:
        source, target = data.folders[number] / shard.file, f"{number}/{shard.file}"
        found.append(FileToCopy(source, target, shard.bytes, shard.sha256))
        beside = source.with_name(source.name + CHECKSUM_SUFFIX)
        if shard.offsets is None and beside.is_file():
            found.append(FileToCopy(beside, target + CHECKSUM_SUFFIX, 8 * shard.rows, ""))
    return found


def _write_manifests(data: Datasets, manifests: Sequence[Manifest], into: Path) -> None:
    """Copy the manifests, after the shards, so that what is there is a whole dataset."""
    for number, (folder, manifest) in enumerate(zip(data.folders, manifests, strict=True)):
        content = (folder / MANIFEST).read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest.sha256:
            raise BadInput(f"{folder / MANIFEST}: was changed while the dataset was copied: start again")
        (into / str(number) / MANIFEST).write_bytes(content)
