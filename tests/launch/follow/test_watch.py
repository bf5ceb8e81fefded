"""`status --watch`: a table at a terminal, lines elsewhere, until the runs have ended."""

import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hpcphotoz import provenance
from hpcphotoz.__main__ import main
from hpcphotoz.errors import BadInput
from hpcphotoz.launch.follow.failures import Failure
from hpcphotoz.launch.follow.progress import Figures
from hpcphotoz.launch.follow.status import RunStatus
from hpcphotoz.launch.follow.watch import table, watch
from hpcphotoz.locks.lock import lock_file
from hpcphotoz.world import World
from tests.helpers.processes.terminal import at_terminal

RUN = RunStatus("runs/robust", "pending", "waits (Priority)", "12:00", None, 0, None, "12", None)
TRAINS = replace(
    RUN,
    state="running",
    reason=None,
    step=320,
    host="n1",
    starts=1,
    figures=Figures(320, 976, 1234.4, 0.004, 250),
)
AGAIN = replace(
    TRAINS, state="requeued", reason="waits (Resources)", requeues=1, expected="2031-01-02T03:04:05"
)
FAILED = replace(
    TRAINS, state="failed", reason="not finite", slurm="failed (Slurm: FAILED)",
    failure=Failure(3, "n2", None, 0, "OSError: \x1b[2J", "Traceback ...\nOSError: \x1b[2J"),
)  # fmt: skip


class Looks:
    """Gives one list of states after the other, and raises KeyboardInterrupt after the last."""

    def __init__(self, *looks: Sequence[RunStatus]) -> None:
        self._looks, self.waits = list(looks), list[float]()

    def read(self, runs: Sequence[Path]) -> tuple[list[RunStatus], str]:
        if not self._looks:
            raise KeyboardInterrupt
        return list(self._looks.pop(0)), "no squeue here"


def test_a_line_for_each_change_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    later, far = replace(TRAINS, step=330), replace(TRAINS, step=700)
    looks = Looks([RUN], [RUN], [TRAINS], [later], [far], [AGAIN], [FAILED])
    console = Console(file=io.StringIO())
    assert watch([Path("runs/robust")], 3, console, looks.read, looks.waits.append) == 1
    said = capsys.readouterr()
    lines = [line.split(maxsplit=2)[2] for line in said.out.splitlines()[:5]]
    assert [line.split()[0] for line in lines] == ["pending", "running", "running", "requeued", "failed"]
    assert said.out.splitlines()[5:] == [
        "first to fail: rank 3 on n2: OSError: \\x1b[2J",
        "  Traceback ...",
        "  OSError: \\x1b[2J",
    ]
    assert looks.waits == [3] * 6 and said.err.count("no squeue here") == 1


def test_ctrl_c_leaves_the_runs_alone_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    looks = Looks([TRAINS])
    assert watch([Path("r")], 3, Console(file=io.StringIO()), looks.read, looks.waits.append) == 130
    assert "the runs go on" in capsys.readouterr().err


def test_nothing_to_show_is_refused() -> None:
    with pytest.raises(BadInput, match="no training has begun"):
        watch([Path("r")], 3, Console(file=io.StringIO()), Looks([]).read)


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_table_tells_every_figure_and_fits(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    runs = [RUN, TRAINS, AGAIN, FAILED, replace(RUN, run="evil\x1b[2J")]
    console.print(table(runs, "no squeue here", width))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width and "\x1b" not in text
    for word in ("pending", "320/976", "1,234", "0.4 %", "0:04:10", "requeued", "failed", "no squeue here"):
        assert word in text
    for word in ("robust: waits (Priority)", "expected to begin 2031-01-02T03:04:05; requeued once"):
        assert word in text
    assert ("━" in text) == (width >= 100)


def test_the_table_of_a_terminal_ends_with_the_last_state(capsys: pytest.CaptureFixture[str]) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120, legacy_windows=False)
    looks = Looks([RUN, TRAINS], [replace(TRAINS, state="finished"), replace(RUN, state="finished")])
    assert watch([Path("a"), Path("b")], 3, console, looks.read, looks.waits.append) == 0
    assert "pending" in shown.getvalue() and shown.getvalue().count("finished") >= 2


def test_the_command_at_a_terminal_is_left_with_ctrl_c(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    provenance.record_start(run, World(), {})
    with lock_file(run / "logs" / "lock", "busy", "wait"):
        words = [sys.executable, "-m", "hpcphotoz", "status", str(run), "--watch", "1"]
        shown = at_terminal(words, interrupt_at="running")
    assert shown.status == 130 and shown.sane and "the runs go on" in shown.text


def test_watch_of_a_run_that_has_ended_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    provenance.record_start(run, World(), {"last_step": 9})
    provenance.record_end(run, "stopped", "SIGTERM received", step=4)
    assert main(["status", str(run), "--watch"]) == 75
    assert "stopped at step 4 of 9" in capsys.readouterr().out
    assert main(["status", "--watch", str(run)]) == 2
    assert "write RUN before --watch" in capsys.readouterr().err


def test_a_queue_that_does_not_answer_for_a_while_ends_no_view() -> None:
    stopped = replace(TRAINS, state="stopped")
    looks = [([AGAIN], ""), ([stopped], "squeue: Unable to contact"), ([AGAIN], ""), ([stopped], "")]
    for console in (Console(file=io.StringIO()), Console(file=io.StringIO(), force_terminal=True, width=120)):
        left, waits = iter(looks), list[float]()

        def read(runs: Sequence[Path], left: Iterator[tuple[list[RunStatus], str]] = left) -> Any:
            return next(left)

        assert watch([Path("r")], 3, console, read, waits.append) == 75
        assert not [*left] and waits == [3, 3, 3]
