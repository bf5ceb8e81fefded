"""Builds a dataset from units of work, one shard a unit, on ranks or local processes.

Unit k gives `shard-{k:05d}.hdf5`, with the same bytes whichever process makes it. Until the manifest is
written, a sidecar lies beside each finished shard, for instance `shard-00003.hdf5.done.json`. It holds the
shard's line of the manifest, its band moments, the skipped objects, and two fingerprints: one of the options,
one of the unit and the files that it is made from. A build that was killed, or stopped at a bad file, is
continued by the same command: it keeps finished shards whose unit is the same, and makes those again whose
input has changed.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hpcphotoz.atomic import fsync_folder, write_text
from hpcphotoz.data.format.appended import appended_provenance
from hpcphotoz.data.format.folder import SIDECAR_SUFFIX, lock_dataset_folder, shard_name
from hpcphotoz.data.format.manifest import Header, Manifest
from hpcphotoz.data.format.stamps import BandMoments, Stamps
from hpcphotoz.data.format.writer import check_stamps, finish_dataset, write_shard
from hpcphotoz.errors import BadInput
from hpcphotoz.node.threads import usable_cores
from hpcphotoz.output import number_of
from hpcphotoz.progress import track
from hpcphotoz.ranks import Ranks
from hpcphotoz.sources.engine.append import (
    Append,
    next_number,
    read_base,
    unfinished_files,
)
from hpcphotoz.sources.engine.damage import merge_damage, report_damage
from hpcphotoz.sources.engine.resume import Fingerprint, FinishedUnit, fingerprint_units, finished_units
from hpcphotoz.sources.mpi import mpi_ranks
from hpcphotoz.sources.process_pool import in_order, run_on_processes


@dataclass(frozen=True)
class UnitStamps:
    """Stamps of one unit, and the skipped objects with reasons."""

    stamps: Stamps | None  # None or empty: every object was skipped
    # JSON-able: {"object_id": ..., "reason": ..., ...}, or {"count": of objects, "reason": ...}, or of a
    # damaged file, see `damage_entry`; a unit with such a file is made again by the next run
    skipped: tuple[dict[str, Any], ...] = ()


# Makes the stamps of a unit: a frozen dataclass, which is sent to processes and fingerprinted.
MakeStamps = Callable[[Any], UnitStamps]
_Task = tuple[int, Any, str]  # number, unit, fingerprint


@dataclass(frozen=True)
class Parts:
    """How a unit is cut into parts that processes make for one shard; joined, they are the unit's stamps."""

    cut: Callable[[Any], Sequence[Any]]
    label: str  # for the progress line: "simulating galaxies, parts of 32"


@dataclass(frozen=True)
class _BuildUnit:
    """Makes one unit, writes its shard and its sidecar, and keeps nothing of it in memory."""

    out: Path
    header: Header
    make: MakeStamps
    parts: Parts | None
    options: str  # fingerprint of header and make
    first: int  # number of the first shard

    def __call__(self, task: _Task) -> FinishedUnit:
        unit = task[1]
        if self.parts is None:
            return self.write(task, self.make(unit))
        return self.write(task, _join([self.make(part) for part in self.parts.cut(unit)]))

    def write(self, task: _Task, made: UnitStamps) -> FinishedUnit:
        """Writes the shard and the sidecar of a unit that has been made."""
        k, _, fingerprint = task
        path = self.out / shard_name(self.first + k)
        shard = record = None
        try:
            if made.stamps is not None and len(made.stamps):
                stamps = check_stamps(self.header, made.stamps, str(path))
                shard = write_shard(path, self.header, stamps)
                record = BandMoments.of(stamps).to_json()
            done = FinishedUnit(shard, record, made.skipped)
            entry = {"options": self.options, "unit": fingerprint, **asdict(done)}
            write_text(path.with_name(path.name + SIDECAR_SUFFIX), json.dumps(entry))
        except OSError as error:
            raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from None
        return done


