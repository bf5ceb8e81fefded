"""How many objects a part of a dataset has, and their range of redshifts: one scan of the deciding labels."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from hpcphotoz.data import shards
from hpcphotoz.data.files import Files
from hpcphotoz.data.order import Blocks
from hpcphotoz.data.subset import Subset
from hpcphotoz.progress import track

_ROWS = 1 << 16  # scanned together
_THREADS = 8
_MANY = 1000  # shards whose scan takes long enough to be shown


@dataclass(frozen=True)
class Census:
    """What is known of a part before an image is read."""

    rows: int = 0
    z_min: float | None = None  # smallest known z_spec; None: none known
    z_max: float | None = None
    unlabelled: int = 0  # objects whose z_spec is unknown
    z_min_in: str = ""  # the shards that hold them; for messages
    z_max_in: str = ""
    unlabelled_in: str = ""  # the first
    lost: tuple[int, ...] = ()  # shards that are missing or of another size, left out as a whole

    def lost_rows(self, manifest: shards.Manifest) -> int:
        """Objects of the lost shards, of whatever part."""
        return sum(manifest.shards[number].rows for number in self.lost)


def count(
    manifest: shards.Manifest,
    files: Files,
    subsets: Sequence[Subset],
    lost: tuple[int, ...] = (),
    verify: bool = False,
) -> list[Census]:
    """Count the objects of some parts by one scan; the manifest alone is enough where all are meant.

    Args:
        manifest, files: the dataset.
        subsets: the parts.
        lost: shards to leave out.
        verify: compare labels with their checksums.

    Raises:
        BadInput: a shard that cannot be read, or whose labels have changed since it was written.
    """
    numbers = [number for number in range(len(manifest.shards)) if number not in set(lost)]

    def one(number: int) -> list[Census]:
        shard = manifest.shards[number]
        known = Census(shard.rows, shard.z_min, shard.z_max, shard.unlabelled, *3 * (shard.file,))
        return [_scan(files, number, shard, s, verify) if s.columns else known for s in subsets]

    if not any(subset.columns for subset in subsets):
        found: Iterable[list[Census]] = map(one, numbers)
        return _total(found, len(subsets), lost)
    # Several at a time: on a network file system a shard is a few round trips, one after the other.
    with ThreadPoolExecutor(_THREADS, "hpcphotoz-count") as threads:
        found = threads.map(one, numbers)
        if len(numbers) >= _MANY:
            found = track(found, "counting objects (shards)", len(numbers))
        return _total(found, len(subsets), lost)


def _scan(files: Files, number: int, shard: shards.Shard, subset: Subset, verify: bool) -> Census:
    found = Census()
    for first in range(0, shard.rows, _ROWS):
        block = Blocks(*(np.array([x]) for x in (number, first, min(_ROWS, shard.rows - first))))
        columns = files.columns(block, subset.columns | {"z_spec"}, verify)
        z = columns["z_spec"][subset(columns)]
        known = z[np.isfinite(z)]
        low = float(known.min()) if len(known) else None
        high = float(known.max()) if len(known) else None
        found = _merged(found, Census(len(z), low, high, len(z) - len(known), *3 * (shard.file,)))
    return found


def _total(found: Iterable[list[Census]], parts: int, lost: tuple[int, ...]) -> list[Census]:
    totals = [Census(lost=lost)] * parts
    for each in found:
        totals = [_merged(total, one) for total, one in zip(totals, each, strict=True)]
    return totals


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
        lost=a.lost,
    )
