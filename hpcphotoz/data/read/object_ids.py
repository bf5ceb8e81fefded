"""Reads the object ids of a whole dataset, to find objects that two datasets share."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.manifest import Manifest
from hpcphotoz.data.read.shard_files import ShardFile


def read_object_ids(folder: Path, manifest: Manifest) -> npt.NDArray[np.int64]:
    """Object ids of a dataset in stored order, (N,): 8 bytes an object.

    Raises:
        BadInput: a shard cannot be read, or its ids have changed since it was written.
    """
    ids = np.empty(manifest.rows, np.int64)
    end = 0
    for number, shard in enumerate(manifest.shards):
        file = ShardFile(folder, manifest, number)
        if shard.ids_xxh3 is not None:
            file.verify_labels(ids_only=True)
        start, end = end, end + shard.rows
        file.column("object_id", 0, ids[start:end])
    return ids
