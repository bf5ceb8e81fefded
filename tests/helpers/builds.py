"""Small builds of datasets, in this process or another, and the content of their folders."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcphotoz.data.format.manifest import Header, Manifest
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.build import UnitStamps, build_dataset
from tests.helpers.datasets import make_stamps
from tests.helpers.paths import ROOT

HEADER = Header(tuple("ugriz"), 16, 0.396)
UNITS = [3, 1, 4, 1, 5, 9]
TIMEOUT_S = 60


@dataclass(frozen=True)
class Blobs:
    """Makes n galaxies of seed n for unit n, skips that of unit 1, and fails for "die", "bad" and "bug"."""

    note: str = ""
    source: Path | None = None

    def __call__(self, unit: Any) -> UnitStamps:
        if str(unit) == os.environ.get("BLOCK_AT"):
            signal.pause()
        if unit == "die":
            os._exit(9)
        if unit == "bad":
            raise BadInput("field.fits: torn")
        if unit == "bug":
            raise ZeroDivisionError("a bug")
        skipped = ({"object_id": 7, "reason": "masked"},) if unit == 1 else ()
        return UnitStamps(make_stamps(unit, seed=unit) if unit > 1 else None, skipped)


def run(out: Path, units: list[Any] = UNITS, make: Any = None, **how: Any) -> tuple[Manifest, list[Any]]:
    options: dict[str, Any] = {
        "provenance": {"made": "for a test"},
        "label": "making, shards",
        "processes": 1,
    }
    return build_dataset(out, HEADER, make or Blobs(), units, **{**options, **how})


def start(out: Path, block_at: int, processes: int) -> subprocess.Popen[str]:
    code = f"from tests.helpers.builds import *; run(Path({str(out)!r}), processes={processes})"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "BLOCK_AT": str(block_at)},
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
