"""MPI ranks of a RAIL stage, over ceci's communicator: one writes for all, and if one fails, all end."""

import fcntl
import os
import socket
import sys
import termios
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import h5py
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.world import detect

Tables = Mapping[str, Mapping[str, npt.NDArray[Any]]]  # group -> array -> values of the rows of one chunk
_CHUNK = 1  # tag of the messages
_READ_S = 5.0  # longest wait for a launcher to read what a rank wrote


def gathers(comm: Any) -> bool:
    """Whether rank 0 must write for the ranks of a communicator: several, and an h5py without MPI."""
    return comm is not None and comm.Get_size() > 1 and not h5py.get_config().mpi


class GatheredFile:
    """An HDF5 file that rank 0 writes for all ranks, each of which calls `write` for its own chunks.

    Rank 0 writes what has arrived whenever it writes a chunk of its own. Another rank keeps one chunk that is
    on its way, and waits for it before it sends the next: memory stays within two chunks a rank.

    Args:
        comm: communicator in the form of mpi4py.
        file: open for writing on rank 0, with the arrays already made; None on the other ranks.
    """

    def __init__(self, comm: Any, file: h5py.File | None) -> None:
        self._comm, self._file = comm, file
        self._sending: Any = None  # the request of the chunk that is on its way
        self._unfinished = comm.Get_size() - 1

    def write(self, start: int, end: int, tables: Tables) -> None:
        """Write, or send to rank 0, the rows from `start` to `end` of every array."""
        if self._file is None:
            self._send((start, end, tables))
            return
        self._store(start, end, tables)
        while self._unfinished and self._comm.iprobe(tag=_CHUNK):
            self._receive()

    def finish(self) -> h5py.File | None:
        """Wait until the chunks of all ranks are written; returns the file on rank 0."""
        if self._file is None:
            self._send(None)
            self._sending.wait()
        while self._file is not None and self._unfinished:
            self._receive()
        return self._file

    def _send(self, message: Any) -> None:
        if self._sending is not None:
            self._sending.wait()
        self._sending = self._comm.isend(message, 0, _CHUNK)

    def _receive(self) -> None:
        message = self._comm.recv(tag=_CHUNK)
        if message is None:
            self._unfinished -= 1
        else:
            self._store(*message)

    def _store(self, start: int, end: int, tables: Tables) -> None:
        assert self._file is not None
        for group, arrays in tables.items():
            for name, values in arrays.items():
                self._file[group][name][start:end] = values


def chunk_for_all_ranks(chunk_size: int, rows: int, comm: Any) -> int:
    """The chunk size with which every rank has a chunk: the one given, or a smaller one.

    Raises:
        BadInput: fewer rows than ranks.
    """
    ranks = 1 if comm is None else comm.Get_size()
    if ranks == 1:
        return chunk_size
    if rows < ranks:
        raise BadInput(f"{rows} objects for {ranks} ranks: start the stage with fewer (nprocess)")
    return min(chunk_size, rows // ranks)


def meet(comm: Any) -> None:
    """Tell the trainer of every rank where to meet: MASTER_ADDR and MASTER_PORT, chosen by rank 0.

    What the user has set stays.

    Raises:
        BadInput: the launcher started another number of processes: the trainer would wait for others.
    """
    if comm is None or comm.Get_size() == 1:
        return
    if (started := detect().size) != comm.Get_size():
        raise BadInput(
            f"ceci's communicator has {comm.Get_size()} ranks, the launcher started {started}: "
            "start the stage with the mpirun of the MPI that mpi4py was built for"
        )
    found: dict[str, str] | None = None
    if comm.Get_rank() == 0:
        chosen = {"MASTER_ADDR": socket.gethostname(), "MASTER_PORT": str(_free_port())}
        found = {name: os.environ.get(name, value) for name, value in chosen.items()}
    os.environ.update(comm.bcast(found))


@contextmanager
def ending_together(comm: Any) -> Iterator[None]:
    """Context that ends all ranks if this one fails: the others would wait for its chunks for ever."""
    try:
        yield
    except Exception:
        if comm is None or comm.Get_size() == 1:
            raise
        # In one piece: the launcher merges what its ranks write, and kills them at once.
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        wait_until_read(sys.stderr)  # at an abort mpiexec drops what it has not read
        comm.Abort(1)
        raise


def wait_until_read(stream: TextIO, timeout_s: float = _READ_S) -> None:
    """Wait until the process at the other end of a pipe has read all that was written, or for `timeout_s`."""
    end = time.monotonic() + timeout_s
    with suppress(OSError):  # neither a pipe nor a terminal: nobody reads
        while time.monotonic() < end and any(fcntl.ioctl(stream, termios.FIONREAD, bytes(4))):
            time.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
