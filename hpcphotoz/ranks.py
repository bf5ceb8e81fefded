"""The ranks that divide the work of one command: they agree on values, gather results and fail together."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from hpcphotoz.errors import BadInput

T = TypeVar("T")
R = TypeVar("R")


class RankLost(Exception):
    """Another rank died or does not answer."""


class Communicator(Protocol):
    """Connects ranks: by MPI (`sources.mpi`) or gloo (`training.distributed.communicator`)."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def broadcast(self, value: Any) -> Any: ...  # that of rank 0, on every rank
    def allgather(self, value: Any) -> list[Any]: ...  # those of all ranks, on every rank
    def ask_to_stop(self) -> None: ...  # asks the other ranks to begin nothing more
    def stop_asked(self) -> bool: ...  # whether another rank has asked; waits for nothing
    def end_stop(self, asked: Sequence[int]) -> None: ...  # all ranks know that these have asked


class Ranks:
    """The ranks of this program, or one rank where nothing connects several.

    Every exchange first tells all ranks whether one has failed; if so, all end there, whatever they were to
    exchange. All ranks must call the methods that exchange in the same order.
    """

    def __init__(self, communicator: Communicator | None = None) -> None:
        self._communicator = communicator
        self._failed = False  # all ranks know that one has failed: nothing is exchanged any more

    @property
    def rank(self) -> int:
        """Number of this rank, from 0."""
        return self._communicator.rank if self._communicator else 0

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._communicator.size if self._communicator else 1

    @property
    def connected(self) -> bool:
        """Whether a launcher's communicator connects the ranks, even if it is one rank."""
        return self._communicator is not None

    def on_first_rank(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and return its result on every rank.

        Raises:
            BadInput: on rank 0, if `work` raises it; the other ranks then end silently with status 2.
        """
        if self._communicator is None:
            return work()
        value: Any = None
        with self.failing_together():
            value = work() if self.rank == 0 else None
        return self._communicator.broadcast(value)  # type: ignore[no-any-return]

    def allgather(self, value: T) -> list[T]:
        """Return the values of all ranks, in order of rank, on every rank."""
        if self._communicator is None:
            return [value]
        self._agree(None)
        return self._communicator.allgather(value)

    def refusal(self, reason: str) -> BaseException:
        """Return the exception for an error that all ranks have found: all but rank 0 end silently."""
        self._failed = True
        return BadInput(reason) if self.rank == 0 else SystemExit(2)

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Context after which all ranks end if one has failed in it, in a loop of `until_stopped` at once.

        Raises:
            BadInput: on rank 0, with the message of the first rank that failed; the others end silently. An
                error that the user cannot mend is raised on that rank instead.
        """
        error: Exception | None = None
        try:
            yield
        except RankLost:  # nothing can be told any more
            self._failed = True
            raise
        except Exception as found:  # told to the other ranks, then raised here or on rank 0
            if self._communicator is None or self._failed:
                raise
            error = found
        self._agree(error)

    def until_stopped(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items; end this rank, as `failing_together`, once another rank has failed."""
        for item in items:
            if self._communicator is not None and self._communicator.stop_asked():
                self._agree(None)
            yield item

    def map_tasks(
        self, work: Callable[[T], R], tasks: Sequence[T], tracked: Callable[[Iterator[R], int], Iterator[R]]
    ) -> list[R]:
        """Run `work` on all tasks and return the results in order, on every rank.

        Task k runs on rank k modulo the number of ranks. If a rank fails, the others finish the task at hand
        and begin no other. On rank 0, `tracked` wraps an iterator of this many results and shows progress.

        Raises:
            BadInput: as `failing_together`.
        """
        done: list[R] = []
        mine = tasks[self.rank :: self.size]
        with self.failing_together():
            results = map(work, self.until_stopped(mine))
            done += results if self.rank else tracked(results, len(mine))
        gathered = self.allgather(done)
        return [gathered[k % self.size][k // self.size] for k in range(len(tasks))]

    def _agree(self, error: Exception | None) -> None:
        """Tell all ranks whether this one has failed, and end if any has."""
        if self._communicator is None:
            return
        if error is not None:
            self._communicator.ask_to_stop()
        reports = self._communicator.allgather((_status(error), _reason(error)))
        failed = [rank for rank, (status, _) in enumerate(reports) if status]
        self._communicator.end_stop(failed)
        if not failed:
            return
        self._failed = True
        status, reason = reports[failed[0]]
        if status == 2 and self.rank == 0:
            raise BadInput(reason) from None
        if status == 1 and self.rank == failed[0] and error is not None:
            raise error
        raise SystemExit(status)


ALONE = Ranks()
connected: list[Ranks] = []  # those that the command line has connected, as long as its command runs


@contextmanager
def connecting(ranks: Ranks) -> Iterator[Ranks]:
    """Context in which these are the ranks of this program."""
    connected.append(ranks)
    try:
        yield ranks
    finally:
        connected.remove(ranks)


def _status(error: Exception | None) -> int:
    """The exit status: 0 for no error, 2 for one that the user can mend, 1 for any other."""
    return 0 if error is None else 2 if isinstance(error, BadInput | OSError) else 1


def _reason(error: Exception | None) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'output'}: {error.strerror}"
    return str(error or "")
