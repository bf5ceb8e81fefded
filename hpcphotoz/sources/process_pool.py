"""Runs tasks on spawned processes of this machine."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from hpcphotoz.errors import BadInput

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 3  # tasks for each process that are sent before the reader takes a result; then the processes wait
_work: Callable[[Any], Any]  # in a worker process


def run_on_processes(work: Callable[[T], R], tasks: Sequence[T], processes: int) -> Iterator[tuple[int, R]]:
    """Yields (k, result of task k) as tasks finish in spawned processes.

    With one process or one task, everything is done here, in order.

    Otherwise `work`, which must pickle, is sent to each process once. Tasks must pickle too; few are sent
    ahead, so that the processes go on while the reader writes.

    Raises:
        BadInput: a process died, or what `work` raises.
        RuntimeError: another error in a process, with its traceback.
    """
    processes = min(processes, len(tasks))
    if processes <= 1:
        for k, task in enumerate(tasks):
            yield k, work(task)
        return
    # spawn, never fork: the caller may hold threads (torch, HDF5), and a forked child may then hang.
    context = multiprocessing.get_context("spawn")
    theirs, mine = context.Pipe(duplex=False)
    left = iter(enumerate(tasks))
    running: dict[Future[R], int] = {}
    with theirs, mine, ProcessPoolExecutor(processes, context, _start_worker, (work, theirs)) as pool:
        try:
            while True:
                for k, task in islice(left, _AHEAD * processes - len(running)):
                    running[pool.submit(_run_task, task)] = k
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool:
            raise BadInput(
                "a worker process died (out of memory?): run again with fewer `processes`"
            ) from None
        except BaseException:
            mine.close()
            raise


def in_order(results: Iterator[tuple[int, R]]) -> Iterator[R]:
    """Yields the results of tasks 0, 1, 2, ... in this order, and holds early ones until their turn."""
    early: dict[int, R] = {}
    turn = 0
    for k, result in results:
        early[k] = result
        while turn in early:
            yield early.pop(turn)
            turn += 1


def _start_worker(work: Callable[[Any], Any], parent: Connection) -> None:
    global _work
    _work = work
    # Ctrl-C reaches the whole process group: the parent ends the workers, which need not print tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: Connection) -> None:
    """Ends this process when its parent ends or needs no more: it must not write beside a new run."""
    parent.poll(None)
    os._exit(1)


def _run_task(task: Any) -> Any:
    try:
        return _work(task)
    except BadInput:
        raise
    except Exception:
        raise RuntimeError(f"in a worker process:\n{traceback.format_exc()}") from None
