"""Counts the objects of subsets and finds their redshift range, by one scan of the labels."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpcphotoz.atomic import write_text
from hpcphotoz.data.format.manifest import Manifest
from hpcphotoz.data.format.stamps import redshift_range
from hpcphotoz.data.order import ORDER, Blocks
from hpcphotoz.data.read.extra_ranges import column_ranges
from hpcphotoz.data.read.shard_files import ShardFiles
from hpcphotoz.data.select.groups import MANY_GROUPS, SplitShares
from hpcphotoz.data.select.subset import Selection, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.progress import track

_ROWS = 1 << 16  # scanned together; a multiple of 8: see `Selection.set_rows`
_THREADS = 8
_MANY = 1000  # shards from which on the scan has a progress bar


@dataclass(frozen=True)
class Census:
    """Number of objects in a subset and their redshift range."""

    rows: int = 0
    z_min: float | None = None  # smallest known z_spec; None: none known
    z_max: float | None = None
    unlabelled: int = 0  # objects whose z_spec is unknown
    z_min_in: str = ""  # the shards with these redshifts; for messages
    z_max_in: str = ""
    unlabelled_in: str = ""  # the first shard with such objects
    lost: tuple[int, ...] = ()  # shards that are missing or of another size, left out as a whole
    split: SplitShares | None = None  # all parts of a split by groups, if the subset is one of them

    def lost_rows(self, manifest: Manifest) -> int:
        """Number of objects in the lost shards, in and outside the subset."""
        return sum(manifest.shards[number].rows for number in self.lost)


@dataclass(frozen=True)
class SelectedObjects:
    """A subset's census and its row mask, which may be mapped from a file that ranks share."""

    census: Census
    selection: Selection | None  # None: all rows of the shards that are not lost
    file: str = ""  # name of the file with the selection, in the folder of `load_objects`
    xxh3: str = ""  # checksum of that file

    def facts(self) -> dict[str, Any]:
        """JSON-serialisable record from which `from_facts` restores the objects in another process."""
        return {"census": asdict(self.census), "file": self.file, "xxh3": self.xxh3}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], folder: Path, manifest: Manifest) -> "SelectedObjects":
        """Restore the objects; the selection is mapped into memory from its file in `folder`.

        Raises:
            BadInput: the file is missing or does not match its checksum.
        """
        known, split = facts["census"], facts["census"].get("split")
        census = Census(
            **{**known, "lost": tuple(known["lost"]), "split": SplitShares(**split) if split else None}
        )
        file, xxh3 = facts["file"], facts["xxh3"]
        rows = [shard.rows for shard in manifest.shards]
        return cls(census, Selection.read(folder / file, rows, xxh3) if file else None, file, xxh3)


def find_objects(
    manifest: Manifest,
    files: ShardFiles,
    subsets: Sequence[Subset],
    folder: Path | None,
    *,
    verify: bool,
    skip: bool,
) -> list[SelectedObjects]:
    """Find the objects of several subsets as `count_objects` does, or load those that are known in a folder.

    Args:
        manifest, files, subsets, verify: as of `count_objects`.
        folder: where found objects are kept, for other ranks and a resumed run; None: in memory.
        skip: leave out shards that are missing, of another size or with damaged labels, with a warning.

    Raises:
        BadInput: as `count_objects`.
    """
    lost = files.find_lost() if skip else ()
    known = [
        load_objects(folder, manifest, subset, lost) if folder and subset.columns else None
        for subset in subsets
    ]
    unknown = [subset for subset, found in zip(subsets, known, strict=True) if found is None]
    counted = iter(count_objects(manifest, files, unknown, lost, verify, skip))

    def count(subset: Subset) -> SelectedObjects:
        found = next(counted)
        return found if folder is None else save_objects(folder, manifest, subset, found)

    return [found or count(subset) for subset, found in zip(subsets, known, strict=True)]


def load_objects(
    folder: Path, manifest: Manifest, subset: Subset, lost: tuple[int, ...]
) -> SelectedObjects | None:
    """Load what `save_objects` wrote for this subset; None where there is none or it is damaged."""
    try:
        facts = json.loads((folder / f"{_name(manifest, subset, lost)}.json").read_bytes())
        return SelectedObjects.from_facts(facts, folder, manifest)
    except (OSError, ValueError, KeyError, TypeError, BadInput):
        return None  # missing, or damaged: counted again


def save_objects(
    folder: Path, manifest: Manifest, subset: Subset, objects: SelectedObjects
) -> SelectedObjects:
    """Write a subset's objects for other ranks and a resumed run; return them mapped into memory.

    The name of the file in `folder` depends on the dataset, the subset and the lost shards.
    """
    if objects.selection is None:
        return objects
    folder.mkdir(exist_ok=True)
    name = _name(manifest, subset, objects.census.lost)
    xxh3 = objects.selection.write(folder / f"{name}.bits")
    facts = SelectedObjects(objects.census, None, f"{name}.bits", xxh3).facts()
    write_text(folder / f"{name}.json", json.dumps(facts) + "\n")
    return SelectedObjects.from_facts(facts, folder, manifest)


def _name(manifest: Manifest, subset: Subset, lost: tuple[int, ...]) -> str:
    where = subset.where.text if subset.where else ""
    key: tuple[Any, ...] = manifest.sha256, ORDER, subset.part, subset.validation, subset.test, subset.seed
    key = (*key, where, lost, *([subset.groups.text] if subset.groups else []))
    return f"{subset.part}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"


