"""torch's DataLoader over HDF5 shards, from what scripts do to what can be written with its interface."""

from bisect import bisect_right
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.streaming.stream_readers import BATCH, LABELS, Reader, timed

Array = np.ndarray[Any, Any]


class Rows(Dataset[dict[str, Any]]):
    """Rows of HDF5 shards as a good training script reads them: files opened once in each worker and kept
    open, labels in memory, one h5py read an image.
    """

    def __init__(self, shards: list[Path]) -> None:
        self._shards = shards
        self._starts = [0]
        for path in shards:
            with h5py.File(path, locking=False) as file:
                self._starts.append(self._starts[-1] + len(file["images"]))
        self._files: list[h5py.File] = []
        self._images: list[h5py.Dataset] | None = None
        self._labels: dict[str, Array] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._images is None:
            files = [h5py.File(path, locking=False) for path in self._shards]
            self._images = [file["images"] for file in files]
            self._labels = {name: np.concatenate([file[name][...] for file in files]) for name in LABELS}
        shard = bisect_right(self._starts, index) - 1
        image = self._images[shard][index - self._starts[shard]]
        return {"images": image, **{name: column[index] for name, column in self._labels.items()}}


class PlainRows(Rows):
    """Rows as most published scripts read them: files kept open, every value taken as `file[name][row]`."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self._files:
            self._files = [h5py.File(path, locking=False) for path in self._shards]
        shard = bisect_right(self._starts, index) - 1
        row = index - self._starts[shard]
        return {name: self._files[shard][name][row] for name in ("images", *LABELS)}


class BatchedRows(Dataset[dict[str, Tensor]]):
    """A batch at a time into one array, by the `__getitems__` that DataLoader asks for: nothing is stacked.

    Each image is read into its place by h5py's low-level interface. Labels are in memory. The rows of a batch
    come shard by shard. The array is torch's, which begins at a multiple of 64 bytes: into numpy's, 16 bytes
    after a page, the kernel copies at half the speed on some processors.
    """

    def __init__(self, shards: list[Path]) -> None:
        self._shards = shards
        with h5py.File(shards[0], locking=False) as file:
            self._shape, self._dtype = file["images"].shape[1:], file["images"].dtype
        lengths = []
        for path in shards:
            with h5py.File(path, locking=False) as file:
                lengths.append(len(file["images"]))
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._images: list[Any] = []
        self._labels: dict[str, Array] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        if not self._images:
            files = [h5py.File(path, locking=False) for path in self._shards]
            self._images = [self._open_images(file) for file in files]
            self._labels = {name: np.concatenate([file[name][...] for file in files]) for name in LABELS}
        wanted = np.sort(indices)
        images = torch.empty((len(wanted), *self._shape), dtype=getattr(torch, self._dtype.name))
        ends = np.searchsorted(wanted, self._starts)
        for shard, (low, high) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
            if low < high:
                self._read(self._images[shard], wanted[low:high] - self._starts[shard], images[low:high])
        labels = {name: torch.from_numpy(column[wanted]) for name, column in self._labels.items()}
        return {"images": images, **labels}

    def _open_images(self, file: h5py.File) -> Any:
        images = file["images"].id
        return images, images.get_space(), h5py.h5s.create_simple((1, *self._shape))

    def _read(self, opened: Any, rows: Array, out: Tensor) -> None:
        images, inside, one = opened
        array = out.numpy()
        for k, row in enumerate(rows.tolist()):
            inside.select_hyperslab((row, 0, 0, 0), (1, *self._shape))
            images.read(one, inside, array[k])


class DirectRows(BatchedRows):
    """The same by h5py's `read_direct`, row by row."""

    def _open_images(self, file: h5py.File) -> Any:
        return file["images"]

    def _read(self, opened: Any, rows: Array, out: Tensor) -> None:
        array = out.numpy()
        for k, row in enumerate(rows.tolist()):
            opened.read_direct(array, np.s_[row], np.s_[k])


class MappedRows(BatchedRows):
    """The same from a memory map of each shard's images, found by their offset in the file.

    One fancy index takes the rows of a shard straight into the batch: `batch[...] = map[rows]` copies twice.
    """

    def _open_images(self, file: h5py.File) -> Any:
        images = file["images"]
        return np.memmap(file.filename, images.dtype, "r", images.id.get_offset(), images.shape)

    def _read(self, opened: Any, rows: Array, out: Tensor) -> None:
        np.take(opened, rows, axis=0, out=out.numpy(), mode="clip")  # "raise" would copy once more


class IndexedRows(MappedRows):
    """The same by `torch.index_select`, which copies with all threads of torch."""

    def _open_images(self, file: h5py.File) -> Any:
        images = file["images"]
        mapped = np.memmap(file.filename, images.dtype, "c", images.id.get_offset(), images.shape)
        return torch.from_numpy(mapped)

    def _read(self, opened: Any, rows: Array, out: Tensor) -> None:
        torch.index_select(opened, 0, torch.from_numpy(rows), out=out)


ROW_BY_ROW = {"h5py_dataloader": Rows, "h5py_dataloader_plain": PlainRows}
BATCH_BY_BATCH = {
    "read_direct_dataloader": DirectRows,
    "h5py_low_level_dataloader": BatchedRows,
    "memmap_dataloader": MappedRows,
    "memmap_index_select_dataloader": IndexedRows,
}


def dataloader(
    folder: Path, workers: int, kind: type[Rows] | type[BatchedRows], *, fresh: bool = False
) -> Reader:
    """Torch's DataLoader over one of these data sets, its workers kept from pass to pass.

    With `fresh`, all is opened anew for each pass: files that are mapped stay in the page cache.
    """

    def open_loader() -> tuple[DataLoader[Any], int]:
        dataset: Any = kind(sorted(folder.glob("*.hdf5")))
        whole: dict[str, Any] = {"collate_fn": as_it_is} if issubclass(kind, BatchedRows) else {}
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=BATCH,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0 and not fresh,
            **whole,
        )
        return loader, len(dataset)

    def read(loader: DataLoader[Any], rows: int) -> float:
        return timed(lambda: loader, lambda batch: batch.values(), rows)

    if fresh:
        return lambda: read(*open_loader())
    kept = open_loader()
    return lambda: read(*kept)


def as_it_is(batch: Any) -> Any:
    """The batch that `__getitems__` made."""
    return batch
