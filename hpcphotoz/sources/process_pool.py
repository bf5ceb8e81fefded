"""Runs tasks on spawned processes of this machine."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from hpcphotoz.errors import BadInput

T = TypeVar("T")
R = TypeVar("R")


def usable_cores() -> int:
    """Cores that this process may use."""
    # A batch system gives a job a part of the node; only Linux tells which.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_on_processes(work: Callable[[T], R], tasks: Sequence[T], processes: int) -> Iterator[tuple[int, R]]:
    """Yield (k, `work` of task k) as they are done, by so many spawned processes; 1: by this one, in order.

    Args:
        work: must pickle; sent to each process once.
        tasks: must pickle; a process is sent its next when it has done one.
        processes: at most one a task is started.

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
    try:
        for _ in range(min(processes, len(tasks))):
            mine, theirs = context.Pipe()
            process = context.Process(target=_run_worker, args=(theirs, work), daemon=True)
            process.start()
            theirs.close()
            workers[mine] = process
            mine.send(next(left))
        busy = list(workers)
        while busy:
            for ready in wait(busy):
                assert isinstance(ready, Connection)
                k, result = _receive(ready)
                task_left = next(left, None)
                if task_left is None:
                    busy.remove(ready)
                else:
                    ready.send(task_left)
                yield k, result
    finally:
        for connection, process in workers.items():
            process.terminate()
            process.join()
            connection.close()


def _receive(connection: Connection) -> tuple[int, Any]:
    try:
        k, result, problem, trace = connection.recv()
    except (EOFError, ConnectionResetError):
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
    """Leave when the parent is gone: a worker amid a task would otherwise go on writing beside a new run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
