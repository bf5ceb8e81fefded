"""Holds of saves and validations: a fault strikes within them, however late the driver is."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.faults import hold as holds
from benchmarks.faults import strike as striking
from benchmarks.faults.hold import Hold
from benchmarks.faults.job import Job
from benchmarks.faults.plan import HANG, KILL, NODE, PAUSE, SAVE, VALIDATION, Fault, Layout
from benchmarks.faults.recorded_rank import Record, watch
from hpcphotoz import atomic
from hpcphotoz.training import components, loop
from hpcphotoz.training.distributed import group
from hpcphotoz.training.run import checkpoint, recorder

SAVES = 12  # more than the driver waits for
LATE_S = 0.3  # in which a rank that is not held makes them all
WRAPPED = [
    *[(checkpoint, "resumed"), (recorder.RunRecorder, "save"), (components.TrainingComponents, "build_step")],
    *[(group, "process_group"), (loop.TrainingLoop, "run"), (loop, "validate")],
    *[(checkpoint, "write_file"), (atomic, "flush_file")],
]


class LateJob(Job):
    """A start whose rank 0 is a thread of this process, and whose driver always looks too late.

    Args:
        folder: of its records.
        world_size: number of ranks; the others do nothing.
        moment: what rank 0 does, again and again; called with the number.
    """

    def __init__(self, folder: Path, world_size: int, moment: Callable[[int], object]) -> None:
        super().__init__(folder, 0, world_size, [])
        self.rank_0 = Record(self.record.ranks[0].path)
        self.rank_0.write(step=3, epoch=0, objects=[], attacked=[])
        self.sent: list[tuple[int, signal.Signals, bool]] = []  # rank, signal, whether rank 0 was in a save
        self.temporary: list[list[str]] = []  # files of checkpoints at each signal
        self.ends_by_itself = False
        self._waits, self._moment = 0, moment
        self._thread = threading.Thread(target=self._train, daemon=True)

    def _train(self) -> None:
        for number in range(1, SAVES + 1):
            self._moment(number)
            self.rank_0.write(step=3 + number, epoch=0, objects=[], attacked=[])

    def late(self, _: float = 0) -> None:
        """Let rank 0 run on until it is held or has done all."""
        self._thread.join(LATE_S)

    @property
    def alive(self) -> list[int]:
        """All, until a signal ends them."""
        ended = self.ends_by_itself or any(number == signal.SIGKILL for _, number, _ in self.sent)
        return [] if ended else list(range(self.world_size))

    @property
    def statuses(self) -> list[int | None]:
        """Of no interest here."""
        return [0] * self.world_size

    def said(self, rank: int) -> str:
        """What the others say of every rank."""
        return "rank 0 and rank 1 have ended"

    def send(self, rank: int, number: signal.Signals) -> bool:
        """Note the signal, and what rank 0 is doing."""
        self.record.update()
        first = self.record.ranks[0]
        inside = first.saving or first.inside("validation", "validated")
        self.sent.append((rank, number, inside))
        self.temporary.append(sorted(path.name for path in self._folder.glob("checkpoints/*")))
        return True

    def wait(self, condition: Callable[[], bool], timeout_s: float, *, while_alive: bool = True) -> bool:
        """As of the job, but late; the first wait is for the step of the fault, the second for its moment."""
        self._waits += 1
        if self._waits == 2:
            self._thread.start()
        if self._waits >= 2:
            self.late()
        limit = 20.0 if self._waits <= 2 else 1.0  # after the fault nothing here goes on
        return super().wait(condition, min(timeout_s, limit), while_alive=while_alive)

    def finish(self) -> None:
        """Wait for the end of rank 0."""
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def unwrapped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `watch` wraps is itself again after the test."""
    for place, name in WRAPPED:
        monkeypatch.setattr(place, name, getattr(place, name))
    yield


def saves(folder: Path) -> Callable[[int], object]:
    """Saves checkpoints of steps 1, 2, ... as the program does."""
    return lambda step: checkpoint.save(folder, {"step": step, "model": {}}, keep=2)


