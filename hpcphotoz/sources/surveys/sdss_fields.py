"""Finds SDSS frame sets below a folder, by the names of files."""

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.constants import BANDS

_NAMES = (
    r"(?P<kind>fp[CM])-(?P<run>\d{6})-(?P<band>[ugriz])(?P<camcol>\d)-(?P<field>\d{4})\.fit(\.gz)?",
    r"(?P<kind>frame)-(?P<band>[ugriz])-(?P<run>\d{6})-(?P<camcol>\d)-(?P<field>\d{4})\.fits(\.gz|\.bz2)?",
)
_Key = tuple[int, int, int]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, order=True)
class FrameSet:
    """The frames of one field in one run, one a band."""

    run: int
    camcol: int
    field: int
    paths: tuple[Path, ...]  # in the order of the bands asked for
    # fpM files, in the same order.
    masks: tuple[Path | None, ...] = dataclasses.field(default=(), compare=False)
    kind: str = "fpC"  # or "frame": DR8 and later
    bands: tuple[str, ...] = BANDS

    @property
    def name(self) -> str:
        """For messages."""
        return f"run {self.run} camcol {self.camcol} field {self.field}"


def find_frame_sets(
    frames: Path, bands: Sequence[str] = BANDS
) -> tuple[list[FrameSet], list[dict[str, Any]]]:
    """Finds all frame sets below a folder, in order of run, camera column and field.

    It returns the sets with all bands, and an entry of the manifest's `skipped` for each that lacks a band.

    Raises:
        BadInput: there is no frame, or a frame is there twice (also once of DR7 and once of DR8).
    """
    if not frames.is_dir():
        raise BadInput(f"{frames}: no such folder")
    found: dict[str, dict[_Key, dict[str, Path]]] = {"fpC": {}, "fpM": {}, "frame": {}}
    for path in sorted(frames.rglob("f*")):
        match = next(filter(None, (re.fullmatch(pattern, path.name) for pattern in _NAMES)), None)
        if match is None or match["band"] not in bands:
            continue
        key = int(match["run"]), int(match["camcol"]), int(match["field"])
        paths = found[match["kind"]].setdefault(key, {})
        if match["band"] in paths:
            raise BadInput(f"{path}: the same frame as {paths[match['band']]}: remove one of them")
        paths[match["band"]] = path
    both = sorted(found["fpC"].keys() & found["frame"].keys())
    if both:
        one, other = (next(iter(found[kind][both[0]].values())) for kind in ("fpC", "frame"))
        raise BadInput(f"{one}: the same field as {other}, in another calibration: remove one of the kinds")
    if not found["fpC"] and not found["frame"]:
        raise BadInput(f"{frames}: no fpC-RRRRRR-BC-FFFF.fit[.gz] or frame-B-RRRRRR-C-FFFF.fits[.bz2] below")
    sets: list[FrameSet] = []
    incomplete = []
    for kind in ("fpC", "frame"):
        for key, paths in sorted(found[kind].items()):
            there = tuple(paths[band] for band in bands if band in paths)
            masks = tuple(found["fpM"].get(key, {}).get(band) for band in bands)
            frame_set = FrameSet(*key, there, masks, kind, tuple(bands))
            lacking = [band for band in bands if band not in paths]
            if lacking:
                incomplete.append(left_out_entry(frame_set, f"lacks its {', '.join(lacking)} frame"))
            else:
                sets.append(frame_set)
    return sorted(sets), incomplete


def left_out_entry(frame_set: FrameSet, reason: str) -> dict[str, Any]:
    """Returns the entry of the manifest's `skipped` for a whole frame set; it counts no object."""
    return {"frame_set": frame_set.name, "count": 0, "reason": reason}


def report_left_out(frames: Path, entries: Sequence[Mapping[str, Any]], used: int) -> None:
    """Prints how many frame sets are left out, and the first of them, in one line on standard error.

    Raises:
        BadInput: none is used.
    """
    if not entries:
        return
    first = f"{entries[0]['frame_set']} {entries[0]['reason']}"
    if not used:
        raise BadInput(f"{frames}: none of its {len(entries)} frame sets is complete; the first: {first}")
    print(
        f"{frames}: left out {len(entries)} of {len(entries) + used} frame sets, incomplete ones (listed in "
        f"the manifest); the first: {first}",
        file=sys.stderr,
    )
