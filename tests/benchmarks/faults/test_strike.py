"""What a strike says of a start that took a fault: signals, who hung, whom a survivor named, the statuses."""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.faults import strike as striking
from benchmarks.faults.job import Job
from benchmarks.faults.plan import FULL_DISK, HANG, KILL, NODE, PAUSE, START, STEP, Fault, Layout
from benchmarks.faults.recorded_rank import Record
from benchmarks.faults.strike import Struck, strike

TIMEOUT_S = 3.0
KILLED, STOPPED, GOES_ON = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT


class FakeJob(Job):
    """A start without processes: ranks that end as the test says when signals come.

    Args:
        folder: of the records.
        world_size: number of ranks.
        says: what each rank has written.
        lost: exit status of the others once one is killed or stopped; None: they stay.
        resumes: whether it takes further steps after SIGCONT.
    """

    def __init__(
        self, folder: Path, world_size: int, says: str = "", lost: int | None = 1, resumes: bool = True
    ) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(folder, 7, world_size, [])
        self.written = [Record(rank.path) for rank in self.record.ranks]
        for written in self.written:
            written.write(step=4, epoch=0, objects=[], attacked=[])
        self.sent: list[tuple[int, signal.Signals]] = []
        self.exits: list[int | None] = [None] * world_size
        self.waited: list[float] = []
        self._says, self._lost, self._resumes = says, lost, resumes

    @property
    def alive(self) -> list[int]:
        """Those without an exit status."""
        return [rank for rank, status in enumerate(self.exits) if status is None]

    @property
    def statuses(self) -> list[int | None]:
        """As of the job."""
        return list(self.exits)

    def said(self, rank: int) -> str:
        """Only survivors say something."""
        return "" if self.exits[rank] == -KILLED else self._says

    def send(self, rank: int, number: signal.Signals) -> bool:
        """Note the signal, and let ranks end."""
        if rank not in self.alive:
            return False
        self.sent.append((rank, number))
        if number == KILLED:
            self.exits[rank] = -KILLED
        if number in (KILLED, STOPPED) and self._lost is not None:
            others = [each for each in self.alive if each != rank]
            for each in others:
                self.exits[each] = self._lost
        if number == GOES_ON and not self._resumes:
            self.exits = [each if each is not None else 0 for each in self.exits]
        if number == GOES_ON and self._resumes:
            for step in (5, 6):
                for written in self.written:
                    written.write(step=step, epoch=0, objects=[], attacked=[])
        return True

    def wait(self, condition: Callable[[], bool], timeout_s: float, *, while_alive: bool = True) -> bool:
        """Nothing happens while it waits."""
        self.waited.append(timeout_s)
        self.record.update()
        return condition()

    def ended(self, ranks: Sequence[int], timeout_s: float) -> list[int]:
        """As of the job, at once."""
        self.waited.append(timeout_s)
        return sorted(set(ranks) & set(self.alive))