def struck(
    job: LateJob, fault: Fault, monkeypatch: pytest.MonkeyPatch, sleep: Callable[[float], None]
) -> striking.Struck | None:
    monkeypatch.setattr(striking, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    watch(job.rank_0)
    return striking.strike(job, fault, 1.0, None)


@pytest.mark.usefixtures("unwrapped")
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("kind", "which", "signals"),
    [
        (KILL, 0.0, [(0, signal.SIGKILL)]),
        (KILL, 0.9, [(1, signal.SIGKILL)]),
        (NODE, 0.9, [(0, signal.SIGKILL), (1, signal.SIGKILL)]),
        (PAUSE, 0.0, [(0, signal.SIGSTOP), (0, signal.SIGCONT)]),
    ],
)
def test_a_fault_at_save_strikes_before_the_checkpoint_is_valid_although_the_driver_is_late(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    which: float,
    signals: list[tuple[int, signal.Signals]],
) -> None:
    job = LateJob(tmp_path, 2, saves(tmp_path))
    assert struck(job, Fault(kind, SAVE, 3, which, 0.5, Layout(2, "off")), monkeypatch, job.late)
    assert [(rank, number) for rank, number, _ in job.sent] == signals
    assert job.sent[0][2], "rank 0 was not in a save"
    # The content is there under its temporary name, the checkpoint is not.
    assert len(job.temporary[0]) == 1 and job.temporary[0][0].endswith(".tmp")
    job.finish()  # it was let go
    assert checkpoint.latest(tmp_path) == checkpoint.path_of(tmp_path, "checkpoints", SAVES)
    assert not list(tmp_path.glob("*-begin")) and not list(tmp_path.glob("*-end"))


@pytest.mark.usefixtures("unwrapped")
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("kind", "which"), [(KILL, 0.9), (HANG, 0.0)])
def test_a_fault_at_validation_strikes_within_it_although_the_driver_is_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, which: float
) -> None:
    monkeypatch.setattr(loop, "validate", lambda: None)
    job = LateJob(tmp_path, 2, lambda _: vars(loop)["validate"]())  # the wrapped one, at the time of the call
    if kind == HANG:
        monkeypatch.setattr(LateJob, "ended", lambda *_: [])
    assert struck(job, Fault(kind, VALIDATION, 3, which, 0.5, Layout(2, "off")), monkeypatch, job.late)
    assert job.sent[0][2]
    job.finish()
    assert not list(tmp_path.glob("*-begin")) and not list(tmp_path.glob("*-end"))


@pytest.mark.usefixtures("unwrapped")
@pytest.mark.timeout(120)
def test_a_rank_that_ends_while_another_is_held_lets_it_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = LateJob(tmp_path, 2, saves(tmp_path))

    def ends(_: float) -> None:
        job.late()
        job.ends_by_itself = True

    assert struck(job, Fault(KILL, SAVE, 3, 0.0, 0.5, Layout(2, "off")), monkeypatch, ends) is None
    assert not job.sent
    job.finish()
    assert not list(tmp_path.glob("*-begin")) and not list(tmp_path.glob("*-end"))


@pytest.mark.usefixtures("unwrapped")
@pytest.mark.timeout(60)
def test_a_save_that_nobody_asks_for_is_not_held_and_a_forgotten_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(tmp_path / "rank.jsonl")
    waited: list[Path] = []
    monkeypatch.setattr(Hold, "_wait", lambda self, file: waited.append(file))
    watch(record)
    saves(tmp_path)(1)
    assert not waited and "held" not in record.path.read_text()
    hold = Hold(record.path, "saving")
    hold.ask()
    hold.let_begin()
    saves(tmp_path)(2)  # asked for in the middle of a save: not held at its end alone
    assert not waited
    hold.ask()
    saves(tmp_path)(3)
    assert len(waited) == 2 and record.path.read_text().count("held") == 1


def test_a_hold_that_the_driver_forgets_ends_at_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, slept = [0.0], []

    def sleep(seconds: float) -> None:
        clock[0] += 0.5
        slept.append(seconds)

    fake: Any = SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep)
    monkeypatch.setattr(holds, "time", fake)
    hold, said = Hold(tmp_path / "rank.jsonl", "saving"), list[str]()
    hold.ask()
    hold.wait_to_begin(lambda: said.append("held"))
    hold.wait_to_end()
    assert clock[0] == holds.LIMIT_S and said == ["held"]  # in all, not at each of both places