def count_objects(
    manifest: Manifest,
    files: ShardFiles,
    subsets: Sequence[Subset],
    lost: tuple[int, ...] = (),
    verify: bool = False,
    skip: bool = False,
) -> list[SelectedObjects]:
    """Find the objects of several subsets by one scan; a subset of all objects needs only the manifest.

    Args:
        manifest, files, subsets: of the dataset.
        lost: shards to leave out.
        verify: compare labels with their checksums.
        skip: count a shard whose labels are damaged as lost, with a warning, instead of raising.

    Raises:
        BadInput: a shard that cannot be read, or whose labels have changed since it was written; objects of
            unknown position in a split by position.
    """
    numbers = [number for number in range(len(manifest.shards)) if number not in set(lost)]
    rows = [shard.rows for shard in manifest.shards]
    selections = [Selection(rows) if subset.columns else None for subset in subsets]
    groups: list[set[int]] = [set() for _ in subsets]

    def one(number: int) -> list[Census]:
        shard = manifest.shards[number]
        known = Census(shard.rows, shard.z_min, shard.z_max, shard.unlabelled, *3 * (shard.file,))
        try:
            return [
                known if selection is None else _scan(files, number, subset, selection, seen, verify)
                for subset, selection, seen in zip(subsets, selections, groups, strict=True)
            ]
        except BadInput as error:
            if not skip:
                raise
            files.warn(f"{error}; its {shard.rows} objects are left out")
            return [Census(lost=(number,))] * len(subsets)

    totals = [Census(lost=lost)] * len(subsets)
    # Several shards at a time: on a network file system each takes a few round trips, one after another.
    with ThreadPoolExecutor(_THREADS, "hpcphotoz-count") as threads:
        scanned = any(subset.columns for subset in subsets)
        found: Iterable[list[Census]] = threads.map(one, numbers) if scanned else map(one, numbers)
        if scanned and len(numbers) >= _MANY:
            found = track(found, "counting objects (shards)", len(numbers))
        for each in found:
            totals = list(map(_merged, totals, each))
    for k, (subset, total) in enumerate(zip(subsets, totals, strict=True)):
        if total.split and total.split.unplaced:
            raise BadInput(subset.unplaced_message(total.split.unplaced, manifest.rows))
        if total.split:
            totals[k] = replace(total, split=replace(total.split, groups=len(groups[k])))
    return list(map(SelectedObjects, totals, selections))


def condition_ranges(
    manifest: Manifest, files: ShardFiles, subset: Subset, lost: Collection[int] = ()
) -> str:
    """What the columns of the subset's condition hold in the whole dataset, as words for a refusal.

    Empty without a condition; begins with a colon. `lost` are the shards to leave out.
    """
    if subset.where is None:
        return ""
    shards = [number for number in range(len(manifest.shards)) if number not in lost]
    found = column_ranges(files, manifest, subset.where.labels(), shards)
    return f": {'; '.join(f'{name} {_words(facts)}' for name, facts in found.items())}"


def _words(facts: Mapping[str, Any]) -> str:
    """What one column holds, from the facts of `column_ranges`."""
    if "true" in facts:
        return f"is true for {facts['true']} of them"
    if "values" in facts:
        return f"is {', '.join(sorted(facts['values']))}" if facts["values"] else "has more than ten texts"
    if facts["min"] is None:
        return "is unknown for all of them"
    low, high = (f"{end:.6g}" if isinstance(end, float) else str(end) for end in (facts["min"], facts["max"]))
    unknown = f", unknown for {facts['unknown']}" if facts["unknown"] else ""
    return f"is {low}{f' to {high}' if low != high else ''}{unknown}"


def _scan(
    files: ShardFiles, number: int, subset: Subset, selection: Selection, groups: set[int], verify: bool
) -> Census:
    """The census of one shard; sets its rows in the selection, and adds its groups, up to MANY_GROUPS."""
    shard, found = files.get(number).entry, Census()
    for first in range(0, shard.rows, _ROWS):
        block = Blocks.single(number, first, min(_ROWS, shard.rows - first))
        columns = files.columns(block, subset.columns | {"z_spec"}, verify)
        keep, part, group = subset.assign(columns)
        shares = None
        if subset.is_split and subset.groups:
            unplaced, training, validation, test = np.bincount(part + 1, minlength=4).tolist()
            shares = SplitShares(training, validation, test, unplaced)
            if len(groups) <= MANY_GROUPS:
                groups.update(np.unique(group)[: MANY_GROUPS + 1].tolist())
        keep = subset.of_part(keep, part)
        selection.set_rows(number, first, keep)
        z = columns["z_spec"][keep]
        one = Census(len(z), *redshift_range(z), *3 * (shard.file,), split=shares)
        found = _merged(found, one)
    return found


def _merged(a: Census, b: Census) -> Census:
    lower = b.z_min is not None and (a.z_min is None or b.z_min < a.z_min)
    higher = b.z_max is not None and (a.z_max is None or b.z_max > a.z_max)
    return Census(
        rows=a.rows + b.rows,
        z_min=b.z_min if lower else a.z_min,
        z_max=b.z_max if higher else a.z_max,
        unlabelled=a.unlabelled + b.unlabelled,
        z_min_in=b.z_min_in if lower else a.z_min_in,
        z_max_in=b.z_max_in if higher else a.z_max_in,
        unlabelled_in=b.unlabelled_in if b.unlabelled and not a.unlabelled else a.unlabelled_in,
        lost=tuple(sorted(a.lost + b.lost)),
        split=a.split + b.split if a.split and b.split else a.split or b.split,
    )
