"""Files are written whole or not at all, beside other threads."""

import os
import stat
from pathlib import Path

import pytest

from hpcphotoz.atomic import atomic_write, write_text
from tests.helpers.processes.interruption import interrupted


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_has_the_mode_of_any_other_and_no_thread_sees_another_umask(
    mask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read the umask is to change it for a moment: files of other threads would be open to everybody."""
    before = os.umask(mask)
    try:
        with monkeypatch.context() as patches:
            patches.setattr(os, "umask", lambda _: pytest.fail("changed for all threads"))
            write_text(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def test_what_was_there_stays_after_an_error(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "before")
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "a", "host-1") as temporary:
        temporary.write_text("half")
        assert temporary.name.startswith("a.host-1.") and temporary.suffix == ".tmp"
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "before"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file closed by its end
def test_ended_at_any_line_leaves_nothing(tmp_path: Path) -> None:
    """The handler of a signal raises at any line, also before a `with` has taken the file over."""
    lines = 0
    while interrupted(lines, lambda: write_text(tmp_path / "a", "text")):
        assert not [path for path in tmp_path.iterdir() if path.name != "a"], f"at line {lines}"
        lines += 1
    assert lines > 10 and [path.name for path in tmp_path.iterdir()] == ["a"]
