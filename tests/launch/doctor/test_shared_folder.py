"""Two ranks, as threads, check a folder: a sound one passes, and planted faults are found."""

import errno
import fcntl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import pytest

from hpcphotoz.launch.doctor import shared_folder
from hpcphotoz.launch.doctor.facts import FileFacts
from hpcphotoz.launch.doctor.shared_folder import Meeting, check_files


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_folder, "_SPEED_BYTES", 2 << 20)
    monkeypatch.setattr(shared_folder, "_SPEED_FILES", 3)
    monkeypatch.setattr(shared_folder, "_REPLACED", 20)
    monkeypatch.setattr(shared_folder, "POLL_S", 0.01)
    monkeypatch.setattr(shared_folder, "_SEEN_WITHIN_S", 2.0)


def both(folder: Path, limit_s: float = 20.0) -> tuple[FileFacts, FileFacts]:
    """What two ranks find."""
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(check_files, folder, rank, 2, Meeting(folder, rank, 2, limit_s)) for rank in range(2)
        ]
        first, second = (future.result(timeout=60) for future in futures)
    return first, second


def test_a_sound_folder_passes(tmp_path: Path) -> None:
    for facts in both(tmp_path):
        assert facts.errors == {}
        assert (facts.locking, facts.missing, facts.torn) == ("seen", 0, 0)
        assert facts.seen_after_s >= 0 and min(facts.write_mb_s, facts.read_mb_s, facts.files_s) > 0


def test_a_rank_alone_measures_speed(tmp_path: Path) -> None:
    facts = check_files(tmp_path, 0, 1, Meeting(tmp_path, 0, 1, 5.0))
    assert facts.errors == {} and facts.write_mb_s > 0 and facts.locking == ""


def test_a_folder_that_is_not_shared_is_found(tmp_path: Path) -> None:
    facts = check_files(tmp_path, 0, 2, Meeting(tmp_path, 0, 2, 0.2))
    assert "did not appear" in facts.errors["shared folder"]


def test_locks_that_do_not_reach_the_other_node_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda number, how: None)
    assert both(tmp_path)[1].locking == "not seen"


def test_a_file_system_without_locks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert {facts.locking for facts in both(tmp_path)} == {"none"}


def test_replacing_that_is_not_atomic_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_place(path: Path, text: str) -> None:
        path.write_text(text[: len(text) // 2])  # as an object store that shows half a file

    monkeypatch.setattr(shared_folder, "write_text", in_place)
    first, second = both(tmp_path)
    assert first.torn and second.torn and (first.seen_after_s, second.seen_after_s) == (-1.0, -1.0)


def test_a_file_that_is_away_while_it_is_replaced_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, last = shared_folder._read, shared_folder._content(20)
    monkeypatch.setattr(shared_folder, "_read", lambda path: None if own(path) != last else last)
    assert both(tmp_path)[0].missing > 0


def test_an_hdf5_file_that_cannot_be_opened_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = h5py.File

    def refuse(path: Path, mode: str, **options: Any) -> h5py.File:
        if mode == "r":
            raise BlockingIOError(errno.EAGAIN, "unable to lock file, errno = 11")
        return own(path, mode, **options)

    monkeypatch.setattr(h5py, "File", refuse)
    for facts in both(tmp_path):
        assert set(facts.errors) == {"hdf5"} and "unable to lock file" in facts.errors["hdf5"]


def test_a_failure_of_one_rank_does_not_keep_the_other_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path.open

    def full(path: Path, *words: Any, **options: Any) -> Any:
        if path.name == "speed 0":
            raise OSError(errno.ENOSPC, "No space left on device")
        return own(path, *words, **options)

    monkeypatch.setattr(Path, "open", full)
    first, second = both(tmp_path, limit_s=30.0)
    assert "No space left" in first.errors["file speed"]
    assert set(first.errors) == set(second.errors) == {"file speed"}
    assert first.locking == second.locking == "seen"
