"""Columns of float32 scores, one value per object of this rank, in a temporary file without a name.

The file has no name, so that the system removes it when the process ends, however it ends. It lies where
Python makes temporary files: `TMPDIR` says where.
"""

import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput

Floats = npt.NDArray[np.float32]
BLOCK = 8192  # objects written and read together


class Spill:
    """The temporary file of a rank, made when something is first written; use it as a context."""

    def __init__(self) -> None:
        self._stack, self._file, self._end = ExitStack(), -1, 0

    def __enter__(self) -> "Spill":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def write(self, values: Floats) -> int:
        """Append an array and return its place.

        Raises:
            BadInput: the folder of temporary files is full or cannot be written.
        """
        place, left = self._end, memoryview(np.ascontiguousarray(values).tobytes())
        try:
            if self._file < 0:
                self._file = self._stack.enter_context(tempfile.TemporaryFile(buffering=0)).fileno()
            while left:
                written = os.pwrite(self._file, left, self._end)
                self._end, left = self._end + written, left[written:]
        except OSError as error:
            raise BadInput(
                f"{tempfile.gettempdir()}: cannot hold the scores of all objects: {error.strerror}: set "
                "TMPDIR to a folder with room for them"
            ) from None
        return place

    def read(self, place: int, count: int) -> Floats:
        """Read `count` numbers from a place on."""
        data = bytearray(4 * count)
        view, done = memoryview(data), 0
        while done < len(data):
            got = os.preadv(self._file, [view[done:]], place + done)
            if not got:
                raise BadInput(
                    f"{tempfile.gettempdir()}: a temporary file was cut off: run the command again"
                )
            done += got
        return np.frombuffer(data, np.float32)


class SpilledColumns:
    """Columns of scores, appended batch by batch and read back in blocks of `BLOCK` objects, in order.

    Columns to which the same batches were appended have the same blocks. Memory holds one block.
    """

    def __init__(self, spill: Spill, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._spill, self._places = spill, array("q")
        self._open, self._rows = np.empty((len(self.names), BLOCK), np.float32), 0

    def __len__(self) -> int:
        return len(self._places) * BLOCK + self._rows

    def append(self, values: npt.ArrayLike) -> None:
        """Append the values (columns, N) of a batch, cast to float32."""
        rows = np.asarray(values, np.float32)
        while rows.shape[1]:
            taken = rows[:, : BLOCK - self._rows]
            self._open[:, self._rows : self._rows + taken.shape[1]] = taken
            self._rows, rows = self._rows + taken.shape[1], rows[:, taken.shape[1] :]
            if self._rows == BLOCK:
                self._places.append(self._spill.write(self._open))
                self._rows = 0

    def blocks(self, *names: str) -> Iterator[list[Floats]]:
        """Yield the values of some columns (all by default), block by block: an array (m,) a column."""
        columns = [self.names.index(name) for name in names or self.names]
        for place in self._places:
            yield [self._spill.read(place + 4 * BLOCK * column, BLOCK) for column in columns]
        if self._rows:
            yield [self._open[column, : self._rows] for column in columns]
