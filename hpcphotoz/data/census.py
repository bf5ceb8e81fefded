"""How many objects a part of a dataset has, and their range of redshifts: one scan of the deciding labels."""

from dataclasses import dataclass, replace

import numpy as np

from hpcphotoz.data import shards
from hpcphotoz.data.files import Files
from hpcphotoz.data.order import Blocks
from hpcphotoz.data.subset import Subset
from hpcphotoz.progress import track

_ROWS = 1 << 16  # scanned together
_MANY = 1000  # shards whose scan takes long enough to be shown


@dataclass(frozen=True)
class Census:
    """What is known of a part before an image is read."""

    rows: int
    z_min: float | None  # smallest known z_spec; None: none known
    z_max: float | None
    unlabelled: int  # objects whose z_spec is unknown
    example: str  # the first shard that holds an unlabelled object; for messages
    lost: tuple[int, ...] = ()  # shards that are missing or of another size, left out as a whole

    def lost_rows(self, manifest: shards.Manifest) -> int:
        """Objects of the lost shards, of whatever part."""
        return sum(manifest.shards[number].rows for number in self.lost)


def count(manifest: shards.Manifest, files: Files, subset: Subset, lost: tuple[int, ...] = ()) -> Census:
    """Count the objects of a part; the manifest alone is enough where all are meant.

    Args:
        manifest, files: the dataset.
        subset: the part.
        lost: shards to leave out.

    Raises:
        BadInput: a shard that cannot be read.
    """
    found = Census(0, None, None, 0, "", lost)
    if not subset.columns:
        for number, shard in enumerate(manifest.shards):
            if number in lost:
                continue
            found = _merged(found, Census(shard.rows, shard.z_min, shard.z_max, shard.unlabelled, shard.file))
        return found
    numbers = range(len(manifest.shards))
    quiet = len(manifest.shards) < _MANY
    for number in numbers if quiet else track(numbers, "counting objects (shards)", len(manifest.shards)):
        rows = 0 if number in lost else manifest.shards[number].rows
        for first in range(0, rows, _ROWS):
            block = Blocks(*(np.array([x]) for x in (number, first, min(_ROWS, rows - first))))
            columns = files.columns(block, subset.columns | {"z_spec"})
            z = columns["z_spec"][subset(columns)]
            known = z[np.isfinite(z)]
            low = float(known.min()) if len(known) else None
            high = float(known.max()) if len(known) else None
            name = manifest.shards[number].file
            found = _merged(found, Census(len(z), low, high, len(z) - len(known), name))
    return found


def _merged(a: Census, b: Census) -> Census:
    lows = [z for z in (a.z_min, b.z_min) if z is not None]
    highs = [z for z in (a.z_max, b.z_max) if z is not None]
    low, high = min(lows, default=None), max(highs, default=None)
    example = a.example or (b.example if b.unlabelled else "")
    return replace(
        a,
        rows=a.rows + b.rows,
        z_min=low,
        z_max=high,
        unlabelled=a.unlabelled + b.unlabelled,
        example=example,
    )
