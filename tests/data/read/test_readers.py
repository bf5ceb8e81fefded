"""Reads on a network file system: temporary errors are tried again, short reads are completed."""

import errno
import os
from pathlib import Path

import pytest

from hpcphotoz.data.read import readers
from hpcphotoz.errors import BadInput
from tests.helpers.data.streams import assert_holds_stamps, ids, open_stream


def test_a_passing_error_of_a_network_file_system_is_tried_again(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, left = os.preadv, [errno.ESTALE, errno.EIO, errno.EIO]

    def failing(number: int, views: list[memoryview], offset: int) -> int:
        if left:
            raise OSError(left.pop(), "as a test")
        return real(number, views, offset)

    monkeypatch.setattr(os, "preadv", failing)
    monkeypatch.setattr(readers, "_FIRST_WAIT_S", 0.001)
    assert len(ids(list(open_stream(dataset).epoch(0)))) == 75 and not left
    assert sum("trying again" in record.message for record in caplog.records) == 3


def test_an_error_that_stays_is_named_after_a_bounded_time(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def failing(number: int, views: list[memoryview], offset: int) -> int:
        calls.append(offset)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    monkeypatch.setattr(readers, "_FIRST_WAIT_S", 0.001)
    with pytest.raises(BadInput, match=r"shard-0000\d\.hdf5: cannot be read: Input/output error \(6 tries\)"):
        list(open_stream(dataset).epoch(0))
    assert len(calls) <= 6 * 2 * 2, "tries, threads, windows"


def test_a_short_read_is_finished(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def short(number: int, views: list[memoryview], offset: int) -> int:
        """Reads at most 1000 bytes a call, across the ends of views."""
        some, left = [], 1000
        for view in views:
            some.append(view[:left])
            left -= len(some[-1])
            if not left:
                break
        return real(number, some, offset)

    monkeypatch.setattr(os, "preadv", short)
    assert_holds_stamps(open_stream(dataset))
