"""Reads one window of blocks into the buffers of its batches."""

import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from hpcphotoz.data.format import shards
from hpcphotoz.data.format.manifest import Header, columns
from hpcphotoz.data.order import WindowOrder
from hpcphotoz.data.read.shard_files import ShardFile, ShardFiles
from hpcphotoz.errors import BadInput

Bytes = npt.NDArray[np.uint8]
_LABELS = ("z_spec", "ebv", "object_id", "sky_sigma")
# Bytes read between checksums: still in the processor's cache, which costs a tenth less than after 2.6 MB.
_VERIFY_BYTES = 1 << 19
_PAGE = 4096
# Runs of one shard that begin in the same so many rows are read together: their labels at once.
_SPAN_ROWS = 64


class BufferPool:
    """Reusable memory buffers of one size, allocated when none is free.

        acquire() ─► filled by threads ─► as_tensor() ─► tensors over it ─► the last one dies ─► acquire()

    A consumer may keep a batch, and so its buffer, as long as it likes. Buffers have `size` bytes, and are
    page-locked if `pinned`, for asynchronous copies to a GPU.
    """

    def __init__(self, size: int, pinned: bool) -> None:
        self._size, self._pinned = size, pinned
        self._free: deque[Bytes] = deque()  # append and pop are atomic: finalizers run in any thread

    def acquire(self) -> Bytes:
        """A free buffer, allocated where there is none."""
        try:
            return self._free.pop()
        except IndexError:
            if self._pinned:
                return np.asarray(torch.empty(self._size, dtype=torch.uint8, pin_memory=True).numpy())
            # numpy asks for huge pages: fewer faults than torch.empty. But its memory begins 16 bytes after a
            # page, where the kernel's copy (`rep movsb`) has 0.53 of its speed on AMD's Zen 4.
            memory = np.empty(self._size + _PAGE, np.uint8)
            start = -memory.ctypes.data % _PAGE
            return memory[start : start + self._size]

    def as_tensor(self, buffer: Bytes, shape: tuple[int, ...], dtype: Any) -> torch.Tensor:
        """A tensor over the start of a buffer, which is free again when the tensor and its views are gone."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        view = buffer[:count].view(dtype).reshape(shape)
        back = weakref.finalize(view, self._free.append, buffer)
        back.atexit = False
        return torch.from_numpy(view)


class Window:
    """A rank's rows of one window, read by any number of threads.

    Rows that are neighbours on disk are a *run*, read by one call. Runs near to each other are a *span*,
    whose labels are read together: the split leaves out a row here and there of a block.

    Args:
        files, header: of the dataset.
        buffers: memory for the images; each holds this rank's images of one batch.
        window_order: the objects and their places in the batches.
        size: objects a global batch.
        slots: this rank's positions in each of the window's batches.
        start: number of the epoch's first batch that is read.
        verify: compare each image with its checksum.
        skip: leave out what is damaged instead of raising.
    """

    def __init__(
        self,
        files: ShardFiles,
        buffers: BufferPool,
        header: Header,
        window_order: WindowOrder,
        *,
        size: int,
        slots: Sequence[slice],
        start: int,
        verify: bool,
        skip: bool,
    ) -> None:
        self._files, self._verify, self._skip = files, verify, skip
        self._size, self._slots, self._first = size, slots, window_order.first
        low, high = np.array([(s.start, s.stop) for s in slots], np.int64).reshape(-1, 2).T
        self._begin = max(start - window_order.first, 0)
        batch, position = window_order.place // size, window_order.place % size
        own = (position >= low[batch]) & (position < high[batch])
        mine = np.flatnonzero(own & (batch >= self._begin))
        self._shard, self._row = window_order.shard[mine], window_order.row[mine]
        self._batch, self._slot = batch[mine], position[mine] - low[batch[mine]]
        self._bad = np.zeros(len(mine), np.bool_)
        arrays = columns(header)
        names = (*_LABELS, "image_unit") if "image_unit" in arrays else _LABELS
        self._labels = {n: np.empty((len(mine), *arrays[n][0]), arrays[n][1]) for n in names}
        self._shape, self._dtype = arrays["images"]
        self._row_bytes = int(np.prod(self._shape)) * self._dtype.itemsize
        self._batches = len(window_order.row) // size
        self._buffers = buffers
        self._memory: list[Bytes] = []
        self._views: list[memoryview] = []
        self._spans = deque(self._find_spans())

    def open(self) -> None:
        """Acquire the buffers; called just before reading, when an earlier window has returned its own."""
        self._memory = [self._buffers.acquire() for _ in range(self._begin, self._batches)]
        self._views = [buffer.data for buffer in self._memory]

    def read_spans(self) -> float:
        """Read spans until none is left; several threads may. Returns the seconds it took.

        Raises:
            BadInput: damage, unless it is skipped; the other threads then stop too.
        """
        start = time.perf_counter()
        try:
            while self._spans:
                try:
                    low, high = self._spans.popleft()
                except IndexError:  # another thread took the last one
                    break
                try:
                    self._read(low, high)
                except BadInput as error:
                    if not self._skip:
                        raise
                    self._read_singly(low, high, error)
        except BaseException:
            self.stop()  # on any error the other threads need not read on
            raise
        return time.perf_counter() - start

    def stop(self) -> None:
        """Read nothing more."""
        self._spans.clear()

    def batches(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Yield number, global size and content (the fields of a `Batch`) of each batch, after reading."""
        in_order = np.argsort(self._batch * self._size + self._slot)
        labels = {name: torch.from_numpy(column[in_order]) for name, column in self._labels.items()}
        bad = self._bad[in_order] if self._bad.any() else None
        end = 0
        for k, slots in enumerate(self._slots[self._begin :]):
            position = torch.arange(slots.start, slots.stop)
            count = len(position)
            rows, end = slice(end, end + count), end + count
            images = self._buffers.as_tensor(self._memory[k], (count, *self._shape), self._dtype)
            content = {"images": images, **{name: column[rows] for name, column in labels.items()}}
            content["position"] = position
            del images
            skipped = 0
            if bad is not None and (skipped := int(bad[rows].sum())):
                keep = torch.from_numpy(~bad[rows])
                content = {name: tensor[keep] for name, tensor in content.items()}
            yield self._first + self._begin + k, self._size, {**content, "skipped": skipped}

    def _find_spans(self) -> list[tuple[int, int]]:
        """First and last of the rows of each span, the last not included."""
        if not len(self._row):
            return []
        step, same_shard = np.diff(self._row), np.diff(self._shard) == 0
        near = (step > 0) & (np.diff(self._row // _SPAN_ROWS) == 0)
        return _between(np.flatnonzero(~(same_shard & (near | (step == 1)))) + 1, len(self._row))

    def _read_singly(self, low: int, high: int, error: BadInput) -> None:
        """Find a span's damaged rows: what is left out must not depend on which rows are read together."""
        for k in range(low, high):
            try:
                self._read(k, k + 1)
            except BadInput:
                self._bad[k] = True
        self._files.warn(f"{error}: left out")

    def _read(self, low: int, high: int) -> None:
        number, rows = int(self._shard[low]), self._row[low:high]
        file = self._files.get(number)
        if self._verify:
            self._files.verify_labels(number)
        for name, column in self._labels.items():
            _read_column(file, name, rows, column[low:high])
        stored = None
        if self._verify and file.has_digests:
            stored = np.empty(len(rows), np.uint64)
            _read_column(file, "image_xxh3", rows, stored)
        size, views = self._row_bytes, self._views
        batches, starts = self._batch[low:high] - self._begin, self._slot[low:high] * size
        places = zip(batches.tolist(), starts.tolist(), strict=True)
        into = [views[batch][start : start + size] for batch, start in places]
        for begin, end in _between(np.flatnonzero(np.diff(rows) != 1) + 1, len(rows)):
            first, run = int(rows[begin]), into[begin:end]
            if stored is not None:
                self._read_verified(file, low + begin, first, run, stored[begin:end])
                continue
            file.images.read(first, run)
            if file.entry.offsets is None:  # written by another program: ours refuses such pixels
                shards.check_finite((np.frombuffer(view, self._dtype) for view in run), file.path, first)

    def _read_verified(
        self, file: ShardFile, low: int, first: int, views: list[memoryview], stored: npt.NDArray[np.uint64]
    ) -> None:
        step, found = max(1, _VERIFY_BYTES // self._row_bytes), []
        if file.entry.chunk_rows > 1:
            step = len(views)  # a chunk would be decompressed for each of its parts
        for k in range(0, len(views), step):
            file.images.read(first + k, views[k : k + step])
            found += [xxhash.xxh3_64_intdigest(view) for view in views[k : k + step]]
        wrong = np.flatnonzero(np.array(found, np.uint64) != stored)
        if not len(wrong):
            return
        self._bad[low + wrong] = True
        text = shards.images_differ_message(file.path, first + wrong)
        if not self._skip:
            raise BadInput(text)
        self._files.warn(f"{text}: left out")


def _between(cuts: npt.NDArray[np.int64], end: int) -> list[tuple[int, int]]:
    """The ranges from 0 to `end` that these cuts make."""
    ends = [0, *cuts.tolist(), end]
    return list(zip(ends[:-1], ends[1:], strict=True))


def _read_column(file: ShardFile, name: str, rows: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> None:
    """Read some rows of a label, increasing, and near to each other: one read for all."""
    first, count = int(rows[0]), int(rows[-1] - rows[0]) + 1
    if count == len(rows):
        file.column(name, first, out)
        return
    found = np.empty((count, *out.shape[1:]), out.dtype)
    file.column(name, first, found)
    out[:] = found[rows - first]
