"""Signals, files and limits that request a stop, signals that do not, and signals that come again."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpcphotoz.training.run import signals
from hpcphotoz.training.run.signals import StopRequest, WallTimeBudget
from tests.helpers.launch.cluster import until
from tests.helpers.paths import ROOT

NAMES = ["SIGUSR1", "SIGUSR2", "SIGTERM", "SIGINT", "SIGHUP"]


@pytest.fixture(autouse=True)
def handler_of_hangups() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the module sees, in seconds; tests set it."""
    now = [1000.0]
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_is_a_request(name: str) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    before = signal.getsignal(signal.Signals[name])
    with StopRequest() as stop:
        assert not stop.reason
        os.kill(os.getpid(), signal.Signals[name])
        assert stop.reason == f"{name} received"
    assert signal.getsignal(signal.Signals[name]) is before


def test_a_hangup_that_nohup_has_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.reason
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


# The main thread waits inside the C library, where Python runs no handler, as in a collective.
WAITING = """\
import signal
signal.signal(signal.SIGINT, print)  # as in the command line: not a notebook
from ctypes import CDLL, create_string_buffer
from hpcphotoz.training.run.signals import StopRequest
with StopRequest():
    library, mutex = CDLL(None), create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    print("waits", flush=True)
    library.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_that_comes_again_ends_a_process_that_waits_for_a_hung_rank(name: str) -> None:
    number = signal.Signals[name]
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "waits\n"
        try:
            process.send_signal(number)
            # Repeats within a second are the same request: GNU's timeout sends its signal twice.
            process.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)

            def again() -> bool:
                process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.1)
                return process.returncode is not None

            until("the end", again, 30)
            assert process.returncode == 128 + number
            said = process.communicate(timeout=10)[1]
            assert said.count("\n") == 1 and f"{name} received again: ended without saving" in said
        finally:
            process.kill()


EARLY = """
import sys
from hpcphotoz import __main__
def waits(words):
    print("waits", flush=True)
    sys.stdin.read()
__main__._run = waits
sys.exit(__main__.main())
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"])
@pytest.mark.parametrize(("command", "torchrun"), [("train", False), ("train", True), ("predict", False)])
def test_a_signal_before_training_began_ends_it_as_one_that_goes_on(
    name: str, command: str, torchrun: bool
) -> None:
    """A batch script requeues a job that was preempted during its imports, and no other command."""
    number = signal.Signals[name]
    env = {**os.environ, **({"TORCHELASTIC_RUN_ID": "1"} if torchrun else {})}
    with subprocess.Popen(
        [sys.executable, "-c", EARLY, command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=env,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "waits\n"
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
    if command == "train":
        assert process.returncode == (0 if torchrun else os.EX_TEMPFAIL)
        assert said.startswith(f"hpcphotoz: {name} received while nothing was in training: the same command ")
        assert said.count("\n") == 1
    else:
        assert process.returncode == -number and said == ""


def test_in_a_notebook_a_second_interrupt_ends_the_call_and_not_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signals, "end_without_saving", lambda number: pytest.fail("ended"))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest() as stop:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            assert stop.reason == "SIGINT received"
            monkeypatch.setattr(signals, "_ONE_REQUEST_S", 0)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_two_kinds_of_signal_are_one_request_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm sends SIGUSR2 ahead of the time limit, and SIGTERM at it: the save may still end."""
    ended: list[int] = []
    monkeypatch.setattr(signals, "end_without_saving", ended.append)
    monkeypatch.setattr(signals, "_ONE_REQUEST_S", 0)
    with StopRequest() as stop:
        for number in (signal.SIGUSR2, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.reason == "SIGUSR2 received"
    assert not ended
    with StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended == [signal.SIGTERM]


def test_signals_after_the_end_of_the_run_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that sees one rank leave with status 75 sends SIGTERM to the others."""
    ended: list[int] = []
    monkeypatch.setattr(signals, "end_without_saving", ended.append)
    monkeypatch.setattr(signals, "_ONE_REQUEST_S", 0)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        stop.settle()
        os.kill(os.getpid(), signal.SIGTERM)
    assert not ended


def test_signals_are_passed_on_to_whoever_watched_them_before() -> None:
    """An event loop does, or the job of a launch."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    before = signal.set_wakeup_fd(write_end)
    try:
        with StopRequest():
            os.kill(os.getpid(), signal.SIGUSR2)
        assert signal.set_wakeup_fd(write_end) == write_end
        assert os.read(read_end, 8) == bytes([signal.SIGUSR2])
    finally:
        signal.set_wakeup_fd(before)
        os.close(read_end)
        os.close(write_end)


def test_the_file_is_a_request_and_is_looked_for_every_five_seconds(
    clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    class File(type(tmp_path)):  # type: ignore[misc]
        def exists(self) -> bool:
            looks.append(clock[0])
            return bool(super().exists())

    with StopRequest(file=File(tmp_path / "STOP")) as stop:
        for _ in range(100):  # steps of 0.125 s
            assert not stop.reason
            clock[0] += 0.125
        assert looks == [1000, 1005, 1010]
        (tmp_path / "STOP").touch()
        assert not stop.reason, "not looked for yet"
        clock[0] = 1015
        reason = str(stop.reason)
    assert reason == "file STOP found (remove it to go on)"
    assert (tmp_path / "STOP").exists()


def test_the_budget_is_a_request() -> None:
    with StopRequest(1e-9) as stop:
        assert stop.reason == "wall-time budget spent"
    with StopRequest(60) as stop:
        assert not stop.reason


@pytest.mark.parametrize("blocks", [1.0, 0.1])  # fraction of a save for which training stands still
def test_the_budget_leaves_time_for_a_step_and_the_save(blocks: float, clock: list[float]) -> None:
    rng = random.Random(1)
    for _ in range(200):
        step_s, save_s, end = rng.uniform(0.01, 20), rng.uniform(0, 40), clock[0] + 600
        budget, saves, steps = WallTimeBudget(10), [0.0], 0
        budget.save_s = lambda saves=saves: max(saves)  # type: ignore[misc]
        clock[0] += rng.uniform(0, 100)  # data and compilation
        while True:
            clock[0] += step_s if steps == 1 else rng.uniform(0.5, 1) * step_s
            steps += 1
            if budget.is_spent():
                break
            if steps % 3 == 0:
                saves.append(save_s if steps == 3 else rng.uniform(0.5, 1) * save_s)
                clock[0] += blocks * saves[-1]
        if steps > 4:
            # In a thread, the save that was due has to end before the last one begins.
            pending = (1 - blocks) * save_s if steps % 3 == 1 else 0.0
            assert clock[0] + pending + save_s <= end, "saved within the budget"
        assert end - clock[0] < 2 * (step_s + blocks * save_s + save_s) + 5, "and not much earlier"


def test_the_first_step_compiles_and_is_not_what_a_step_takes(clock: list[float]) -> None:
    budget = WallTimeBudget(10)
    for took in (300, 1, 1):
        clock[0] += took
        assert not budget.is_spent()
    assert budget.reserve_s == 2 * 1 + 5


def test_a_caller_of_the_command_line_keeps_its_handlers(dataset: Path, tmp_path: Path) -> None:
    from hpcphotoz.__main__ import main

    before = [signal.getsignal(signal.Signals[name]) for name in NAMES]
    words = ["--model.width", "8", "--run.wall_minutes", "1e-9", "--run.global_batch", "16"]
    assert main(["train", "standard", "--data", str(dataset), "--out", str(tmp_path / "run"), *words]) == 75
    assert [signal.getsignal(signal.Signals[name]) for name in NAMES] == before
