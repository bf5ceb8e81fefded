"""Tasks in an order, each done once: what it found is kept in a file, with the settings that it is of."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import COMMIT, machine, versions
from hpcphotoz.atomic import write_text

Found = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A step of the program.

    Attributes:
        name: unique; of its file.
        settings: all that its result depends on, beside what it needs.
        work: does it, and returns what it found; raises RuntimeError where it fails.
        needs: tasks that come before it.
    """

    name: str
    settings: Mapping[str, Any]
    work: Callable[[], Found]
    needs: Sequence["Task"] = field(default=())

    @property
    def key(self) -> str:
        """SHA-256 of the settings of this task and of all that it needs."""
        tree = {"settings": self.settings, "needs": [one.key for one in self.needs]}
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()

    def found(self, folder: Path) -> Found | None:
        """What it found, if it has been done with the same settings; None otherwise."""
        path = self._path(folder)
        tree: Found = json.loads(path.read_text()) if path.exists() else {}
        found: Found | None = tree["found"] if tree.get("key") == self.key else None
        return found

    def do(self, folder: Path) -> None:
        """Do it, and keep what it found."""
        start = time.perf_counter()
        found = self.work()
        tree = {
            **{"key": self.key, "settings": self.settings, "seconds": time.perf_counter() - start},
            **{"date": time.strftime("%Y-%m-%d"), "commit": COMMIT, "device": machine()["device"]},
            **{"versions": versions(), "found": found},
        }
        write_text(self._path(folder), json.dumps(tree, indent=1) + "\n")

    def record(self, folder: Path) -> Found:
        """All that its file holds, of a task that has been done."""
        tree: Found = json.loads(self._path(folder).read_text())
        return tree

    def _path(self, folder: Path) -> Path:
        return folder / f"{self.name}.json"


class Outcome:
    """Which tasks failed, and for which there was no time."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.left_out: list[str] = []


def do_all(tasks: Sequence[Task], folder: Path, processes: int, minutes: float | None = None) -> Outcome:
    """Do all tasks that have not been done, some at a time, each as soon as what it needs is there.

    Args:
        tasks: in the order in which they are started.
        folder: for their files.
        processes: how many are done at a time.
        minutes: start nothing later than this; None: no limit.
    """
    end = time.monotonic() + (float("inf") if minutes is None else 60 * minutes)
    folder.mkdir(parents=True, exist_ok=True)
    outcome, done = Outcome(), {one.name for one in tasks if one.found(folder) is not None}
    waiting = [one for one in tasks if one.name not in done]
    number, running = len(tasks), dict[Future[None], Task]()
    with ThreadPoolExecutor(processes) as pool:
        while waiting or running:
            for one in list(waiting):
                lost = [need.name for need in one.needs if need.name in outcome.failed]
                if lost:
                    outcome.failed[one.name] = f"needs {lost[0]}"
                    waiting.remove(one)
                elif time.monotonic() > end:
                    outcome.left_out.append(one.name)
                    waiting.remove(one)
                elif len(running) < processes and all(need.name in done for need in one.needs):
                    print(f"{one.name}: begins; {len(done)} of {number} done", flush=True)
                    running[pool.submit(one.do, folder)] = one
                    waiting.remove(one)
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                one = running.pop(future)
                try:
                    future.result()
                    done.add(one.name)
                except RuntimeError as error:  # of a command that failed; anything else is ours
                    outcome.failed[one.name] = " ".join(str(error).split())
                    print(f"{one.name} fails: {outcome.failed[one.name]}", flush=True)
    return outcome
