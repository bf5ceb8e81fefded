"""Options of the program, and what is checked of them before anything is simulated or trained."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from benchmarks.paper.plan import FULL, QUICK, Plan
from benchmarks.streaming.stream_readers import ROOT
from hpcphotoz.errors import BadInput

RESULTS = ROOT / "benchmarks/results/paper.json"


def parse(description: str | None) -> argparse.Namespace:
    """Parse the command line; `description` is the docstring of the program."""
    words = argparse.ArgumentParser(
        prog="python -m benchmarks.paper",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("--out", type=Path, help="folder for galaxies, networks, reports and paper.json")
    words.add_argument("--quick", action="store_true", help="tiny sets, one seed: does it work?")
    words.add_argument("--grid", action="store_true", help="train the whole grid of the trade-off surface")
    words.add_argument(
        "--resume",
        action="store_true",
        help="go on in a folder of --out that was begun; what was done with the same settings is kept",
    )
    words.add_argument("--minutes", type=float, help="start nothing later than this, and write what is there")
    words.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        help="how many commands run at a time, one thread each (default: one per core)",
    )
    frames = Path(os.environ.get("HPCPHOTOZ_DATA", ROOT.parent / "shared/data"))
    words.add_argument(
        "--frames",
        type=Path,
        default=frames,
        help="folder with SDSS DR7 frames, whose sky the galaxies are put in (default: $HPCPHOTOZ_DATA, or "
        "../shared/data); where it is not there, this part is skipped",
    )
    words.add_argument(
        "--page",
        action="store_true",
        help="write docs/paper.md and its figures from benchmarks/results/paper.json, and end",
    )
    return words.parse_args()


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan: tiny with --quick, with the whole grid with --grid."""
    return replace(QUICK if options.quick else FULL, grid=options.grid)


def frames_of(options: argparse.Namespace) -> Path | None:
    """The folder with the real sky; None, which is said, if there is none."""
    frames: Path = options.frames.absolute()
    if any(frames.glob("**/fpC-*")):
        return frames
    print(f"skipped: galaxies in real sky: no fpC frames in {frames} (see --frames)", flush=True)
    return None


def check(options: argparse.Namespace) -> None:
    """Check all options.

    Raises:
        BadInput: --out is missing, is no folder that can be written, or holds something without --resume;
            a number out of range.
    """
    out: Path | None = options.out
    if out is None:
        raise BadInput("--out: want a folder for galaxies, networks and results")
    if options.processes < 1:
        raise BadInput(f"--processes {options.processes}: want 1 or more")
    if options.minutes is not None and not options.minutes > 0:
        raise BadInput(f"--minutes {options.minutes:g}: want a number above 0")
    there = next(one for one in (out.absolute(), *out.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise BadInput(f"--out {out}: {there} is not a folder that can be written: choose another")
    if not options.resume and out.exists() and any(out.iterdir()):
        raise BadInput(f"--out {out}: holds files: add --resume to go on there, or name another folder")
