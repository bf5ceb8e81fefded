"""Runs tasks on spawned processes of this machine."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any, TypeVar

from hpcphotoz.errors import BadInput

T = TypeVar("T")
R = TypeVar("R")

_WAITING = 2  # finished results for each process that may wait for the reader; then the processes wait


def usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    # A batch system gives a job a part of the node; only Linux tells which.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_on_processes(work: Callable[[T], R], tasks: Sequence[T], processes: int) -> Iterator[tuple[int, R]]:
    """Yields (k, result of task k) as tasks finish in spawned processes.

    With one process or one task, everything is done here, in order. Otherwise a thread receives the results,
    so that the processes go on while the reader writes what it has.

    Args:
        work: must pickle; sent to each process once.
        tasks: must pickle; a process is sent its next task when it has finished one.
        processes: at most one is started for each task.

    Raises:
        BadInput: a process died, or what `work` raises.
        RuntimeError: another error in a process, with its traceback.
    """
    if min(processes, len(tasks)) <= 1:
        for k, task in enumerate(tasks):
            yield k, work(task)
        return
    # spawn, never fork: the caller may hold threads (torch, HDF5), and a forked child may then hang.
    context = multiprocessing.get_context("spawn")
    left = iter(enumerate(tasks))
    workers: dict[Any, Any] = {}  # connection -> process
    results: SimpleQueue[tuple[int, R] | Exception] = SimpleQueue()
    room = threading.Semaphore(_WAITING * processes)
    receiver = threading.Thread(target=_receive_all, args=(workers, left, results, room), daemon=True)
    try:
        for _ in range(min(processes, len(tasks))):
            mine, theirs = context.Pipe()
            process = context.Process(target=_run_worker, args=(theirs, work), daemon=True)
            process.start()
            theirs.close()
            workers[mine] = process
            mine.send(next(left))
        receiver.start()
        for _ in tasks:
            result = results.get()
            if isinstance(result, Exception):
                raise result
            room.release()
            yield result
    finally:
        for process in workers.values():
            process.terminate()
            process.join()
        if receiver.is_alive():
            room.release(len(tasks))  # it then finds that the processes have ended
            receiver.join()
        for connection in workers:
            connection.close()


def in_order(results: Iterator[tuple[int, R]]) -> Iterator[R]:
    """Yields the results of tasks 0, 1, 2, ... in this order, and holds early ones until their turn."""
    early: dict[int, R] = {}
    turn = 0
    for k, result in results:
        early[k] = result
        while turn in early:
            yield early.pop(turn)
            turn += 1


def _receive_all(
    workers: dict[Any, Any],
    left: Iterator[tuple[int, Any]],
    results: "SimpleQueue[Any]",
    room: threading.Semaphore,
) -> None:
    """Receives all results, sends each worker its next task, and puts an error in place of a result."""
    busy = list(workers)
    try:
        while busy:
            for ready in wait(busy):
                assert isinstance(ready, Connection)
                room.acquire()
                result = _receive(ready)
                task = next(left, None)
                if task is None:
                    busy.remove(ready)
                else:
                    ready.send(task)
                results.put(result)
    except Exception as error:  # the reader raises it
        results.put(error)


def _receive(connection: Connection) -> tuple[int, Any]:
    try:
        k, result, problem, trace = connection.recv()
    except (EOFError, OSError):
        raise BadInput("a worker process died (out of memory?): run again with fewer `processes`") from None
    if trace is not None:
        raise RuntimeError(f"in a worker process:\n{trace}")
    if problem is not None:
        raise BadInput(problem)
    return k, result


def _run_worker(connection: Connection, work: Callable[[Any], Any]) -> None:
    # Ctrl-C reaches the whole process group: the parent ends the workers, which need not print tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            k, task = connection.recv()
        except EOFError:
            return
        answer: tuple[int, Any, str | None, str | None]
        try:
            answer = (k, work(task), None, None)
        except BadInput as error:
            answer = (k, None, str(error), None)
        except Exception:
            answer = (k, None, None, traceback.format_exc())
        connection.send(answer)


def _end_with_parent() -> None:
    """Ends this process with its parent; otherwise it would go on writing beside a new run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
