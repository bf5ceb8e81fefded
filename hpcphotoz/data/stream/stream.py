"""Streams batches from shards: threads read windows of blocks ahead; an epoch resumes at any batch.

Each block is read by one `os.preadv`, which scatters its rows to their places in the window's batches: the
only copy is the kernel's.
"""

import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch

from hpcphotoz.config import Data
from hpcphotoz.data import order
from hpcphotoz.data.format.manifest import columns, read_manifest
from hpcphotoz.data.read.shard_files import ShardFiles
from hpcphotoz.data.select.census import Census, SelectedObjects, condition_ranges, find_objects
from hpcphotoz.data.select.subset import SplitPart, Subset
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.data.stream.resumable import ResumableStream
from hpcphotoz.data.stream.shares import PassSlots
from hpcphotoz.data.stream.window import BufferPool, Window
from hpcphotoz.errors import BadInput
from hpcphotoz.world import World

_MIN_BATCHES_A_WINDOW = 4  # with fewer, a batch would be one stretch of the disk
_MAX_WINDOW_GROWTH = 32  # in blocks, of windows in which few objects are selected


class Stream(ResumableStream):
    """Batches of a dataset, shuffled over blocks and then within windows of blocks.

    Every object of the part is seen exactly once an epoch over all ranks, at any world size; the global
    sequence depends on (seed, epoch) alone. `for batch in stream` yields what is left of the current epoch,
    and the next time the next one; `state_dict` and `load_state_dict` resume it at any batch. `epoch` yields
    any epoch. Memory is `windows_ahead` + 1 windows, shared by the ranks, and one bit an object where only
    some are selected.

    Args:
        folder: the dataset.
        options: blocks, windows, threads, the split, the predicate, what to do about damage.
        global_batch: objects a batch, over all ranks.
        seed: determines the order.
        part: train, validation, test (see `Data.split_by`) or all.
        world: which rank this is; it takes a contiguous slice of every global batch.
        shuffle: False: in stored order.
        pinned: whether to read into page-locked memory, for asynchronous copies to a GPU.
        most_rows: objects of a batch that this rank reads at most; None: those of an even slice.

    Raises:
        BadInput: an unfinished dataset, a missing, truncated or mismatched shard, an invalid predicate.
    """

    def __init__(
        self,
        folder: Path | str,
        options: Data,
        *,
        global_batch: int,
        seed: int,
        part: SplitPart = "train",
        world: World | None = None,
        shuffle: bool = True,
        pinned: bool = False,
        most_rows: int | None = None,
    ) -> None:
        self._world = world or World()
        # One rank checks every file: all ranks at ten thousand shards would stall a metadata server.
        check = self._world.is_first and options.damaged == "fail"
        self.folder = folder = Path(folder)
        self.manifest = read_manifest(folder, check)
        self._options, self._seed, self._part = options, seed, part
        self._global_batch, self._shuffle = global_batch, shuffle
        header = self.manifest.header
        self._subset = Subset.from_options(options, part, header.bands, header.extra)
        self.files = ShardFiles(folder, self.manifest)
        # A block that is not whole chunks would have its first and last chunk decompressed twice.
        chunk = max((shard.chunk_rows for shard in self.manifest.shards[:1]), default=1)
        self.block_rows = -(-options.block_rows // chunk) * chunk
        self.window_rows = max(options.window_blocks * self.block_rows, _MIN_BATCHES_A_WINDOW * global_batch)
        shape, dtype = columns(header)["images"]
        slots = -(-global_batch // self._world.size) if most_rows is None else most_rows
        self._buffers = BufferPool(slots * int(torch.Size(shape).numel()) * dtype.itemsize, pinned)
        self._verified = False
        facts = {"dataset": self.manifest.sha256, "seed": seed, "global_batch": global_batch}
        super().__init__(options, **facts, part=part, shuffle=shuffle)
        self.threads = options.read_threads
        self.busy_s = 0.0  # seconds that reading threads have worked, added up

    @cached_property
    def objects(self) -> SelectedObjects:
        """The selected objects, found once by a scan of the labels unless set to another rank's."""
        self.count_together([self])
        return self.objects

    @property
    def census(self) -> Census:
        """Number of selected objects and their redshift range.

        Raises:
            BadInput: no object at all.
        """
        census = self.objects.census
        if census.rows == 0:
            split, by = census.split, self._options.split_by
            parts = f"; by {by}, {split.text()}" if split else ""
            if self._subset.where:
                ranges = condition_ranges(self.manifest, self.files, self._subset, census.lost)
                parts += f"; where {' '.join(self._subset.where.text.split())}{ranges}"
            change = ["data.validation", "data.test", *(["data.split_by"] if by else [])]
            raise BadInput(
                f"{self.folder}: no object in its {self._part} part ({self.manifest.rows} in all{parts}): "
                f"add objects or change {', '.join(change)} or data.where"
            )
        return census

    @staticmethod
    def count_together(streams: "Sequence[Stream]", folder: Path | None = None) -> None:
        """Find the objects of several streams of one dataset by one scan.

        Selections are kept in memory, or in `folder`, where other ranks and a resumed run read them.
        """
        first, subsets = streams[0], [stream._subset for stream in streams]
        verify, skip = first._options.verify != "never", first._options.damaged == "skip"
        found = find_objects(first.manifest, first.files, subsets, folder, verify=verify, skip=skip)
        for stream, objects in zip(streams, found, strict=True):
            stream.objects = objects

    @property
    def rows(self) -> int:
        """Number of objects an epoch, over all ranks."""
        return self.census.rows

    @property
    def batches(self) -> int:
        """Global batches an epoch, the last partial one included."""
        return -(-self.rows // self._global_batch)

    @property
    def parts(self) -> "tuple[Stream, ...]":
        """The streams of the datasets, as `mixture.MixedStream` has several."""
        return (self,)

    @property
    def labels(self) -> frozenset[str]:
        """Names of the labels by which objects are selected."""
        return self._subset.columns

    def batch_size(self, number: int) -> int:
        """Number of objects in a global batch of an epoch, counted from 0."""
        return min(self._global_batch, self.rows - number * self._global_batch)

    def runs(self, step: int, epochs: int) -> Iterator[Iterator[Batch]]:
        """This rank's batches from a step of training on, until `epochs` have passed, epoch by epoch."""
        first, start = divmod(step, self.batches)
        for epoch in range(first, epochs):
            yield self.epoch(epoch, start if epoch == first else 0)

    def epoch(
        self, epoch: int, start: int = 0, slots: PassSlots | None = None
    ) -> Generator[Batch, None, None]:
        """This rank's batches of one epoch, from global batch `start` on.

        With `slots`, they are the pass of a `mixture.MixedStream` that these describe.

        Raises:
            BadInput: a shard that is damaged, missing or unreadable; names the shard and the rows.
        """
        # With damage skipped, every epoch verifies: an image that one leaves out, another would train on.
        again = self._options.verify == "always" or self._options.damaged == "skip"
        verify = self._options.verify != "never" and (again or not self._verified)
        if self._options.verify == "always":
            self.files.forget_verified()
        plan = self.plan(epoch, start, slots.head if slots else 0)
        # One thread more than read: it plans the next window while the others read this one.
        with ThreadPoolExecutor(self.threads + 1, "hpcphotoz-read") as threads:
            coming: deque[tuple[Window, list[Future[float]]]] = deque()

            def next_window() -> Window | None:
                window_order = next(plan, None)
                return None if window_order is None else self._window(window_order, start, verify, slots)

            def start_reading(window: Window | None) -> Future[Window | None]:
                if window is not None:
                    window.open()
                    reads = [threads.submit(window.read_spans) for _ in range(self.threads)]
                    coming.append((window, reads))
                return threads.submit(next_window)

            try:
                planned = threads.submit(next_window)
                for _ in range(self._options.windows_ahead):
                    planned = start_reading(planned.result())
                while True:
                    planned = start_reading(planned.result())
                    if not coming:
                        break
                    window, reads = coming[0]
                    self.busy_s += sum(future.result() for future in reads)
                    coming.popleft()
                    for index, size, content in window.batches():
                        yield Batch(**content, size=size, index=index)
                        del content  # or its buffer would be held one batch longer
                # An epoch resumed in the middle has not verified the batches before.
                self._verified |= start == 0
            finally:
                for window, _ in coming:
                    window.stop()

    def plan(self, epoch: int, start: int = 0, head: int = 0) -> Iterator[order.WindowOrder]:
        """The windows of an epoch from global batch `start` on; the same on every rank.

        With `head`, the first batch has so many objects only.
        """
        key = order.derive_key(self._seed, epoch) if self._shuffle else None
        lost = set(self.census.lost)  # no rows: no blocks
        rows = tuple(0 if k in lost else shard.rows for k, shard in enumerate(self.manifest.shards))
        layout = order.BlockLayout(rows, self.block_rows)
        # As many selected objects a window as if all were: smaller windows would open more shards a batch.
        window_rows = self.window_rows * min(sum(rows) / self.rows, _MAX_WINDOW_GROWTH)
        window_blocks = math.ceil(window_rows / self.block_rows)
        # Where selected objects lie together, a window has many more of them: it is read in several parts.
        max_rows = self.window_rows * (2 if self._shuffle else 1)
        selection = self.objects.selection
        given = layout, window_blocks, self._global_batch, key, selection, start, max_rows
        return order.windows(*given, head)

    def _window(
        self, window_order: order.WindowOrder, start: int, verify: bool, slots: PassSlots | None
    ) -> Window:
        size = min(self._global_batch, len(window_order.row))  # the last batch of an epoch may be smaller
        numbers = range(window_order.first, window_order.first + len(window_order.row) // size)
        even = order.rank_slice(size, self._world.rank, self._world.size)
        return Window(
            self.files,
            self._buffers,
            self.manifest.header,
            window_order,
            size=size,
            slots=[slots(number, size) if slots else even for number in numbers],
            start=start,
            verify=verify,
            skip=self._options.damaged == "skip",
        )
