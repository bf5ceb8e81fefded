"""Batches of a dataset for evaluation and prediction, and their redshift labels."""

import itertools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcphotoz.data.format.manifest import Manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.order import Blocks
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.data.read.shard_files import ShardFiles
from hpcphotoz.data.select.census import SelectedObjects, condition_ranges, count_objects
from hpcphotoz.data.select.subset import ALL_OBJECTS, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.progress import track
from hpcphotoz.ranks import ALONE, Ranks


def to_tensors(stamps: Stamps, device: torch.device | str) -> dict[str, Tensor]:
    """Copy images, E(B-V), z_spec, sky sigma and object id of a batch to a device."""
    names = ("images", "ebv", "z_spec", "sky_sigma", "object_id")
    return {name: torch.from_numpy(np.ascontiguousarray(getattr(stamps, name))).to(device) for name in names}


class RankRows(NamedTuple):
    """A rank's slice of the objects of a dataset that are measured, in stored order."""

    rows: range  # consecutive rows of the dataset, counted over its shards; whole batches of one process
    first: int  # number of selected objects before them
    objects: int  # number of selected objects in them
    total: int  # number of selected objects on all ranks


class BatchTable(NamedTuple):
    """The batches in which one process reads a dataset, in stored order; none reaches beyond a shard."""

    first: npt.NDArray[np.int64]  # (M,) first row of the dataset, counted over its shards
    stop: npt.NDArray[np.int64]  # (M,) row after the last one
    objects: npt.NDArray[np.int64]  # (M,) number of selected objects


def batch_table(data: Path, manifest: Manifest, batch: int, subset: Subset = ALL_OBJECTS) -> BatchTable:
    """The batches of a dataset; raises BadInput for an empty subset, or for an unreadable shard."""
    selection = find_subset_objects(data, manifest, subset).selection
    first, stop, objects = ([np.zeros(0, np.int64)] for _ in range(3))
    before = 0
    for number, shard in enumerate(manifest.shards):
        starts = np.arange(0, shard.rows, batch)
        sizes = np.diff(starts, append=shard.rows)
        first.append(before + starts)
        stop.append(before + starts + sizes)
        if selection is not None and shard.rows:
            mask = selection(Blocks.single(number, 0, shard.rows))
            sizes = np.add.reduceat(mask, starts, dtype=np.int64)
        objects.append(sizes)
        before += shard.rows
    return BatchTable(np.concatenate(first), np.concatenate(stop), np.concatenate(objects))


