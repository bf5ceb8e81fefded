"""Streams batches of several datasets: the same number of objects of each in every global batch."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from hpcphotoz.config import Data
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.data.format.encoding import decode
from hpcphotoz.data.format.manifest import columns
from hpcphotoz.data.order import Int64Array, derive_key, keyed_hash, rank_slice
from hpcphotoz.data.select.census import Census
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.data.stream.chained import ChainedStream, common_manifest, open_dataset
from hpcphotoz.data.stream.resumable import ResumableStream
from hpcphotoz.data.stream.shares import Passes, PassSlots, dataset_of_positions
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.data.stream.window import BufferPool
from hpcphotoz.errors import BadInput
from hpcphotoz.world import World

_ORDER, _KEY = 12, 13  # purposes of these random numbers, different from those of all others
_LABELS = ("z_spec", "ebv", "object_id", "sky_sigma")


@dataclass(frozen=True)
class _Piece:
    """A batch of one pass over a dataset: a part of a global batch, or where a pass ends, some of one."""

    batch: Batch
    first: int  # position in the part at which the batch begins
    number: int  # of the pass


class MixedStream(ResumableStream):
    """Batches of the training parts of several datasets, with the interface of `Stream`.

    Every global batch holds `shares[i]` objects of dataset i, at random positions. Each dataset has its own
    order and its own passes: a pass visits each of its objects once, over all ranks, and the next one begins
    in the same batch in which it ends. An epoch ends when every dataset has been seen at least once: after
    max_i ceil(N_i / shares[i]) global batches. All of it depends on (seed, step) alone. Iteration,
    `state_dict` and `load_state_dict` are as of `Stream`.

    Memory is that of a `Stream` for each dataset, and two batches.

    Args:
        datasets: with their weights.
        options, global_batch, seed, world, pinned: as of `Stream`.

    Raises:
        BadInput: as `Stream`; bands, stamps, pixel scales or selected columns that differ; a dataset without
            an object in a global batch.
    """

    def __init__(
        self,
        datasets: Datasets,
        options: Data,
        *,
        global_batch: int,
        seed: int,
        world: World | None = None,
        pinned: bool = False,
    ) -> None:
        world = world or World()
        self.shares, self._seed = datasets.shares(global_batch), seed
        self._own = rank_slice(global_batch, world.rank, world.size)
        most = -(-global_batch // world.size)
        self.parts = tuple(
            open_dataset(
                folder,
                options,
                "train",
                global_batch=share,
                seed=derive_key(seed, _ORDER, number),
                world=world,
                most_rows=min(share, most),
            )
            for number, (folder, share) in enumerate(zip(datasets.folders, self.shares, strict=True))
        )
        self.manifest = common_manifest(datasets, self.parts, global_batch)
        facts = {"dataset": self.manifest.sha256, "seed": seed, "global_batch": global_batch}
        super().__init__(options, **facts, part="train", shuffle=True)
        self._shape, self._dtype = columns(self.manifest.header)["images"]
        size = most * int(np.prod(self._shape)) * self._dtype.itemsize
        self._buffers = BufferPool(size, pinned)
        self.threads = sum(part.threads for part in self.parts)

    @property
    def busy_s(self) -> float:
        """Seconds that the reading threads of all datasets have worked, added up."""
        return sum(part.busy_s for part in self.parts)

    @property
    def census(self) -> Census:
        """Number of selected objects of all datasets, and the lost shards, numbered as in `manifest`."""
        lost, first = [], 0
        for part in self.parts:
            lost += [first + number for number in part.census.lost]
            first += len(part.manifest.shards)
        return Census(sum(part.rows for part in self.parts), lost=tuple(lost))

    @property
    def rows(self) -> int:
        """Number of objects of all datasets, over all ranks."""
        return sum(part.rows for part in self.parts)

    @property
    def batches(self) -> int:
        """Global batches of an epoch: until every dataset has been seen at least once."""
        return max(-(-passes.rows // passes.share) for passes in self.passes)

    def batch_size(self, number: int) -> int:
        """Number of objects in any global batch."""
        return sum(self.shares)

    @cached_property
    def passes(self) -> list[Passes]:
        """How each dataset fills its parts.

        Raises:
            BadInput: a dataset has no object, or fewer than a global batch takes from it.
        """
        for part, share in zip(self.parts, self.shares, strict=True):
            if part.rows < share:
                raise BadInput(
                    f"{part.folder}: {part.rows} objects to train on, and {share} of them in every global "
                    f"batch of {sum(self.shares)}: lower its weight or run.global_batch"
                )
        return [Passes(part.rows, share) for part, share in zip(self.parts, self.shares, strict=True)]

    def datasets_at(self, step: int) -> Int64Array:
        """The dataset from which each position of a step's global batch takes its object."""
        return dataset_of_positions(self.shares, self._seed, step)

    def runs(self, step: int, epochs: int) -> Iterator[Iterator[Batch]]:
        """This rank's batches from a step of training on, until `epochs` have passed, as one iterator."""
        yield self.steps(step, epochs * self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's batches of one epoch, from global batch `start` on; raises BadInput as `steps`."""
        yield from self.steps(epoch * self.batches + start, (epoch + 1) * self.batches)

    def steps(self, first: int, last: int) -> Iterator[Batch]:
        """This rank's batches of the steps from `first` to `last` - 1.

        Raises:
            BadInput: a shard that is damaged, missing or unreadable; names it with its folder, and the rows.
        """
        with ExitStack() as stack:
            pieces = [stack.enter_context(closing(self._pieces(k, first))) for k in range(len(self.parts))]
            merged = (self._merge(step, [next(of) for of in pieces]) for step in range(first, last))
            # A thread of its own copies the next batch together while this one is used.
            thread = stack.enter_context(ThreadPoolExecutor(1, "hpcphotoz-merge"))
            coming = thread.submit(next, merged, None)
            while (batch := coming.result()) is not None:
                coming = thread.submit(next, merged, None)
                yield batch
                del batch  # or its buffer would be held one batch longer

    def _pieces(self, dataset: int, step: int) -> Generator[list[_Piece], None, None]:
        """What fills a dataset's part in each step from `step` on: one piece, or two where a pass ends."""
        passes, part = self.passes[dataset], self.parts[dataset]
        number, start = passes.at(step)
        found: list[_Piece] = []

        def of_part(step: int) -> slice:
            mine = self.datasets_at(step) == dataset
            before = int(np.count_nonzero(mine[: self._own.start]))
            return slice(before, before + int(np.count_nonzero(mine[self._own])))

        while True:
            with closing(part.epoch(number, start, PassSlots(passes, number, of_part))) as batches:
                for batch in batches:
                    found.append(_Piece(batch, passes.place(number, batch.index)[1], number))
                    if found[-1].first + batch.size == passes.share:
                        yield found
                        found = []
            number, start = number + 1, 0

    def _merge(self, step: int, pieces: list[list[_Piece]]) -> Batch:
        """The slice of this rank of the global batch of a step."""
        dataset = self.datasets_at(step)
        parts: list[_Piece] = []
        positions, keys = [], []
        for number, of_dataset in enumerate(pieces):
            places = np.flatnonzero(dataset == number)
            for piece in of_dataset:
                positions.append(places[piece.first + piece.batch.position.numpy()])
                ids = piece.batch.object_id.numpy().astype(np.uint64)
                # An id may be there in two datasets, and an object in two passes of one epoch.
                keys.append(keyed_hash(ids, derive_key(number, piece.number, _KEY)).view(np.int64))
                parts.append(piece)
        position = np.concatenate(positions)
        order = np.argsort(position)
        row = np.empty_like(order)
        row[order] = np.arange(len(order))
        images = self._buffers.as_tensor(self._buffers.acquire(), (len(row), *self._shape), self._dtype)
        into, end = images.numpy(), 0
        names = [*_LABELS, *(["image_unit"] if self._dtype == np.int16 else [])]
        for piece in parts:
            rows, end = row[end : end + len(piece.batch.object_id)], end + len(piece.batch.object_id)
            into[rows] = self._pixels(piece.batch)
        in_order = torch.from_numpy(order)
        labels: dict[str, Any] = {
            name: torch.cat([getattr(piece.batch, name) for piece in parts])[in_order] for name in names
        }
        return Batch(
            images=images,
            **labels,
            position=torch.from_numpy(position[order]),
            size=sum(self.shares),
            index=step % self.batches,
            random_key=torch.from_numpy(np.concatenate(keys)[order]),
            skipped=sum(piece.batch.skipped for piece in parts),
        )

    def _pixels(self, batch: Batch) -> Any:
        """The images as all datasets store them, or where they differ, in float32."""
        images = batch.images.numpy()
        if images.dtype == self._dtype:
            return images
        return decode(images, None if batch.image_unit is None else batch.image_unit.numpy())


def open_training_stream(datasets: Datasets, options: Data, **how: Any) -> Stream | MixedStream:
    """The shuffled training objects of one dataset or of several.

    Args:
        datasets, options: which objects, and how they are read.
        how: global_batch, seed, world and pinned, as of `Stream`.

    Raises:
        BadInput: as `Stream` and `MixedStream`.
    """
    if datasets.several:
        return MixedStream(datasets, options, **how)
    return Stream(datasets.folders[0], options, part="train", **how)


def open_validation_stream(datasets: Datasets, options: Data, **how: Any) -> Stream | ChainedStream:
    """The validation objects of one dataset or of several, in stored order; arguments and errors likewise."""
    if datasets.several:
        return ChainedStream(datasets, options, "validation", **how)
    return Stream(datasets.folders[0], options, part="validation", shuffle=False, **how)
