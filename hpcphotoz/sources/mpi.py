"""Runs tasks on the ranks of an MPI launcher."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hpcphotoz import world
from hpcphotoz.errors import BadInput

T = TypeVar("T")
R = TypeVar("R")

_STOP = 1  # tag of the message "I failed: begin nothing more"


@dataclass(frozen=True)
class MPIRanks:
    """The ranks of an MPI launcher, or one rank where there is no launcher."""

    rank: int = 0
    size: int = 1
    comm: Any = None  # mpi4py communicator; None: no MPI

    def on_first_rank(self, work: Callable[[], T]) -> T:
        """Runs `work` on rank 0 and returns its result on every rank.

        Raises:
            BadInput: on rank 0, if `work` raises it; the other ranks then end silently with status 2.
        """
        if self.comm is None:
            return work()
        value: Any = None
        error: Exception | None = None
        if self.rank == 0:
            try:
                value = work()
            except Exception as found:  # sent to the other ranks, then raised here
                error = found
        value, status = self.comm.bcast((value, _status(error)))
        if error is not None:
            raise error
        if status:
            raise SystemExit(status)
        return value  # type: ignore[no-any-return]

    def allgather(self, value: T) -> list[T]:
        """Returns the values of all ranks, on every rank."""
        return [value] if self.comm is None else list(self.comm.allgather(value))

    def refusal(self, reason: str) -> BaseException:
        """Returns the exception for an error that all ranks have found: all but rank 0 exit silently."""
        return BadInput(reason) if self.rank == 0 else SystemExit(2)

    def map_tasks(
        self, work: Callable[[T], R], tasks: Sequence[T], tracked: Callable[[Iterator[R], int], Iterator[R]]
    ) -> list[R]:
        """Runs `work` on all tasks and returns the results in order, on every rank.

        Task k runs on rank k modulo the number of ranks. A rank that fails sends a message to the others,
        which finish the task at hand and begin no other. On rank 0, `tracked` wraps an iterator of this many
        results and shows progress.

        Raises:
            BadInput: on rank 0, with the message of the first rank that failed; others end silently.
        """
        done: list[R] = []
        error: Exception | None = None
        mine = tasks[self.rank :: self.size]
        try:
            results = self._until_stopped(work, mine)
            done += results if self.rank else tracked(results, len(mine))
        except Exception as found:
            error = found
        others = [rank for rank in range(self.size) if rank != self.rank]
        requests = [self.comm.isend(None, rank, _STOP) for rank in others] if error else []
        reports = self.comm.allgather((done, _status(error), str(error)))
        failed = [rank for rank, (_, status, _) in enumerate(reports) if status]
        for rank in failed:
            if rank != self.rank:
                self.comm.recv(source=rank, tag=_STOP)
        for request in requests:
            request.wait()
        if failed:
            _, status, reason = reports[failed[0]]
            if status == 2 and self.rank == 0:
                raise BadInput(reason)
            if status == 1 and self.rank == failed[0] and error is not None:
                raise error
            raise SystemExit(status)
        return [reports[k % self.size][0][k // self.size] for k in range(len(tasks))]

    def _until_stopped(self, work: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        for task in tasks:
            if self.comm.iprobe(tag=_STOP):
                return
            yield work(task)


def _status(error: Exception | None) -> int:
    """Returns the exit status: 0 for no error, 2 for one that the user can mend, 1 for any other."""
    return 0 if error is None else 2 if isinstance(error, BadInput) else 1


def mpi_ranks() -> MPIRanks:
    """Returns the ranks of this process's launcher.

    Raises:
        BadInput: no MPI connects the ranks, mpi4py is absent, or it does not see the launcher's ranks.
    """
    place = world.detect()
    if place.launcher not in world.MPI:
        if place.size > 1:
            raise BadInput(
                f"{place.launcher} started {place.size} processes without MPI: each would write the whole "
                "dataset; start them with `mpiexec -n N` or `srun --mpi=pmi2`"
            )
        return MPIRanks()
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
    return MPIRanks(comm.Get_rank(), comm.Get_size(), comm)


def gather_once(value: T) -> list[T]:
    """Returns the values of all ranks, on every rank, and leaves MPI unless the program has it in use.

    While MPI is in use, mpiexec takes a rank that ends for a failure, and kills the others.

    Raises:
        BadInput: as `mpi_ranks`.
    """
    in_use = "mpi4py.MPI" in sys.modules
    values = mpi_ranks().allgather(value)
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
