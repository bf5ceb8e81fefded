"""Connects the ranks of an MPI launcher with mpi4py."""

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from hpcphotoz import world
from hpcphotoz.errors import BadInput
from hpcphotoz.ranks import Ranks, connected

T = TypeVar("T")

_STOP = 1  # tag of the message "I failed: begin nothing more"


class MPICommunicator:
    """Ranks that an mpi4py communicator connects; see `ranks.Communicator`."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.rank, self.size = int(comm.Get_rank()), int(comm.Get_size())
        self._requests: list[Any] = []

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0."""
        return self._comm.bcast(value)

    def allgather(self, value: Any) -> list[Any]:
        """Return the values of all ranks."""
        return list(self._comm.allgather(value))

    def ask_to_stop(self) -> None:
        """Send every other rank a message."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        self._requests = [self._comm.isend(None, rank, _STOP) for rank in others]

    def stop_asked(self) -> bool:
        """Whether such a message has come."""
        return bool(self._comm.iprobe(tag=_STOP))

    def end_stop(self, asked: Sequence[int]) -> None:
        """Receive the messages of the ranks that have asked."""
        for rank in asked:
            if rank != self.rank:
                self._comm.recv(source=rank, tag=_STOP)
        for request in self._requests:
            request.wait()
        self._requests = []


def mpi_ranks() -> Ranks:
    """Return the ranks that the command line has connected, or else those of this process's MPI launcher.

    Raises:
        BadInput: nothing connects the ranks, mpi4py is absent, or it does not see the launcher's ranks.
    """
    if connected:
        return connected[-1]
    place = world.detect()
    if place.launcher not in world.MPI:
        if place.size > 1:
            raise BadInput(
                f"{place.launcher} started {place.size} processes that nothing connects: each would write "
                "the whole dataset; start `hpcphotoz` itself, or use `mpiexec -n N` or `srun --mpi=pmi2`"
            )
        return Ranks()
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise BadInput(f"{error}: several ranks need `pip install 'hpcphotoz[mpi]'` and an MPI") from None
    comm = MPI.COMM_WORLD
    if comm.Get_size() != place.size:
        raise BadInput(
            f"{place.launcher} started {place.size} ranks, mpi4py sees {comm.Get_size()}: use the mpiexec of "
            "the MPI that mpi4py was built for"
        )
    return Ranks(MPICommunicator(comm))


def gather_once(value: T) -> list[T]:
    """Returns the values of all ranks, on every rank, and leaves MPI unless the program has it in use.

    While MPI is in use, mpiexec takes a rank that ends for a failure, and kills the others.

    Raises:
        BadInput: as `mpi_ranks`.
    """
    in_use = bool(connected) or "mpi4py.MPI" in sys.modules
    values: list[T] = mpi_ranks().allgather(value)
    if not in_use:
        sys.modules["mpi4py.MPI"].Finalize()
    return values


def refuse_ranks(reason: str) -> None:
    """Raises BadInput if a launcher started several processes; of MPI ranks only the first raises it."""
    if world.detect().size > 1:
        try:
            ranks = mpi_ranks()
        except BadInput:
            raise BadInput(reason) from None
        raise ranks.refusal(reason)
