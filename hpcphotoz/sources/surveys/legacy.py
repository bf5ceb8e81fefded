"""The DESI Legacy Imaging Surveys: coadded bricks of DR8 to DR10.

- Files, in `coadd/150/1501p020/` of a data release: `legacysurvey-1501p020-image-g.fits.fz` in nanomaggies
  a pixel (AB 22.5), `-invvar-g.fits.fz` in 1/nanomaggies^2, `-psfsize-g.fits.fz`, a map of the PSF's full
  width at half maximum in arcsec, and one `-maskbits.fits.fz` for all bands. The image is in HDU 1,
  tile-compressed.
- Bands g, r, i (DR10), z; 3600 pixels of 0.262" a side, TAN; a brick overlaps its neighbours by some 10".
- Fatal bits of a band: SATUR_B, saturated in at least one exposure (g, r, z, i: bits 2, 3, 4, 14), and
  ALLMASK_B, bad in all (5, 6, 7, 15); and pixels without inverse variance. NPRIMARY (0), the overlap, and
  BRIGHT (1), MEDIUM (11), GALAXY (12) and CLUSTER (13), near something large, have good pixels.
- `north` and `south` have other filters; where both have a brick, ingest one of them.

Sources: legacysurvey.org/dr9/files and dr9/bitmasks, the same of DR8 and DR10. Tried on synthetic files only.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpcphotoz.sources.surveys.fits import Window, image_number, open_fits, read_map, read_pixels
from hpcphotoz.sources.surveys.frame import Frame, Geometry, pack_planes, read_geometry
from hpcphotoz.sources.surveys.survey import (
    BandFiles,
    FrameSet,
    Survey,
    SurveyNotes,
    find_files,
    missing_maps,
)

_BANDS = ("g", "r", "i", "z")
_BRICK = r"legacysurvey-(?P<brick>\d{4}[pm]\d{3})"
_ENDING = r"\.fits(\.fz|\.gz)?"
_PATTERNS = {
    **{kind: rf"{_BRICK}-{kind}-(?P<band>[griz]){_ENDING}" for kind in ("image", "invvar", "psfsize")},
    "maskbits": rf"{_BRICK}-maskbits{_ENDING}",
}
_EXPECTED = "a coadded brick of the Legacy Surveys"
_SATURATED = {"g": 2, "r": 3, "z": 4, "i": 14}
_ALL_BAD = {"g": 5, "r": 6, "z": 7, "i": 15}


def _find(folder: Path, bands: Sequence[str]) -> list[FrameSet]:
    found = find_files(folder, _PATTERNS, {band: band for band in _BANDS}, bands)
    sets = []
    for key, paths in sorted(found["image"].items()):
        noise, psf = found["invvar"].get(key, {}), found["psfsize"].get(key, {})
        mask = found["maskbits"].get(key, {}).get("")
        files = tuple(
            BandFiles(band, paths[band], mask, noise.get(band), psf.get(band))
            for band in bands
            if band in paths
        )
        sets.append(FrameSet(f"brick {key[0]}", files))
    return sets


def _read(files: BandFiles, window: Window | None) -> Frame:
    path = files.image
    with open_fits(path) as hdus:
        number = image_number(hdus, path)
        geometry = read_geometry(hdus[number].header, path, _EXPECTED)
        image = np.array(read_pixels(hdus, number, path, window), np.float32)
    saturated = all_bad = unusable = variance = psf = None
    if files.mask is not None:
        bits = read_map(files.mask, geometry.shape, window).astype(np.int64)
        saturated, all_bad = (bits & 1 << kind[files.band] != 0 for kind in (_SATURATED, _ALL_BAD))
    if files.noise is not None:
        inverse = read_map(files.noise, geometry.shape, window).astype(np.float32)
        unusable = ~(inverse > 0)
        variance = np.divide(1, inverse, out=np.zeros_like(inverse), where=~unusable)
    if files.psf is not None:
        psf = read_map(files.psf, geometry.shape, window).astype(np.float32)
    flags = pack_planes(saturated, all_bad, unusable)
    return Frame(path, files.band, image, geometry.cropped(window), flags, variance, psf)


def _read_geometry(files: BandFiles) -> Geometry:
    with open_fits(files.image) as hdus:
        header = hdus[image_number(hdus, files.image)].header
        return read_geometry(header, files.image, _EXPECTED)


def _notes(sets: Sequence[FrameSet]) -> SurveyNotes:
    return SurveyNotes(missing_maps(sets, mask="maskbits file", noise="invvar map"))


SURVEY = Survey(
    name="legacy",
    title="Legacy Surveys coadds",
    bands=_BANDS,
    usual_bands=("g", "r", "z"),
    reference="r",
    pixel_scale=0.262,
    planes=("SATUR", "ALLMASK", "no inverse variance"),
    file_names="legacysurvey-BRICK-image-B.fits.fz",
    calibration="nanomaggies",
    find=_find,
    read=_read,
    read_geometry=_read_geometry,
    notes=_notes,
)
