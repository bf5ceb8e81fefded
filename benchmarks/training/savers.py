"""Ways to save the state of a run while it trains: our writer, torch.save in the loop, torch's async save.

All write the same tensors to a file or folder of their own and flush them to the disk. Only ours computes a
checksum that is compared on loading, and writes the weights as safetensors too.
"""

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import staging
from torch.distributed.checkpoint.state_dict_saver import async_save

from hpcphotoz.training.run.checkpoint import State
from hpcphotoz.training.saving.writer import CheckpointWriter


class Ours:
    """`CheckpointWriter`, as a run uses it."""

    def __init__(self, folder: Path, state: Callable[[], State]) -> None:
        self._state, self._step = state, 0
        self._writer = CheckpointWriter(folder, keep=2, keep_hours=0)

    def save(self) -> None:
        """Start a save; returns when training may go on."""
        self._step += 1
        self._writer.save(lambda: {**self._state(), "step": self._step}, self._step)

    def wait(self) -> float:
        """Wait until it is on the disk; seconds since the call of `save`.

        Raises:
            RuntimeError: it could not be saved.
        """
        self._writer.wait()
        if self._writer.problem:
            raise RuntimeError(self._writer.problem)
        return self._writer.figures()[-1].total_s


class InTheLoop:
    """torch.save to a temporary file, flushed and renamed, while training waits."""

    def __init__(self, folder: Path, state: Callable[[], State]) -> None:
        self._folder, self._state, self._step = folder, state, 0

    def save(self) -> None:
        """Save."""
        self._step += 1
        temporary = self._folder / "checkpoint.tmp"
        with temporary.open("wb") as file:
            torch.save(self._state(), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._folder / f"checkpoint-{self._step % 2}.pt")

    def wait(self) -> float:
        """0: `save` has waited."""
        return 0.0


class TorchAsync:
    """torch.distributed.checkpoint.async_save; with `reuse`, its copy in memory is kept from save to save."""

    def __init__(self, folder: Path, state: Callable[[], State], reuse: bool) -> None:
        self._folder, self._state, self._step = folder, state, 0
        options = staging.StagingOptions(False, False, False, False)  # as async_save makes them itself
        self._stager = staging.DefaultStager(options) if reuse else None
        self._writing: Future[Any] = Future()
        self._asked = self._saved = 0.0

    def save(self) -> None:
        """Start a save; returns when training may go on."""
        self._step, self._asked = self._step + 1, time.perf_counter()
        found = async_save(
            self._state(),
            checkpoint_id=self._folder / f"checkpoint-{self._step}",
            async_stager=self._stager,
            no_dist=True,
        )
        self._writing = found if isinstance(found, Future) else found.upload_completion
        self._writing.add_done_callback(self._note)

    def wait(self) -> float:
        """Wait until it is on the disk; seconds since the call of `save`."""
        self._writing.result()
        while not self._saved > self._asked:  # callbacks run just after those who wait are woken
            time.sleep(1e-4)
        shutil.rmtree(self._folder / f"checkpoint-{self._step - 1}", ignore_errors=True)
        return self._saved - self._asked

    def _note(self, _: object) -> None:
        self._saved = time.perf_counter()


Saver = Ours | InTheLoop | TorchAsync


def savers(folder: Path, state: Callable[[], State]) -> dict[str, Saver]:
    """All of them by name, each with a folder of its own."""
    ours, in_loop, fresh, reused = folders = [folder / name for name in ("ours", "loop", "fresh", "reused")]
    for path in folders:
        path.mkdir(parents=True)
    return {
        "ours": Ours(ours, state),
        "torch.save": InTheLoop(in_loop, state),
        "torch async": TorchAsync(fresh, state, reuse=False),
        "torch async, reused": TorchAsync(reused, state, reuse=True),
    }


@dataclass(frozen=True)
class TimedSteps:
    """Seconds of some steps, of which the first is followed by a save, and of that save."""

    seconds: float  # of the steps, the call of `save` included
    blocked_s: float = 0.0  # in `save`
    total_s: float = 0.0  # from the call of `save` until the files are on the disk


def timed(step: Callable[[], object], saver: Saver | None, steps: int) -> TimedSteps:
    """Take steps, and save after the first.

    Args:
        step: one training step.
        saver: None: no save.
        steps: number of steps; they should take longer than the save.
    """
    start, blocked = time.perf_counter(), 0.0
    for number in range(steps):
        step()
        if number == 0 and saver is not None:
            asked = time.perf_counter()
            saver.save()
            blocked = time.perf_counter() - asked
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return TimedSteps(seconds) if saver is None else TimedSteps(seconds, blocked, saver.wait() or blocked)
