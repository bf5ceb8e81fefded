"""Signals and limits that request a stop, and signals that do not."""

import os
import signal
from collections.abc import Iterator

import pytest

from hpcphotoz.training.run.signals import StopRequest


@pytest.fixture(autouse=True)
def handler_of_hangups() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGTERM", "SIGINT", "SIGHUP"])
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


def test_the_budget_is_a_request() -> None:
    with StopRequest(1e-9) as stop:
        assert stop.reason == "wall-time budget spent"
    with StopRequest(60) as stop:
        assert not stop.reason