def divide_rows(
    data: Path,
    manifest: Manifest,
    batch: int,
    subset: Subset = ALL_OBJECTS,
    limit: int | None = None,
    ranks: Ranks = ALONE,
) -> RankRows:
    """This rank's slice of the first `limit` objects of a subset (all by default), by count of objects.

    Slices end where batches end, so that ranks compute the same batches as one process. A rank gets none if
    there are fewer batches than ranks; rank 0 always gets an object. Rank 0 alone reads labels.

    Args:
        data, manifest: the dataset's folder and its manifest.
        batch: batch size.
        subset: which objects of the dataset.
        limit: greatest number of objects.
        ranks: the ranks that share the dataset.

    Raises:
        BadInput: the subset is empty, or a shard cannot be read.
    """

    def divide() -> list[RankRows]:
        table = batch_table(data, manifest, batch, subset)
        end = np.concatenate([[0], table.stop])
        objects = np.concatenate([[0], np.cumsum(table.objects)])
        total = min(int(objects[-1]), limit or manifest.rows)
        objects = np.minimum(objects, total)
        cuts = np.searchsorted(objects, [-(-rank * total // ranks.size) for rank in range(ranks.size + 1)])
        return [
            RankRows(range(int(end[i]), int(end[j])), int(objects[i]), int(objects[j] - objects[i]), total)
            for i, j in itertools.pairwise(cuts)
        ]

    return ranks.on_first_rank(divide)[ranks.rank]


def read_batches(
    data: Path,
    manifest: Manifest,
    batch: int,
    what: str,
    limit: int | None = None,
    subset: Subset = ALL_OBJECTS,
    pixel_columns: Collection[str] = (),
    share: RankRows | None = None,
) -> Iterator[Stamps]:
    """Read the first `limit` objects of a subset (all by default) in stored order, with a progress bar.

    Objects are counted at the call, not at the first batch: an empty subset is refused before any output.

    Args:
        data, manifest: the dataset's folder and its manifest.
        batch: batch size; the last batch of a shard may be smaller.
        what: the verb of the progress line, such as "predicting".
        limit: greatest number of objects to read.
        subset: which objects of the dataset.
        pixel_columns: names of extra columns with a value a pixel that are read too.
        share: a rank's slice of these objects, by `divide_rows`; None: all.

    Raises:
        BadInput: the subset is empty, or, during the iteration, a shard cannot be read.
    """
    part = divide_rows(data, manifest, batch, subset, limit) if share is None else share
    chosen = subset if subset.columns else None
    parts = _first(read_rows(data, manifest, batch, chosen, pixel_columns, part.rows), part.objects)
    of_ranks = f"{what} (objects{'' if part.objects == part.total else ' of this rank'})"
    return track(parts, of_ranks, total=part.objects, weight=len)


def find_subset_objects(data: Path, manifest: Manifest, subset: Subset) -> SelectedObjects:
    """Find the objects in a subset of a dataset; raises BadInput for none, or for an unreadable shard."""
    if manifest.rows == 0:
        raise BadInput(f"{data}: holds no object")
    if {"validation": subset.validation, "test": subset.test}.get(subset.part) == 0:
        raise BadInput(
            f"{data}: the split of the training has no {subset.part} part (data.{subset.part} is 0): "
            f"choose another part, or a run trained with --data.{subset.part} 0.1"
        )
    files = ShardFiles(data, manifest)
    objects = count_objects(manifest, files, [subset])[0]
    if objects.census.rows == 0:
        change = [
            *(["the part"] if subset.part != "all" else []),
            *(["the condition"] if subset.where else []),
        ]
        raise BadInput(
            f"{data}: none of its {manifest.rows} objects is selected{subset.text()}"
            f"{condition_ranges(manifest, files, subset)}: change {' or '.join(change)}"
        )
    return objects


def check_batch(batch: int, limit: int | None = None) -> None:
    """Raise BadInput for a batch size or a limit below 1."""
    for name, value in (("batch", batch), ("limit", limit)):
        if value is not None and value < 1:
            raise BadInput(f"{name} {value}: must be at least 1")


def check_redshifts(
    bins: RedshiftBins, data: Path, manifest: Manifest, who: str, subset: Subset = ALL_OBJECTS
) -> None:
    """Raise BadInput for the first object of known z_spec outside the bins, or for an unreadable shard."""
    files = ShardFiles(data, manifest)
    for number, shard in enumerate(manifest.shards):
        low, high = shard.z_min, shard.z_max
        if low is None or high is None or (low >= bins.z_min and high < bins.z_max):
            continue
        names = {"z_spec", "object_id"} | subset.columns
        columns = files.columns(Blocks.single(number, 0, shard.rows), names)
        z, object_id = columns["z_spec"], columns["object_id"]
        for i in np.flatnonzero(subset(columns) & ((z < bins.z_min) | (z >= bins.z_max))):
            raise BadInput(
                f"{data / shard.file}: object {object_id[i]} has z_spec {z[i]:.4f}, outside "
                f"[{bins.z_min}, {bins.z_max}) of {who}: leave such objects out, with --where"
            )


def attack_labels(bins: RedshiftBins, clean: Tensor, z_spec: Tensor) -> Tensor:
    """Labels of an attack, (N,) float32: z_spec, or the most probable redshift where z_spec is unknown.

    The mode of the PDF and not its mean: |<z> - z| has no gradient at z = <z>, so FGSM would not move.

    Args:
        bins: redshift bins of the PDFs.
        clean: (N, bins) PDFs of the images before the attack.
        z_spec: (N,) float32, NaN: unknown.
    """
    mode = bins.centres(str(clean.device))[clean.argmax(dim=1)]
    return torch.where(torch.isnan(z_spec), mode, z_spec)


def _first(parts: Iterator[Stamps], left: int) -> Iterator[Stamps]:
    for stamps in parts if left else ():
        yield stamps[:left]
        left -= len(stamps)
        if left <= 0:
            return
