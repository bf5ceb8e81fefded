"""With closed, full or ASCII output streams, training goes on and other commands end in one line at most."""

import errno
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpcphotoz import output, progress

TIMEOUT_S = 120
TINY = "--model.width 8 --model.bins 20 --run.max_steps 5 --run.global_batch 16".split()
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


def command(words: Sequence[object], **how: object) -> subprocess.CompletedProcess[str]:
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "", **how.pop("env", {})}  # type: ignore[dict-item]
    line = [sys.executable, "-m", "hpcphotoz", *map(str, words)]
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        line, timeout=TIMEOUT_S, text=True, stderr=subprocess.PIPE, env=shared, **how
    )


def closed_pipe() -> int:
    """The writing end of a pipe whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    return write


def train(dataset: Path, out: Path, **how: object) -> str:
    found = command(["train", "standard", "--data", dataset, "--out", out, *TINY], **how)
    assert found.returncode == 0, found.stderr
    assert (out / "checkpoints" / "step-00000005.pt").is_file()
    return str(found.stderr)


def test_training_does_not_need_a_reader(dataset: Path, tmp_path: Path) -> None:
    said = train(dataset, tmp_path / "run", stdout=closed_pipe())
    assert said.count("standard output: Broken pipe; continuing without it") == 1


@pytest.mark.slow
def test_a_local_launch_does_not_need_a_reader(dataset: Path, tmp_path: Path) -> None:
    """It would leave its ranks behind."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    run = ["train", "standard", "--data", dataset, "--out", tmp_path / "run", *TINY]
    found = command(["launch", "local", "--tasks-per-node", 1, "--", *run], stdout=closed_pipe())
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-00000005.pt").is_file()


@needs_full
def test_training_does_not_need_room_for_its_output(dataset: Path, tmp_path: Path) -> None:
    with FULL.open("w") as full:
        said = train(dataset, tmp_path / "run", stdout=full)
    assert said.count("standard output: No space left on device; continuing without it") == 1


def test_training_does_not_need_its_streams(dataset: Path, tmp_path: Path) -> None:
    line = [
        sys.executable,
        "-m",
        "hpcphotoz",
        "train",
        "standard",
        "--data",
        dataset,
        "--out",
        tmp_path / "run",
    ]
    shell = ["sh", "-c", 'exec "$0" "$@" 0<&- 1>&- 2>&-']
    subprocess.run([*shell, *map(str, line), *TINY], check=True, timeout=TIMEOUT_S)
    assert (tmp_path / "run" / "checkpoints" / "step-00000005.pt").is_file()


@pytest.mark.parametrize("words", [["inspect", "DATASET"], ["--help"], ["simulate", "--help"]], ids=str)
def test_a_reader_that_has_gone_ends_a_command_quietly(words: list[str], dataset: Path) -> None:
    found = command([dataset if word == "DATASET" else word for word in words], stdout=closed_pipe())
    assert (found.returncode, found.stderr) == (141, "")


@needs_full
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["inspect", "DATASET"], ["--help"]], ids=str)
def test_a_full_disk_behind_standard_output_is_one_line(
    words: list[str], unbuffered: str, dataset: Path
) -> None:
    words = [str(dataset) if word == "DATASET" else word for word in words]
    with FULL.open("w") as full:
        found = command(words, stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
    said = r"hpcphotoz: error: (standard )?output: No space left on device\n"
    assert found.returncode == 2 and re.fullmatch(said, found.stderr), found.stderr


def test_a_name_that_the_terminal_cannot_show_is_escaped(dataset: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset, tmp_path / "galaxïes"))
    (folder / "manifest.json").unlink()
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    found = command(["index", folder], stdout=subprocess.PIPE, env=ascii_only)
    assert found.returncode == 0, found.stderr
    assert "galax\\xefes: 75 objects" in found.stdout


@pytest.mark.parametrize("turned_into", ["KeyboardInterrupt", "ImportError('from numpy')"])
def test_an_interrupt_during_the_imports_is_one_line(turned_into: str) -> None:
    """Imports take most of a second, in which users interrupt mistyped commands."""
    code = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name != 'hpcphotoz.cli': return\n"
        "        try: os.kill(os.getpid(), signal.SIGINT)\n"
        f"        except KeyboardInterrupt: raise {turned_into}\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from hpcphotoz.__main__ import main\n"
        "sys.exit(main(['--version']))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False
    )
    assert (found.returncode, found.stderr) == (130, "hpcphotoz: interrupted\n")


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def isatty(self) -> bool:
        return self.terminal

    terminal = True


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_that_cannot_be_shown_does_not_end_the_work(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Gone()
    gone.terminal = terminal
    monkeypatch.setattr(sys, "stderr", gone)
    assert list(progress.track(range(5), "counting", 5)) == [0, 1, 2, 3, 4]


def test_a_failed_line_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(closed_pipe(), "w") as stream:
        output.say("one", stream)
        output.say("two", stream)
        stream.flush()


def test_one_thing_is_singular() -> None:
    assert output.number_of(1, "shard") == "1 shard"
    assert [output.number_of(n, "galaxy", "galaxies") for n in (0, 1, 2)] == [
        "0 galaxies",
        "1 galaxy",
        "2 galaxies",
    ]
