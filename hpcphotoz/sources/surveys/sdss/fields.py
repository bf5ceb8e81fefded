"""Finds SDSS frame sets below a folder, by the names of files."""

from collections.abc import Sequence
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.constants import BANDS
from hpcphotoz.sources.surveys.survey import BandFiles, FrameSet, find_files

_KEY = r"(?P<run>\d{6})"
_REST = r"(?P<camcol>\d)-(?P<field>\d{4})"
_BAND = "(?P<band>[ugriz])"
_PATTERNS = {
    "fpC": rf"fpC-{_KEY}-{_BAND}{_REST}\.fit(\.gz)?",
    "fpM": rf"fpM-{_KEY}-{_BAND}{_REST}\.fit(\.gz)?",
    "frame": rf"frame-{_BAND}-{_KEY}-{_REST}\.fits(\.gz|\.bz2)?",
    "tsField": rf"tsField-{_KEY}-(?P<camcol>\d)-(?P<rerun>\d+)-(?P<field>\d{{4}})\.fit(\.gz)?",
    "photoField": rf"photoField-{_KEY}-(?P<camcol>\d)\.fits(\.gz|\.bz2)?",
    "psField": rf"psField-{_KEY}-{_REST}\.fit(\.gz)?",
}
FILE_NAMES = "fpC-RRRRRR-BC-FFFF.fit[.gz] or frame-B-RRRRRR-C-FFFF.fits[.bz2]"


def find_frame_sets(frames: Path, bands: Sequence[str] = BANDS) -> list[FrameSet]:
    """Finds all frame sets below a folder, in order of run, camera column and field.

    A frame's mask, calibration and PSF are the files below the folder with its run, camera column and field
    in their names. Of several tsField files of a field, the one of the highest rerun is taken; where there is
    a tsField, photoField is not looked at.

    Returns:
        The sets, each with the bands that it has.

    Raises:
        BadInput: no such folder, or a frame is there twice (also once of DR7 and once of DR8).
    """
    found = find_files(frames, _PATTERNS, dict(zip(BANDS, BANDS, strict=True)), bands)
    both = sorted(found["fpC"].keys() & found["frame"].keys())
    if both:
        one, other = (next(iter(found[kind][both[0]].values())) for kind in ("fpC", "frame"))
        raise BadInput(f"{one}: the same field as {other}, in another calibration: remove one of the kinds")
    calibrations = {(run, camcol, ""): paths[""] for (run, camcol), paths in found["photoField"].items()}
    for run, camcol, _, field in sorted(found["tsField"], key=lambda key: int(key[2])):
        calibrations[run, camcol, field] = found["tsField"][run, camcol, _, field][""]
    sets: list[FrameSet] = []
    keys = sorted((key, kind) for kind in ("fpC", "frame") for key in found[kind])
    for (run, camcol, field), kind in keys:
        key = (run, camcol, field)
        paths, masks = found[kind][key], found["fpM"].get(key, {})
        calibration = calibrations.get(key, calibrations.get((run, camcol, "")))
        psf = found["psField"].get(key, {}).get("")
        files = tuple(
            BandFiles(band, paths[band], masks.get(band), None, psf, calibration)
            for band in bands
            if band in paths
        )
        numbers = [int(text) for text in key]
        name = "run {} camcol {} field {}".format(*numbers)
        sets.append(FrameSet(name, files, f"{kind} {'-'.join(map(str, numbers))}", numbers[0]))
    return sets


def is_dr8(frame_set: FrameSet) -> bool:
    """Whether the frames are of DR8 or later: calibrated ones."""
    return frame_set.label.startswith("frame")
