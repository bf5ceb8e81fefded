"""Open a dataset from Python: batches of tensors, single objects and slices, a table, a picture."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcphotoz.api.arguments import object_places, whole_number
from hpcphotoz.api.stamp_batch import MOSAIC, StampBatch
from hpcphotoz.config import Data
from hpcphotoz.data.format.extra import unpack_mask
from hpcphotoz.data.format.manifest import Header, Manifest, columns, read_manifest
from hpcphotoz.data.format.stamps import COLUMNS, Stamps
from hpcphotoz.data.order import Blocks
from hpcphotoz.data.read.rows import columns_to_read, read_chosen_rows, read_column, read_rows, to_stamps
from hpcphotoz.data.read.shard_files import ShardFiles
from hpcphotoz.data.select.subset import ALL_OBJECTS, SPLIT_PARTS, Selection, SplitPart, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.batches import find_subset_objects, to_tensors
from hpcphotoz.evaluation.network import check_bands_and_stamp
from hpcphotoz.evaluation.report.html_table import html_table
from hpcphotoz.output import number_of
from hpcphotoz.training.distributed.rank_device import choose_device
from hpcphotoz.training.run.network import TrainedNetwork
from hpcphotoz.world import World

Array = npt.NDArray[Any]


@dataclass(frozen=True, repr=False)
class Dataset:
    """A dataset on disk, or a subset of it: N objects, in the order in which they are stored.

    `len(dataset)` is N. `dataset[i]`, `dataset[i:j]`, `dataset[[i, j]]` and `dataset[mask]` are some of the
    objects as a `StampBatch`, with all extra columns; `dataset["ebv"]` is a column of all, as an array.
    Iteration yields batches, without extra columns that have a value a pixel. Whatever has a checksum is
    compared with it.
    """

    folder: Path
    manifest: Manifest  # number of objects, bands, stamp size, pixel scale, statistics and provenance
    batch: int  # greatest number of objects in a batch; the last batch of a shard may hold fewer
    subset: Subset  # which objects are read
    device: torch.device  # where the tensors are put
    _selection: Selection | None = field(default=None, compare=False)  # None: all objects

    def __repr__(self) -> str:
        return f"<Dataset {self.folder}: {self._summary()}>"

    def _repr_html_(self) -> str:
        shards, header = self.manifest.shards, self.manifest.header
        ends = [z for shard in shards for z in (shard.z_min, shard.z_max) if z is not None]
        unknown = sum(shard.unlabelled for shard in shards)
        z = f"{min(ends):.4f} to {max(ends):.4f}" if ends else "unknown"
        statistics = self.manifest.statistics.sky_sigma
        sky = ", ".join(f"{band} {sky:.3g}" for band, sky in zip(header.bands, statistics, strict=True))
        facts = {
            "pixel scale": f"{header.pixel_scale:g} arcsec",
            "z_spec": z + (f", unknown for {unknown:,}" if unknown and ends else ""),
            "mean sky sigma": f"{sky} nMgy",
            "stored as": f"{header.storage}, {number_of(len(shards), 'shard')}",
        }
        if header.extra:
            facts["extra columns"] = ", ".join(column.name for column in header.extra)
        if self.subset.columns:
            facts = {f"{name} (all objects)": value for name, value in facts.items()}
        return html_table(f"{self.folder}: {self._summary()}", [], [list(pair) for pair in facts.items()])

    def _summary(self) -> str:
        header, rows = self.manifest.header, self.manifest.rows
        count = f"{rows:,} objects" if self._selection is None else f"{len(self):,} of {rows:,} objects"
        bands, side = " ".join(header.bands), f"{header.stamp} x {header.stamp} pixels"
        return f"{count}{self.subset.text()}, bands {bands}, stamps of {side}"

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, key: str) -> Array: ...

    @overload
    def __getitem__(self, key: int | slice | Sequence[int] | Array | Tensor) -> StampBatch: ...

    def __getitem__(self, key: Any) -> StampBatch | Array:
        """Some of the objects, as a batch in memory, or one column of all of them.

        Args:
            key: a place, a slice, places (n,) in any order, or a mask (N,) bool: the objects there; or the
                name of a column, (N, ...): z_spec, ebv, object_id, sky_sigma, ra, dec (deg) or an extra
                column, of which `mask` is (N, bands, y, x) bool, true where a pixel is unusable.

        Raises:
            IndexError: no object at a place, or a mask of another length.
            KeyError: no such column.
            TypeError: a key of another kind.
            BadInput: a shard that is damaged or does not match the manifest.
        """
        if isinstance(key, str):
            return self._column(key)
        n = len(self)
        return self._read(np.arange(n)[key] if isinstance(key, slice) else object_places(key, n))

    def __iter__(self) -> Iterator[StampBatch]:
        """Batches, checked against the checksums.

        Raises:
            BadInput: a shard that is damaged or does not match the manifest.
        """
        row_filter = self.subset if self.subset.columns else None
        for stamps in read_rows(self.folder, self.manifest, self.batch, row_filter):
            yield self._to_batch(stamps)

    def plot(self, n: int = MOSAIC) -> Any:
        """Draw `n` objects, evenly spaced over the dataset, as `StampBatch.plot` does.

        `hpcphotoz inspect --plot` draws redshifts, magnitudes and noise too.

        Returns:
            Array of Matplotlib's axes.

        Raises:
            BadInput: as `StampBatch.plot`, or a damaged shard.
        """
        n = min(whole_number("n", n), len(self))
        places = np.linspace(0, len(self) - 1, max(n, 1)).round().astype(np.int64)
        axes = self._read(places[: len(self)]).plot(n)
        figure, title = axes[0, 0].figure, f"{self.folder.resolve().name}: {self._summary()}"
        figure.suptitle(textwrap.fill(title, int(14 * figure.get_figwidth())), fontsize=9)
        return axes

    def _read(self, places: npt.NDArray[np.int64]) -> StampBatch:
        """The objects at these places, from 0 to N - 1."""
        header = self.manifest.header
        pixel_columns = [column.name for column in header.extra if column.is_pixels]
        if not len(places):
            kinds = columns(header)
            empty = {
                name: np.empty((0, *kinds[name][0]), kinds[name][1])
                for name in columns_to_read(header, pixel_columns)
            }
            return self._to_batch(to_stamps(header, empty))
        ordered, back = np.unique(places, return_inverse=True)
        number = np.searchsorted(self._ends, ordered, side="right")
        parts = []
        for shard in np.unique(number).tolist():
            rows = ordered[number == shard] - (self._ends[shard - 1] if shard else 0)
            if self._selection is not None:
                rows = np.flatnonzero(self._mask(shard))[rows]
            given = self.folder, self.manifest, self._files, shard, rows
            parts.append(read_chosen_rows(*given, pixel_columns))
        stamps = Stamps.concatenate(parts)
        return self._to_batch(stamps if np.array_equal(ordered, places) else stamps[back])

    def _column(self, name: str) -> Array:
        """A column of all objects, (N, ...)."""
        header = self.manifest.header
        extra = {column.name: column for column in header.extra}
        names = (*(one for one in COLUMNS if one != "images"), *extra)
        if name not in names:
            raise KeyError(f"{self.folder} has no column '{name}': it has {', '.join(names)}")
        shape, dtype = columns(header)[name]
        parts = [np.empty((0, *shape), dtype)]
        for shard in range(len(self.manifest.shards)):
            values = read_column(self.folder, self.manifest, self._files, shard, name)
            parts.append(values if self._selection is None else values[self._mask(shard)])
        found = np.concatenate(parts)
        if name == "mask":
            return unpack_mask(found, header.stamp)
        return extra[name].loaded(found) if name in extra else found

    def _to_batch(self, stamps: Stamps) -> StampBatch:
        header, extra = self.manifest.header, dict(stamps.extra)
        if "mask" in extra:
            extra["mask"] = unpack_mask(extra["mask"], header.stamp)
        return StampBatch(**to_tensors(stamps, self.device), bands=header.bands, extra=extra)

    @cached_property
    def _files(self) -> ShardFiles:
        return ShardFiles(self.folder, self.manifest)

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        """Place after the last object of each shard, (shards,)."""
        rows = [shard.rows for shard in self.manifest.shards]
        if self._selection is not None:
            rows = [int(self._mask(shard).sum()) for shard in range(len(rows))]
        return np.cumsum(np.asarray(rows, np.int64))

    def _mask(self, shard: int) -> npt.NDArray[np.bool_]:
        """Which rows of a shard are selected."""
        assert self._selection is not None
        return self._selection(Blocks.single(shard, 0, self.manifest.shards[shard].rows))


def open(
    folder: Path | str,
    *,
    where: str = "",
    part: SplitPart = "all",
    network: TrainedNetwork | None = None,
    batch: int = 256,
    subset: Subset = ALL_OBJECTS,
    device: str = "auto",
) -> Dataset:
    """Open a dataset.

    Args:
        folder: dataset folder.
        where: only objects that meet this condition on their labels, such as "z_spec < 0.3 and ebv < 0.1".
        part: "train", "validation" or "test" of the split with which `network` was trained, and of the
            objects that its own data.where selects; or "all".
        network: the network whose split `part` means; needed only with a part.
        batch: greatest number of objects in a batch.
        subset: which objects to read, in place of `where` and `part`: of `hpcphotoz.data.select.subset`,
            Subset.from_options(options, part, bands, extra) with those of the dataset's `manifest.header`.
        device: where batches are put: "cuda", "cpu", or "auto": a GPU where there is one.

    Raises:
        BadInput: no finished dataset, a shard that is missing, a condition that is none, a part without a
            network or with one that takes other bands or stamps, a subset without objects (all labels are
            read to count them), a batch below 1, or no such device.
    """
    if (batch := whole_number("batch", batch)) < 1:
        raise BadInput(f"batch {batch}: must be at least 1")
    path = Path(folder)
    manifest, chosen = read_manifest(path), choose_device(World(), device)
    if where or part != "all":
        if subset != ALL_OBJECTS:
            raise BadInput("open: subset beside where or part: give one or the other")
        subset = _subset(path, manifest.header, where, part, network)
    selection = find_subset_objects(path, manifest, subset).selection if subset.columns else None
    return Dataset(path, manifest, batch, subset, chosen, selection)


def _subset(
    folder: Path, header: Header, where: str, part: SplitPart, network: TrainedNetwork | None
) -> Subset:
    if part not in SPLIT_PARTS:
        raise BadInput(f"part {part!r}: want one of {', '.join(SPLIT_PARTS)}")
    if part == "all":
        return Subset.from_options(Data(where=where), part, header.bands, header.extra)
    if network is None:
        raise BadInput(f"part {part!r}: of which split? give network=hpcphotoz.load(RUN), trained on it")
    check_bands_and_stamp(network, header, folder)
    return Subset.from_options(network.config.data, part, header.bands, header.extra, where)
