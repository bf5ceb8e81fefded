"""Rubin Observatory's LSST: coadded patches of Data Preview 0.2 (simulated) and Data Preview 1.

- Files, as the Butler retrieves them: `deepCoadd_calexp_TRACT_PATCH_B_*.fits` (DP0.2) and
  `deep_coadd_TRACT_PATCH_B_*.fits` (DP1). Layout: `lsst.py`. Coadds of cells (DP2) have another.
- Unit: counts of AB 27 in DP0.2, nJy in DP1; either way as the file's own PhotoCalib says.
- Bands u, g, r, i, z, y; 0.2" a pixel; each tract has its own TAN.
- Patches overlap at their edges.
- No header has the PSF's width.

Sources: dp1.lsst.io/products/images, dp0-2.lsst.io. Tried on synthetic files only.
"""

from collections.abc import Sequence
from pathlib import Path

from hpcphotoz.sources.surveys import lsst
from hpcphotoz.sources.surveys.survey import FrameSet, Survey, find_files

_PATTERN = (
    r"(deepCoadd_calexp|deep_coadd)_(?P<tract>\d+)_(?P<patch>\d+)_(?P<band>[ugrizy])_.*\.fits(\.gz|\.fz)?"
)
_BANDS = tuple("ugrizy")


def _find(folder: Path, bands: Sequence[str]) -> list[FrameSet]:
    found = find_files(folder, {"coadd": _PATTERN}, {band: band for band in _BANDS}, bands)
    return [FrameSet(name, files) for name, files in lsst.exposures(found["coadd"], bands)]


SURVEY = Survey(
    name="rubin",
    title="Rubin coadds",
    bands=_BANDS,
    usual_bands=_BANDS,
    reference="i",
    pixel_scale=0.2,
    planes=lsst.PLANES,
    file_names="deepCoadd_calexp_TRACT_PATCH_B_*.fits or deep_coadd_TRACT_PATCH_B_*.fits",
    calibration="PhotoCalib, FLUXMAG0 or BUNIT of each file",
    find=_find,
    read=lsst.read_exposure,
    read_geometry=lsst.read_exposure_geometry,
)
