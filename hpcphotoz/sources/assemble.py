"""A dataset assembled from units of work, one shard a unit, on MPI ranks or local processes, resumable.

Unit k gives `shard-{k:05d}.h5`, the same bytes whoever makes it. Beside a finished shard lies a sidecar,
`shard-00003.h5.done.json`, until the manifest is written: its line of the manifest, its band moments, what
was skipped, and the fingerprint of the whole plan. A run that was killed is started again with the same
command and keeps the shards that have a sidecar of its own plan.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hpcphotoz import __version__
from hpcphotoz.atomic import sync_folder, write_text
from hpcphotoz.data.folder import SIDECAR, dataset_folder
from hpcphotoz.data.shards import (
    FORMAT_VERSION,
    Header,
    Manifest,
    Shard,
    Stamps,
    damage,
    write_manifest,
)
from hpcphotoz.data.writer import Moments, checked, write_shard
from hpcphotoz.errors import BadInput
from hpcphotoz.progress import track
from hpcphotoz.sources.parallel import Team, on_processes, team, usable_cores

_MOMENTS_ROWS = 128  # 21 MB of float64 for stamps of 64 x 64 x 5; a whole shard would be 1.3 GB, twice


@dataclass(frozen=True)
class Made:
    """What a unit gave."""

    stamps: Stamps | None  # None or empty: nothing
    # JSON-able: {"object_id": ..., "reason": ..., ...}, or {"count": of objects, "reason": ...}
    skipped: tuple[dict[str, Any], ...] = ()


class Make(Protocol):
    """Makes the stamps of a unit. Sent to spawned processes and part of the plan: a frozen dataclass."""

    def __call__(self, unit: Any) -> Made: ...


@dataclass(frozen=True)
class _Done:
    """A finished unit, as its sidecar says it."""

    shard: Shard | None  # None: it gave no stamps
    moments: dict[str, Any] | None
    skipped: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class _Unit:
    """Makes, writes and records one unit; holds nothing of the one before."""

    out: Path
    header: Header
    make: Make
    fingerprint: str

    def __call__(self, task: tuple[int, Any]) -> _Done:
        k, unit = task
        path = self.out / f"shard-{k:05d}.h5"
        made = self.make(unit)
        shard = record = None
        try:
            if made.stamps is not None and len(made.stamps):
                stamps = checked(self.header, made.stamps, str(path))
                shard = write_shard(path, self.header, stamps)
                record = _moments(self.header, stamps).record()
            done = _Done(shard, record, made.skipped)
            entry = {"plan": self.fingerprint, **asdict(done)}
            write_text(path.with_name(path.name + SIDECAR), json.dumps(entry))
        except OSError as error:
            raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from None
        return done


def assemble(
    out: Path,
    header: Header,
    make: Make,
    units: Sequence[Any],
    *,
    provenance: Mapping[str, Any],
    what: str,
    processes: int | None = None,
) -> tuple[Manifest, list[dict[str, Any]]]:
    """Write the dataset of the stamps that `make` gives of each unit.

    Under an MPI launcher every rank calls this with the same arguments, writes its share of the shards and
    returns the same; without one, so many processes are started. Memory is bounded by one unit a rank or
    process.

    Args:
        out: folder to create; may hold an unfinished dataset of the same plan, whose shards are kept.
        header: bands, stamp size, pixel scale and storage of every stamp.
        make: gives a unit's stamps. A frozen dataclass; must pickle.
        units: what each shard is made of: must pickle, of plain values, arrays, paths and dataclasses. What
            the stamps depend on must be in them, in `make` or in `provenance`, for a changed plan not to keep
            old shards; of a `Path` to a file, its size and time count too.
        provenance: JSON-able record of how the stamps are made. `skipped` is appended to.
        what: for the progress line: "cutting stamps, shards".
        processes: None: one a core; 1: none, all is done here. Not with MPI, whose ranks are the processes.

    Returns:
        The manifest, and everything in its provenance's `skipped`.

    Raises:
        BadInput: a folder that cannot be used, what `make` raises, or no stamp at all. Under MPI it is raised
            on rank 0; the other ranks end silently with status 2.
    """
    ranks = team()
    processes = _processes(ranks, processes)
    whole = (header, dict(provenance), make, units)
    seen = ranks.everyone(_Fingerprint.of(*whole, look=False))
    if len(set(seen)) > 1:
        raise ranks.refusal("the ranks see different input files or options: share them among the nodes")
    plan = ranks.from_first(lambda: _Fingerprint.of(*whole, look=True))
    with ExitStack() as held:  # rank 0 holds the folder against other writers until the manifest is there
        kept = ranks.from_first(lambda: _kept(out, held.enter_context(dataset_folder(out)), plan, len(units)))
        if kept and ranks.rank == 0:
            print(f"{out}: kept {len(kept)} finished shards of an earlier run", file=sys.stderr)
        tasks = [(k, unit) for k, unit in enumerate(units) if k not in kept]
        work = _Unit(out, header, make, plan)
        done = dict(kept)
        if ranks.comm is not None:
            made = ranks.share(work, tasks, lambda results, n: _shown(results, what, n, ranks.size))
            done |= {k: result for (k, _), result in zip(tasks, made, strict=True)}
        else:
            results = on_processes(work, tasks, processes)
            for k, result in track(results, what, total=len(units), done=len(kept)):
                done[tasks[k][0]] = result
        return ranks.from_first(
            lambda: _finish(out, header, provenance, [done[k] for k in range(len(units))])
        )


def _processes(ranks: Team, processes: int | None) -> int:
    if processes is None:
        return usable_cores()
    if processes < 1:
        raise ranks.refusal(f"processes {processes}: must be at least 1")
    if ranks.comm is not None:
        raise BadInput(
            f"processes {processes}: under MPI every rank is one; leave it out, use `mpiexec -n N`"
        )
    return processes


def _shown(results: Iterator[_Done], what: str, total: int, ranks: int) -> Iterator[_Done]:
    return track(results, what if ranks == 1 else f"{what} (rank 0 of {ranks})", total=total)


def _moments(header: Header, stamps: Stamps) -> Moments:
    moments = Moments(len(header.bands))
    for start in range(0, len(stamps), _MOMENTS_ROWS):
        moments.add(stamps[start : start + _MOMENTS_ROWS])
    return moments


def _kept(out: Path, found: Sequence[Path], plan: str, count: int) -> dict[int, _Done]:
    """The finished units of this plan among the files found in the folder; the other files are removed."""
    sidecars = {k: out / f"shard-{k:05d}.h5{SIDECAR}" for k in range(count)}
    listed = {path for path in found if path.name.endswith(SIDECAR)}
    kept = {k: done for k, path in sidecars.items() if path in listed and (done := _read(path, plan))}
    if listed - set(sidecars.values()):
        raise _other_plan(out)
    stay = {sidecars[k].name for k in kept} | {done.shard.file for done in kept.values() if done.shard}
    for path in found:
        if path.name not in stay:
            path.unlink()
    return kept


def _read(path: Path, plan: str) -> _Done | None:
    """What a sidecar says; None: its shard is gone or was cut off.

    Raises:
        BadInput: not a sidecar, or one of another plan.
    """
    try:
        tree = json.loads(path.read_text())
        if tree.pop("plan") != plan:
            raise _other_plan(path.parent)
        shard = None if tree["shard"] is None else Shard(**tree["shard"])
        done = _Done(shard, tree["moments"], tuple(tree["skipped"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not readable ({type(error).__name__}: {error}): delete it") from None
    return None if shard is not None and damage(path.parent, shard) else done


def _other_plan(out: Path) -> BadInput:
    return BadInput(
        f"{out}: holds an unfinished dataset of other input or options: delete it, or choose another folder"
    )


def _finish(
    out: Path, header: Header, provenance: Mapping[str, Any], done: Sequence[_Done]
) -> tuple[Manifest, list[dict[str, Any]]]:
    """Merge the moments in the order of the shards, write the manifest, and clear the sidecars away."""
    skipped = [*provenance.get("skipped", ()), *(entry for one in done for entry in one.skipped)]
    shards = tuple(one.shard for one in done if one.shard is not None)
    sidecars = sorted(out.glob(f"shard-*.h5{SIDECAR}"))
    if shards:
        moments = Moments(len(header.bands))
        for one in done:
            if one.moments is not None:
                moments.merge(Moments.of(one.moments))
        manifest = Manifest(header, shards, moments.result(), {**provenance, "skipped": skipped})
        write_manifest(out, manifest)
    for path in sidecars:
        path.unlink()
    sync_folder(out)
    if not shards:
        why = f"; the first: {skipped[0].get('reason', skipped[0])}" if skipped else ""
        raise BadInput(f"{out}: no object could be used, {counted(skipped)} were skipped{why}")
    return manifest, skipped


def counted(skipped: Sequence[Mapping[str, Any]]) -> int:
    """How many objects entries of `skipped` stand for: one each, or as many as its `count`."""
    return sum(int(entry.get("count", 1)) for entry in skipped)


class _Fingerprint:
    """Digest of a plan: types, lengths, contents to the last bit of arrays, and files as they are now."""

    def __init__(self, look: bool) -> None:
        self._sha256 = hashlib.sha256(f"{__version__} {FORMAT_VERSION}".encode())
        self._look = look  # at the sizes and times of files
        self._seen: set[Path] = set()

    @classmethod
    def of(cls, *plan: Any, look: bool) -> str:
        """Of header, provenance, make and units; under MPI only rank 0 looks at the files."""
        one = cls(look)
        one.add(plan)
        return one._sha256.hexdigest()

    def add(self, value: Any) -> None:
        """Add a value and all it holds."""
        if is_dataclass(value) and not isinstance(value, type):
            self._text(f"<{type(value).__qualname__}")
            for field in fields(value):
                self.add((field.name, getattr(value, field.name)))
        elif isinstance(value, Mapping):
            self.add(sorted(value.items()))
        elif isinstance(value, list | tuple):
            self._text(f"[{len(value)}")
            for item in value:
                self.add(item)
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self._text(f"#{value.dtype.str}{value.shape}")
            self._sha256.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, Path):
            self._file(value)
        elif value is None or isinstance(value, str | bytes | int | float | np.generic):
            self._text(repr(value))
        else:
            kind = type(value).__name__
            raise TypeError(f"{kind} in a plan: only plain values, arrays, paths and dataclasses")

    def _text(self, text: str) -> None:
        self._sha256.update(b"%d:" % len(text.encode()) + text.encode())

    def _file(self, path: Path) -> None:
        self._text(str(path))
        if self._look and path not in self._seen and path.is_file():
            self._seen.add(path)
            state = path.stat()
            self._text(f"{state.st_size} {state.st_mtime_ns}")
