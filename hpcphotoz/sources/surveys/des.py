"""The Dark Energy Survey: coadded tiles of DR1 and DR2.

- Files: `DES0000+0209_r4907p01_g.fits.fz`, tile-compressed, with the images SCI, MSK and WGT.
- Zero point: AB 30 in every tile; MAGZERO of the header is used if it is there.
- Bands g, r, i, z, Y; 10,000 pixels of 0.263" a side, TAN. TPV of single exposures is read too.
- MSK: 0 is a good pixel, and any bit is fatal. The bits are those of single exposures; a coadd keeps them
  where no exposure was good. WGT: inverse variance; 0 is no data.
- Tiles overlap by about an arcminute.
- No header is known to have the PSF's width.

Sources: DR1 (Abbott et al. 2018, ApJS 239, 18), DR2 (Abbott et al. 2021, ApJS 255, 20), the pipeline
(Morganson et al. 2018, PASP 130, 074501), `mask_bits.h` of github.com/DarkEnergySurvey/pixcorrect. Tried on
synthetic files only.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpcphotoz.sources.constants import ZERO_POINT
from hpcphotoz.sources.surveys.fits import (
    Window,
    find_hdu,
    header_numbers,
    open_fits,
    read_header,
    read_pixels,
)
from hpcphotoz.sources.surveys.frame import Frame, Geometry, pack_planes, read_geometry
from hpcphotoz.sources.surveys.survey import BandFiles, FrameSet, Survey, find_files

_PATTERN = r"(?P<tile>DES\d{4}[+-]\d{4})_r\d+p\d+_(?P<band>[grizY])\.fits(\.fz|\.gz)?"
_BANDS = ("g", "r", "i", "z", "Y")
_EXPECTED = "a coadded tile of DES (SCI, MSK, WGT)"
_DES_ZERO_POINT = 30.0


def _find(folder: Path, bands: Sequence[str]) -> list[FrameSet]:
    found = find_files(folder, {"tile": _PATTERN}, {band: band for band in _BANDS}, bands)["tile"]
    return [
        FrameSet(
            f"tile {tile}",
            tuple(BandFiles(band, paths[band], paths[band], paths[band]) for band in bands if band in paths),
        )
        for (tile,), paths in sorted(found.items())
    ]


def _read(files: BandFiles, window: Window | None) -> Frame:
    path = files.image
    with open_fits(path) as hdus:
        header = find_hdu(hdus, "SCI", path).header
        geometry = read_geometry(header, path, _EXPECTED)
        zero_point = _DES_ZERO_POINT
        if "MAGZERO" in header:
            zero_point = header_numbers(header, ("MAGZERO",), path, _EXPECTED)["MAGZERO"]
        factor = 10 ** ((ZERO_POINT - zero_point) / 2.5)
        image = np.asarray(read_pixels(hdus, "SCI", path, window), np.float32) * np.float32(factor)
        mask = read_pixels(hdus, "MSK", path, window, geometry.shape) != 0
        weight = np.asarray(read_pixels(hdus, "WGT", path, window, geometry.shape), np.float32)
    usable = np.isfinite(image) & (weight > 0)
    variance = np.divide(np.float32(factor**2), weight, out=np.zeros_like(weight), where=usable)
    flags = pack_planes(mask, ~usable)
    return Frame(path, files.band, image, geometry.cropped(window), flags, variance)


def _read_geometry(files: BandFiles) -> Geometry:
    return read_geometry(read_header(files.image, "SCI"), files.image, _EXPECTED)


SURVEY = Survey(
    name="des",
    title="DES coadds",
    bands=_BANDS,
    usual_bands=_BANDS,
    reference="r",
    pixel_scale=0.263,
    planes=("MSK", "no weight"),
    file_names="DEShhmm+ddmm_rNpN_B.fits.fz",
    calibration="MAGZERO of each file, or AB 30",
    find=_find,
    read=_read,
    read_geometry=_read_geometry,
)
