"""What a survey is to an ingest: its bands, its files, and how its frames are read.

Each survey is a module of this folder with a constant `SURVEY`, which `load_survey("des")` returns.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.constants import SURVEYS
from hpcphotoz.sources.surveys.fits import Window
from hpcphotoz.sources.surveys.frame import Frame, Geometry


@dataclass(frozen=True, order=True)
class BandFiles:
    """The files of one band of a frame set. Maps that lie in the image's own file have its path."""

    band: str
    image: Path
    mask: Path | None = None
    noise: Path | None = None  # variance, inverse variance or RMS
    psf: Path | None = None
    calibration: Path | None = None


@dataclass(frozen=True)
class FrameSet:
    """The frames of one place on the sky, one a band: a field in one run, a brick, a patch, a tile."""

    name: str  # for messages: "brick 1501p020"
    files: tuple[BandFiles, ...]  # in the order of the bands asked for
    label: str = ""  # in the manifest's provenance, where it differs from the name
    epoch: int | None = None  # an SDSS run; None: a coadd of many exposures

    @property
    def bands(self) -> tuple[str, ...]:
        """Of the files."""
        return tuple(one.band for one in self.files)


class ReadFrame(Protocol):
    """Reads and calibrates a frame."""

    def __call__(self, files: BandFiles, window: Window | None) -> Frame:
        """Returns the frame, or the part of it within a window.

        Raises:
            BadInput: a file is unreadable, truncated, not of the layout, or not calibrated.
        """


@dataclass(frozen=True)
class SurveyNotes:
    """What a user should know of the frame sets that were found."""

    lines: tuple[str, ...] = ()  # one a caution, for standard error
    record: Mapping[str, Any] = field(default_factory=dict)  # for the manifest's provenance


def _no_notes(sets: Sequence[FrameSet]) -> SurveyNotes:
    return SurveyNotes()


@dataclass(frozen=True)
class Survey:
    """The description of a survey, and its functions."""

    name: str
    title: str
    bands: tuple[str, ...]  # all that can be read
    usual_bands: tuple[str, ...]  # if the user names none
    reference: str  # band whose pixel grid the stamps have
    pixel_scale: float  # arcsec
    planes: tuple[str, ...]  # fatal mask planes: plane k is bit k of `Frame.flags`
    file_names: str  # of the images, for messages
    calibration: str  # of the fluxes, for the manifest's provenance
    find: Callable[[Path, Sequence[str]], list[FrameSet]]
    read: ReadFrame
    read_geometry: Callable[[BandFiles], Geometry]  # from the headers alone
    notes: Callable[[Sequence[FrameSet]], SurveyNotes] = _no_notes
    windows: bool = True  # whether `read` can read part of a frame


def load_survey(name: str) -> Survey:
    """Returns the survey of that name.

    Raises:
        BadInput: there is none.
    """
    if name not in SURVEYS:
        raise BadInput(f"survey '{name}': must be one of {', '.join(SURVEYS)}")
    module = "sdss.survey" if name == "sdss" else name
    survey: Survey = import_module(f"hpcphotoz.sources.surveys.{module}").SURVEY
    return survey


FoundFiles = dict[tuple[str, ...], dict[str, Path]]  # path of each band by the other groups of a file's name


def find_files(
    folder: Path,
    patterns: Mapping[str, str],
    bands: Mapping[str, str],
    wanted: Sequence[str],
) -> dict[str, FoundFiles]:
    """Finds files below a folder by their names.

    Args:
        folder: searched at any depth.
        patterns: regular expression of the names of each kind of file. The groups are in the key of what is
            found, except the one that is named `band`; a kind without that group has the band "".
        bands: our name of the band by the one in the files' names.
        wanted: bands to look for.

    Returns:
        Files of each kind.

    Raises:
        BadInput: no such folder, or two files are the same frame.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder")
    compiled = {kind: re.compile(pattern) for kind, pattern in patterns.items()}
    found: dict[str, FoundFiles] = {kind: {} for kind in patterns}
    for path in sorted(folder.rglob("*")):
        for kind, match in _matches(path.name, compiled):
            groups = match.groupdict()
            band = bands[groups["band"]] if "band" in groups else ""
            if band and band not in wanted:
                continue
            key = tuple(text for name, text in groups.items() if name != "band")
            paths = found[kind].setdefault(key, {})
            if band in paths:
                raise BadInput(f"{path}: the same frame as {paths[band]}: remove one of them")
            paths[band] = path
    return found


def _matches(name: str, compiled: Mapping[str, re.Pattern[str]]) -> Iterator[tuple[str, re.Match[str]]]:
    for kind, pattern in compiled.items():
        match = pattern.fullmatch(name)
        if match is not None:
            yield kind, match


def complete_sets(
    folder: Path, sets: Sequence[FrameSet], bands: Sequence[str]
) -> tuple[list[FrameSet], list[dict[str, Any]]]:
    """Returns the sets with all bands, and an entry of the manifest's `skipped` for each of the others."""
    complete, incomplete = [], []
    for one in sets:
        lacking = [band for band in bands if band not in one.bands]
        if lacking:
            incomplete.append(left_out_entry(one, f"lacks its {', '.join(lacking)} frame"))
        else:
            complete.append(one)
    return complete, incomplete


def left_out_entry(frame_set: FrameSet, reason: str) -> dict[str, Any]:
    """Returns the entry of the manifest's `skipped` for a whole frame set; it counts no object."""
    return {"frame_set": frame_set.name, "count": 0, "reason": reason}


def report_left_out(folder: Path, entries: Sequence[Mapping[str, Any]], used: int) -> None:
    """Prints how many frame sets are left out, and the first of them, in one line on standard error.

    Args:
        folder: of the frames.
        entries: from `left_out_entry`.
        used: number of frame sets that are not left out.

    Raises:
        BadInput: none is used.
    """
    if not entries:
        return
    first = f"{entries[0]['frame_set']} {entries[0]['reason']}"
    if not used:
        raise BadInput(f"{folder}: none of its {len(entries)} frame sets is complete; the first: {first}")
    print(
        f"{folder}: left out {len(entries)} of {len(entries) + used} frame sets, incomplete ones (listed in "
        f"the manifest); the first: {first}",
        file=sys.stderr,
    )


def missing_maps(
    sets: Sequence[FrameSet], mask: str | None = None, noise: str | None = None
) -> tuple[str, ...]:
    """Returns a line for each kind of map that some frame sets lack.

    Args:
        sets: the frame sets in use.
        mask, noise: what the survey calls these maps; None: it is not looked at.
    """
    lines = []
    for name, attribute, then in (
        (mask, "mask", "saturated stars and cosmic rays are not looked for"),
        (noise, "noise", "the sky sigma is measured in the image"),
    ):
        without = sum(any(getattr(files, attribute) is None for files in one.files) for one in sets)
        if name is not None and without:
            lines.append(f"{without} of {len(sets)} frame sets have no {name} in some band: there, {then}")
    return tuple(lines)