def build_dataset(
    out: Path,
    header: Header,
    make: MakeStamps,
    units: Sequence[Any],
    *,
    provenance: Mapping[str, Any],
    label: str,
    processes: int | None = None,
    parts: Parts | None = None,
    append: Append | None = None,
) -> tuple[Manifest, list[dict[str, Any]]]:
    """Writes the dataset of the stamps that `make` gives for each unit; returns its manifest and `skipped`.

    With several ranks, every one calls this with the same arguments, writes some of the shards, and
    returns the same. Memory is bounded by one unit a rank or process.

    Args:
        out: folder to create; may hold an unfinished dataset of the same options: its shards whose units and
            input files are unchanged are kept.
        header: of every stamp.
        make: makes the stamps of a unit; must pickle.
        units: one a shard, of plain values, arrays, paths and dataclasses, which pickle. Everything that the
            stamps depend on must be in the unit or in `make`; otherwise changed input would keep old shards.
            A `Path` to a file counts with the file's size and time of modification. Input files belong in
            the units: a changed file in `make` discards every shard.
        provenance: JSON-able record of how the stamps are made. The skipped objects are appended to its
            `skipped`.
        label: for the progress line: "cutting stamps, shards".
        processes: None: one a core; 1: this process does everything. Not with ranks, which are the
            processes.
        parts: None: a process makes a whole unit. Otherwise it makes one part, which `make` then takes
            instead of a unit, and this process joins and writes them: few units keep many processes busy.
            A rank makes all parts of its units.
        append: None: a new dataset. Otherwise the units become shards after those of the dataset in `out`;
            none of their objects may be in it. `find_target` gives both.

    Raises:
        BadInput: the folder cannot be used, it holds an unfinished dataset of other options or input, `make`
            raises it, or there is no stamp at all. With ranks it is raised on rank 0, and the other ranks end
            silently with status 2.
    """
    ranks = mpi_ranks()
    processes = _processes(ranks, processes)
    seen = ranks.allgather(Fingerprint(None).of(fingerprint_units(header, make, units, look=False)))
    if len(set(seen)) > 1:
        raise ranks.refusal("the ranks see different input files or options: share them among the nodes")
    options, fingerprints = ranks.on_first_rank(lambda: fingerprint_units(header, make, units, look=True))
    with ExitStack() as held:  # rank 0 locks the folder against other writers until the manifest is written

        def begin() -> tuple[Manifest | None, int, dict[int, FinishedUnit], int]:
            files = held.enter_context(lock_dataset_folder(out, finished=append is not None))
            if append is None:
                return None, 0, *finished_units(out, files, options, fingerprints)
            base = read_base(out, header, append)
            first = next_number(base)
            files = unfinished_files(files, first)
            return base, first, *finished_units(out, files, options, fingerprints, first)

        base, first, kept, changed = ranks.on_first_rank(begin)
        if kept and ranks.rank == 0:
            again = f"; made again, as the input has changed: {changed}" if changed else ""
            finished = number_of(len(kept), "finished shard")
            print(f"{out}: kept {finished} of an earlier run{again}", file=sys.stderr)
        tasks = [(k, unit, fingerprints[k]) for k, unit in enumerate(units) if k not in kept]
        work = _BuildUnit(out, header, make, parts, options, first)
        done = dict(kept)
        if ranks.connected:
            shown = label if ranks.size == 1 else f"{label} (rank 0 of {ranks.size})"
            made = ranks.map_tasks(work, tasks, lambda results, n: track(results, shown, total=n))
            done |= {task[0]: result for task, result in zip(tasks, made, strict=True)}
        elif parts is None:
            results = run_on_processes(work, tasks, processes)
            for k, result in track(results, label, total=len(units), done=len(kept)):
                done[tasks[k][0]] = result
        else:
            done |= _build_parts(work, parts, tasks, processes)
        in_order_of_shards = [done[k] for k in range(len(units))]
        return ranks.on_first_rank(lambda: _finish(out, header, provenance, in_order_of_shards, base, append))


def _build_parts(
    work: _BuildUnit, parts: Parts, tasks: Sequence[_Task], processes: int
) -> dict[int, FinishedUnit]:
    """Makes the parts of all units on processes; writes each unit here, when its parts are there."""
    cut = [parts.cut(unit) for _, unit, _ in tasks]
    every = [part for one in cut for part in one]
    made = in_order(run_on_processes(work.make, every, processes))
    made = track(made, parts.label, total=len(every))
    return {
        task[0]: work.write(task, _join(list(islice(made, len(one)))))
        for task, one in zip(tasks, cut, strict=True)
    }


def _join(made: Sequence[UnitStamps]) -> UnitStamps:
    stamps = [one.stamps for one in made if one.stamps is not None]
    skipped = tuple(entry for one in made for entry in one.skipped)
    return UnitStamps(Stamps.concatenate(stamps) if stamps else None, skipped)


def _processes(ranks: Ranks, processes: int | None) -> int:
    if processes is None:
        return usable_cores()
    if processes < 1:
        raise ranks.refusal(f"processes {processes}: must be at least 1")
    if ranks.connected:
        raise ranks.refusal(f"processes {processes}: every rank is one; leave it out, start as many ranks")
    return processes


def _finish(
    out: Path,
    header: Header,
    provenance: Mapping[str, Any],
    done: Sequence[FinishedUnit],
    base: Manifest | None,
    append: Append | None,
) -> tuple[Manifest, list[dict[str, Any]]]:
    """Merges the moments in the order of the shards, writes the manifest, and deletes the sidecars."""
    skipped = merge_damage(
        [*provenance.get("skipped", ()), *(entry for one in done for entry in one.skipped)]
    )
    report_damage(skipped)
    shards = tuple(one.shard for one in done if one.shard is not None)
    record = {**provenance, "skipped": skipped}
    sidecars = sorted(out.glob(f"shard-*{SIDECAR_SUFFIX}"))
    manifest, rows = base, sum(shard.rows for shard in shards)
    if shards:
        moments = BandMoments(len(header.bands))
        if base is not None and append is not None:
            moments = BandMoments.from_statistics(base.statistics, base.rows, header.stamp)
            record = appended_provenance(
                base, record, append.already_there, rows, [shard.file for shard in shards]
            )
        for one in done:
            if one.moments is not None:
                moments.merge(BandMoments.from_json(one.moments))
        every = (*(base.shards if base is not None else ()), *shards)
        manifest = finish_dataset(out, header, every, moments, record)
    for path in sidecars:
        path.unlink()
    fsync_folder(out)
    if append is not None:
        added = f"added {number_of(rows, 'object')} in {number_of(len(shards), 'shard')}"
        print(f"{out}: {added}; {append.already_there} were there already", file=sys.stderr)
    if manifest is None:
        why = f"; the first: {skipped[0].get('reason', skipped[0])}" if skipped else ""
        raise BadInput(f"{out}: no object could be used, {count_skipped(skipped)} were skipped{why}")
    return manifest, skipped


def count_skipped(skipped: Sequence[Mapping[str, Any]]) -> int:
    """Returns the number of objects in entries of `skipped`: `count` of an entry that has it, else 1."""
    return sum(int(entry.get("count", 1)) for entry in skipped)
