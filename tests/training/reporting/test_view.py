"""The view of a run that trains: live at a terminal, lines elsewhere, nothing on other ranks."""

import io
import re
import sys
from pathlib import Path

import pytest

from hpcphotoz.training.reporting.run_progress import RunProgress
from hpcphotoz.training.reporting.view import LiveView, PlainLines, open_view
from tests.helpers import ranks
from tests.helpers.processes.terminal import at_terminal
from tests.helpers.training.runs import arguments
from tests.training.reporting.test_run_progress import TRAINING, Clock

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HIDE_CURSOR = "\x1b[?25l"


class Terminal(io.StringIO):
    """A stream that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 80, term: str = "xterm-256color") -> Terminal:
    """Standard error as a terminal; in a fixture, pytest would put its own stream in this place."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"TERM": term, "COLUMNS": str(columns), "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def progress(name: str = "a") -> RunProgress:
    return RunProgress(name, 0, 120, 20, 6)


def test_a_terminal_has_a_live_view_and_all_else_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal(monkeypatch)
    assert isinstance(open_view(progress()), LiveView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_view(progress()), PlainLines)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # a file, a pipe, the stream of a notebook
    assert isinstance(open_view(progress()), PlainLines)


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_the_live_view_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch, columns)
    shown = open_view(progress("a-run-with-a-name-that-is-long"))
    assert list(shown.track(range(3))) == [0, 1, 2]
    shown.write(TRAINING)
    shown.write({"step": 20, "epoch": 0, "part": "validation", "sigma_mad": 0.02})
    shown.close()
    shown.close()
    lines = _CODES.sub("", stderr.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= columns
    last = "\n".join(lines[-7:])  # the last state, from the name on
    last = last[last.rindex("a-run-w") :]
    for part in ("epoch 2 of 6", "step 24 of 120", "ETA 0:00:00", "data wait 1.2 %", "sigma_MAD 0.0200"):
        assert part in last
    assert "attacked 3.0000)" in last and "…" not in last.replace("…: epoch", "")  # the name alone is cut
    assert ("a-run-with-a-name-that-is-long" in last) == (columns == 120)
    assert ("\u2501" in last) == (columns >= 80)
    assert HIDE_CURSOR not in stderr.getvalue()  # a process that is killed could not show it again


def test_a_short_name_is_not_cut_and_its_brackets_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch, 60)
    shown = open_view(progress("a[b]"))
    list(shown.track([0]))
    shown.close()
    assert "a[b]: epoch 1 of 6  " in _CODES.sub("", stderr.getvalue())


def test_without_colours_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)

    def colours() -> list[str]:
        shown = open_view(progress())
        shown.write(TRAINING)
        list(shown.track([0]))
        shown.close()
        # Dark or bright: rich keeps a style's codes as they were first asked for in this process.
        return re.findall(r"\x1b\[(?:[0-9;]*;)?[39][0-9][0-9;]*m", stderr.getvalue())

    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours()
    monkeypatch.delenv("NO_COLOR")
    assert colours()


@pytest.mark.parametrize("term", ["xterm-256color", "xterm", "screen", "linux"])
def test_a_finished_bar_is_green(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 16 colours too: a full bar and an empty one differ."""

    def bar(step: int) -> str:
        stderr, one = terminal(monkeypatch, term=term), progress()
        monkeypatch.delenv("COLORTERM", raising=False)
        one.reach(step)
        shown = LiveView(one)
        list(shown.track([]))
        shown.close()
        found = re.findall(r"\x1b\[([0-9;]+)m\u2501", stderr.getvalue())
        return str(found[-1])

    assert bar(120) == "32" != bar(0)


def test_what_is_printed_to_a_file_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr, file = terminal(monkeypatch), io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    shown = open_view(progress())
    for _ in shown.track([0]):
        print("a line")
    shown.close()
    assert file.getvalue() == "a line\n" and sys.stdout is file and sys.stderr is stderr


def test_lines_come_once_a_second_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = PlainLines(RunProgress("a", 0, 50, 20, 3, clock))
    for step, clock.now in ((10, 50.0), (20, 50.2), (30, 50.9), (40, 51.1), (50, 51.3)):
        shown.write({**TRAINING, "step": step})
        shown.write({"step": step, "epoch": 0, "part": "validation", "sigma_mad": 0.02})
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" of ")[0] for line in lines] == ["a: step 10", "a: step 40", "a: step 50"]
    assert lines[1].startswith("a: step 40 of 50, epoch 2 of 3: loss 2.5000 (clean ")


def test_ctrl_c_leaves_the_terminal_as_it_was(dataset: Path, tmp_path: Path) -> None:
    words = arguments(dataset, tmp_path / "run", tmp_path, epochs=10000)
    found = at_terminal([sys.executable, "-m", "hpcphotoz", *words], interrupt_at="data wait")
    assert (found.status, found.sane) == (75, True), found.text
    assert HIDE_CURSOR not in found.text and "SIGINT received: saved and stopped" in found.text


@pytest.mark.slow
def test_other_ranks_show_nothing(dataset: Path, tmp_path: Path) -> None:
    words = arguments(dataset, tmp_path / "run", tmp_path, max_steps=4)
    (status, _, first), (other_status, other_out, other) = ranks.run(2, words)
    assert (status, other_status) == (0, 0), first + other
    assert first.count("run: step 4 of 4, epoch 1 of 4: loss ") == 1
    assert "step" not in other_out + other and "loss" not in other_out + other
