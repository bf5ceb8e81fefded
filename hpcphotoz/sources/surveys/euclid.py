"""Euclid: mosaics of the MER processing function, of the quick release Q1.

- Files: `EUC_MER_BGSUB-MOSAIC-VIS_TILE102018211-ACBD03_20241018T142710.276838Z_00.00.fits`, background
  subtracted, and its maps `EUC_MER_MOSAIC-VIS-RMS_TILE...` and `EUC_MER_MOSAIC-VIS-FLAG_TILE...`, each with
  the image in HDU 0. VIS is one of VIS, NIR-Y, NIR-J, NIR-H, and of the filters of surveys from the ground
  (DES-G ...), which MER brings onto the same grid; of these, g, r, i and z of DES are read.
- Zero point: MAGZERO of the header, AB.
- Bands VIS, Y, J, H, and g, r, i, z; 0.1" a pixel for all, TAN, tiles of 32' with overlaps.
- RMS: standard deviation in the image's unit; not finite or 0: no data.
- FLAG: bit 0 is INVALID, pixels with an arbitrary value that shall not be used for anything (the table of VIS
  flags). What the other bits mean in mosaics is not documented for all bands, so they are not heeded.
- The PSF is in files of its own (CATALOG-PSF), which are not read.

Sources: euclid.esac.esa.int/dr/q1/dpdd (MER background-subtracted mosaic), /msp/dpdd (VIS flag map), IRSA's
tutorials (github.com/Caltech-IPAC/irsa-tutorials). Tried on synthetic files only.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpcphotoz.sources.constants import ZERO_POINT
from hpcphotoz.sources.surveys.fits import (
    Window,
    header_numbers,
    open_fits,
    read_header,
    read_map,
    read_pixels,
)
from hpcphotoz.sources.surveys.frame import Frame, Geometry, pack_planes, read_geometry
from hpcphotoz.sources.surveys.survey import (
    BandFiles,
    FrameSet,
    Survey,
    SurveyNotes,
    find_files,
    missing_maps,
)

_FILTERS = {
    "VIS": "VIS",
    **{f"NIR-{name}": name for name in "YJH"},
    **{f"DES-{name.upper()}": name for name in "griz"},
}
_BAND = f"(?P<band>{'|'.join(_FILTERS)})"
_REST = r"_TILE(?P<tile>\d+)-.*\.fits(\.gz|\.fz)?"
_PATTERNS = {
    "image": rf"EUC_MER_BGSUB-MOSAIC-{_BAND}{_REST}",
    "RMS": rf"EUC_MER_MOSAIC-{_BAND}-RMS{_REST}",
    "FLAG": rf"EUC_MER_MOSAIC-{_BAND}-FLAG{_REST}",
}
_EXPECTED = "a background-subtracted mosaic of Euclid's MER"


def _find(folder: Path, bands: Sequence[str]) -> list[FrameSet]:
    found = find_files(folder, _PATTERNS, _FILTERS, bands)
    sets = []
    for key, paths in sorted(found["image"].items()):
        flag, rms = found["FLAG"].get(key, {}), found["RMS"].get(key, {})
        files = tuple(
            BandFiles(band, paths[band], flag.get(band), rms.get(band)) for band in bands if band in paths
        )
        sets.append(FrameSet(f"tile {key[0]}", files))
    return sets


def _read(files: BandFiles, window: Window | None) -> Frame:
    path = files.image
    with open_fits(path) as hdus:
        header = hdus[0].header
        geometry = read_geometry(header, path, _EXPECTED)
        zero_point = header_numbers(header, ("MAGZERO",), path, _EXPECTED)["MAGZERO"]
        factor = np.float32(10 ** ((ZERO_POINT - zero_point) / 2.5))
        image = np.array(read_pixels(hdus, 0, path, window), np.float32)
    image *= factor
    invalid = unusable = variance = None
    if files.mask is not None:
        invalid = read_map(files.mask, geometry.shape, window) & 1 != 0
    if files.noise is not None:
        variance = read_map(files.noise, geometry.shape, window).astype(np.float32)
        variance *= factor
        unusable = ~(np.isfinite(variance) & (variance > 0))
        variance *= variance
        variance[unusable] = 0
    flags = pack_planes(invalid, unusable)
    return Frame(path, files.band, image, geometry.cropped(window), flags, variance)


def _read_geometry(files: BandFiles) -> Geometry:
    return read_geometry(read_header(files.image), files.image, _EXPECTED)


def _notes(sets: Sequence[FrameSet]) -> SurveyNotes:
    return SurveyNotes(missing_maps(sets, mask="FLAG map", noise="RMS map"))


SURVEY = Survey(
    name="euclid",
    title="Euclid MER mosaics",
    bands=tuple(_FILTERS.values()),
    usual_bands=("VIS", "Y", "J", "H"),
    reference="VIS",
    pixel_scale=0.1,
    planes=("INVALID", "no RMS"),
    file_names="EUC_MER_BGSUB-MOSAIC-FILTER_TILE*.fits",
    calibration="MAGZERO of each file",
    find=_find,
    read=_read,
    read_geometry=_read_geometry,
    notes=_notes,
)