class Disk:
    """A small disk: full, it ends the start."""

    def __init__(self, job: FakeJob, ends: bool) -> None:
        self.calls: list[str] = []
        self._job, self._ends = job, ends

    def fill(self) -> None:
        """Every rank ends on it."""
        self.calls.append("fill")
        if self._ends:
            self._job.exits = [1] * self._job.world_size

    def empty(self) -> None:
        """Of what fills it."""
        self.calls.append("empty")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Sleeps and the clock: seconds that were slept."""
    slept: list[float] = []
    clock: Any = SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept))
    monkeypatch.setattr(striking, "time", clock)
    return slept


def fault(kind: str, when: str = STEP, rank: float = 0.9) -> Fault:
    return Fault(kind, when, 3, rank, 0.5, Layout(2, "off"))


def struck(job: FakeJob, what: Fault, disk: Any = None) -> Struck:
    found = strike(job, what, TIMEOUT_S, disk)
    assert found is not None and found.fault is what and found.start == 7 and found.step == 4
    return found


def test_a_kill_is_one_signal_and_its_survivor_ends_in_time(tmp_path: Path) -> None:
    job = FakeJob(tmp_path, 3, says="rank 2 has ended")
    found = struck(job, fault(KILL))
    assert (found.rank, found.killed, found.stopped) == (2, 1, 0) and job.sent == [(2, KILLED)]
    assert found.hung == [] and found.statuses == [1, 1, -9] and found.named is True
    assert not found.in_save and not found.goes_on
    assert striking.patience_s(TIMEOUT_S) in job.waited


@pytest.mark.parametrize("says", ["", "rank 1 has ended", "rank 2 says which", "rank 22 has ended"])
def test_a_rank_that_no_survivor_names(tmp_path: Path, says: str) -> None:
    assert struck(FakeJob(tmp_path, 3, says=says), fault(KILL)).named is False
    assert struck(FakeJob(tmp_path / "hang", 3, says=says), fault(HANG)).named is False


def test_only_survivors_are_asked_and_without_one_nobody_names_the_rank(tmp_path: Path) -> None:
    job = FakeJob(tmp_path, 2, says="rank 0 and rank 1 have ended", lost=None)
    found = struck(job, fault(NODE))
    assert found.named is None and found.statuses == [-9, -9]
    assert sorted(job.sent) == [(0, KILLED), (1, KILLED)] and found.killed == 2
    alone = FakeJob(tmp_path / "alone", 1, says="rank 0 has ended")
    assert struck(alone, fault(KILL)).named is None


def test_ranks_that_stay_hang(tmp_path: Path) -> None:
    found = struck(FakeJob(tmp_path, 3, lost=None), fault(KILL))
    assert found.hung == [0, 1] and found.statuses == [None, None, -9]
    job = FakeJob(tmp_path / "hang", 3, lost=None)
    found = struck(job, fault(HANG))
    assert found.hung == [0, 1, 2] and job.sent == [(2, STOPPED), (2, GOES_ON)]


@pytest.mark.parametrize("kind", [KILL, NODE, PAUSE, HANG])
def test_a_save_is_torn_only_by_a_kill(tmp_path: Path, kind: str) -> None:
    for begun, ended in ((1, 0), (1, 1), (2, 1), (0, 0)):
        job = FakeJob(tmp_path / f"{begun}-{ended}", 2)
        for name, times in (("saving", begun), ("saved", ended)):
            for _ in range(times):
                job.written[0].write(mark=name)
        job.written[1].write(mark="saving")  # rank 0 writes checkpoints: of no interest
        assert struck(job, fault(kind)).in_save is (begun > ended and kind in (KILL, NODE))


def test_a_pause_goes_on(tmp_path: Path, at_once: list[float]) -> None:
    job = FakeJob(tmp_path, 2, says="rank 1 has ended", lost=None)
    found = struck(job, fault(PAUSE))
    assert job.sent == [(1, STOPPED), (1, GOES_ON)] and (found.killed, found.stopped) == (0, 1)
    assert found.goes_on and found.hung == [] and found.named is None and found.statuses == [None, None]
    assert at_once[-1] == 0.5 * TIMEOUT_S / 4  # shorter than the time after which the others give up
    assert found.end_s == at_once[-1]


def test_a_pause_that_ends_the_run_well_goes_on_and_one_that_ends_it_badly_does_not(tmp_path: Path) -> None:
    assert struck(FakeJob(tmp_path, 2, lost=None, resumes=False), fault(PAUSE)).goes_on
    found = struck(FakeJob(tmp_path / "bad", 2, lost=1, resumes=False), fault(PAUSE))
    assert not found.goes_on and found.hung == [] and found.statuses == [1, 0]


def test_a_pause_after_which_nothing_moves_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = FakeJob(tmp_path, 2, lost=None)
    monkeypatch.setattr(job, "written", [])  # takes no steps
    found = struck(job, fault(PAUSE))
    assert not found.goes_on and found.hung == [0, 1]


def test_a_hang_is_stopped_until_the_others_have_ended(tmp_path: Path) -> None:
    job = FakeJob(tmp_path, 2, says="rank 1 has not answered", resumes=False)
    found = struck(job, fault(HANG))
    assert job.sent == [(1, STOPPED), (1, GOES_ON)] and (found.killed, found.stopped) == (0, 1)
    assert found.named is True and found.hung == [] and found.statuses == [1, 0] and not found.goes_on


@pytest.mark.parametrize("ends", [True, False])
def test_a_full_disk_is_emptied_at_the_end(tmp_path: Path, ends: bool) -> None:
    job = FakeJob(tmp_path, 2, says="rank 1 has ended")
    disk = Disk(job, ends)
    found = struck(job, fault(FULL_DISK), disk)
    assert disk.calls == ["fill", "empty"] and job.sent == []
    assert found.hung == ([] if ends else [0, 1]) and found.named is None
    assert found.statuses == ([1, 1] if ends else [None, None])


def test_a_start_that_ends_before_the_fault_took_none(tmp_path: Path) -> None:
    job = FakeJob(tmp_path, 2)
    job.exits[0] = 1
    assert strike(job, fault(KILL, START), TIMEOUT_S, None) is None and not job.sent
    slow = FakeJob(tmp_path / "slow", 2)
    assert strike(slow, Fault(KILL, STEP, 9, 0.9, 0.5, Layout(2, "off")), TIMEOUT_S, None) is None
    assert not slow.sent
