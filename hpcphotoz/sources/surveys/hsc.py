"""The Hyper Suprime-Cam Subaru Strategic Program: coadded patches of PDR1 to PDR3.

- Files: `deepCoadd-results/HSC-I/9813/4,5/calexp-HSC-I-9813-4,5.fits` (tract 9813, patch 4,5), and those of
  the third generation of the pipelines, `deepCoadd_calexp_9813_40_i_*.fits`. Layout: `lsst.py`.
- Zero point: FLUXMAG0 = 6.3095734e10 in PDR1 to PDR3, AB 27.
- Bands g, r, i, z, y; HSC-R2 and HSC-I2, the filters of later years, are r and i. 0.168" a pixel, TAN.
- Patches of 4200 pixels overlap by 100, tracts by more.
- The variance has no covariance: the scatter of sky pixels is about 1.1 times its root.
- No header has the PSF's width.

Sources: hscla.mtk.nao.ac.jp/doc and hsc-release.mtk.nao.ac.jp/doc (available data, FAQ); Aihara et al. 2022,
PASJ 74, 247. Tried on synthetic files only.
"""

from collections.abc import Sequence
from pathlib import Path

from hpcphotoz.sources.surveys import lsst
from hpcphotoz.sources.surveys.survey import FrameSet, Survey, find_files

_FILTERS = {
    **{f"HSC-{name.upper()}": name for name in "grizy"},
    **{"HSC-R2": "r", "HSC-I2": "i"},
    **{name: name for name in "grizy"},
}
_PATTERNS = {
    "second": r"calexp-(?P<band>HSC-([GRIZY]|R2|I2))-(?P<tract>\d+)-(?P<patch>\d+,\d+)\.fits(\.gz|\.fz)?",
    "third": r"deepCoadd_calexp_(?P<tract>\d+)_(?P<patch>\d+)_(?P<band>[grizy])_.*\.fits(\.gz|\.fz)?",
}


def _find(folder: Path, bands: Sequence[str]) -> list[FrameSet]:
    found = find_files(folder, _PATTERNS, _FILTERS, bands)
    return [FrameSet(name, files) for kind in _PATTERNS for name, files in lsst.exposures(found[kind], bands)]


SURVEY = Survey(
    name="hsc",
    title="HSC coadds",
    bands=tuple("grizy"),
    usual_bands=tuple("grizy"),
    reference="i",
    pixel_scale=0.168,
    planes=lsst.PLANES,
    file_names="calexp-HSC-B-TRACT-X,Y.fits or deepCoadd_calexp_TRACT_PATCH_B_*.fits",
    calibration="FLUXMAG0 or PhotoCalib of each file",
    find=_find,
    read=lsst.read_exposure,
    read_geometry=lsst.read_exposure_geometry,
)
