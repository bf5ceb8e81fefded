"""A pseudo-terminal for a command, with a width, from which Ctrl-C can be typed."""

import fcntl
import os
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TIMEOUT_S = 120


@dataclass(frozen=True)
class Shown:
    """What a command did at a terminal."""

    status: int
    text: str  # all that it wrote, with the codes that move the cursor
    sane: bool  # whether the terminal's settings are as before


def at_terminal(
    words: Sequence[str], columns: int = 80, env: Mapping[str, str] | None = None, interrupt_at: str = ""
) -> Shown:
    """Run a command at a pseudo-terminal until it ends; it is killed after the timeout.

    Args:
        words: the command line.
        columns: width of the terminal.
        env: further environment variables.
        interrupt_at: type Ctrl-C when the command has written this.
    """
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    before, written, typed = termios.tcgetattr(its), b"", not interrupt_at
    usual = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    child = subprocess.Popen(
        words,
        stdin=its,
        stdout=its,
        stderr=its,
        env={**usual, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **(env or {})},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C becomes SIGINT
    )
    end = time.monotonic() + TIMEOUT_S
    try:
        while time.monotonic() < end:
            ended = child.poll() is not None
            while select.select([ours], [], [], 0 if ended else 0.1)[0]:
                written += os.read(ours, 1 << 16)
                if not typed and interrupt_at.encode() in written:
                    typed = bool(os.write(ours, b"\x03"))
            if ended:
                break
        assert child.poll() is not None, f"no end in {TIMEOUT_S} s: {written.decode(errors='replace')}"
        return Shown(child.wait(), written.decode(), termios.tcgetattr(its) == before)
    finally:
        child.kill()
        child.wait()
        os.close(ours)
        os.close(its)
