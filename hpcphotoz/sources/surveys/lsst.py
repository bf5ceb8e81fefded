"""Exposures as the LSST Science Pipelines write them, for HSC and Rubin coadds.

HDU 0 has no image; then follow IMAGE, MASK and VARIANCE by these EXTNAMEs (by EXTTYPE in older files), and
tables of an archive. The bit of each mask plane is in the mask's header: `MP_SAT = 1`. It differs between
releases, so it is read there.

The zero point is that of the archive's PhotoCalib (`calibrationMean`, nJy a count), or of FLUXMAG0 in a
header (counts of magnitude 0), or, if the unit of the image is nJy by BUNIT, 31.4. 1 nJy is AB 31.4. Objects
of one class share a table of the archive, and a coadd's archive has the PhotoCalib of each of its exposures
before its own: PHOTOCALIB_ID of the header is the id, and the index, the first table, has the rows of each.

Sources: afw's `ExposureInfo.cc`, `OutputArchive.cc` and `PhotoCalib.cc` (github.com/lsst/afw), and
dp1.lsst.io/products/images/deep_coadd.html and mask_planes.html.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.constants import ZERO_POINT
from hpcphotoz.sources.surveys.fits import Window, open_fits, read_pixels
from hpcphotoz.sources.surveys.frame import Frame, Geometry, pack_planes, read_geometry
from hpcphotoz.sources.surveys.survey import BandFiles

NJY_ZERO_POINT = 31.4  # AB magnitude of 1 nJy, as the pipelines define it
# SAT: saturated in part of the exposures. BAD and NO_DATA: nothing usable there. Cosmic rays (CR) and
# outliers (CLIPPED, REJECTED) are left out of a coadd, and INTRP is what was filled in: none of them spoils
# a pixel of a coadd, and together they would lose most stamps.
PLANES = ("SAT", "BAD", "NO_DATA")
_HDUS = ("IMAGE", "MASK", "VARIANCE")
_EXPECTED = "a coadd of the LSST pipelines"


def read_exposure(files: BandFiles, window: Window | None) -> Frame:
    """Reads and calibrates a coadd: image, mask, variance.

    Raises:
        BadInput: unreadable, truncated, not of the layout above, or without a zero point or a mask plane.
    """
    path = files.image
    with open_fits(path) as hdus:
        image_hdu, mask_hdu, variance_hdu = (_find_plane(hdus, name, path) for name in _HDUS)
        geometry = read_geometry(hdus[image_hdu].header, path, _EXPECTED)
        factor = 10 ** ((ZERO_POINT - NJY_ZERO_POINT) / 2.5) * _njy_per_count(hdus, image_hdu, path)
        image = np.asarray(read_pixels(hdus, image_hdu, path, window), np.float32) * np.float32(factor)
        mask = read_pixels(hdus, mask_hdu, path, window, geometry.shape)
        planes = dict(zip(PLANES, _planes(mask, hdus[mask_hdu].header, path), strict=True))
        variance = np.asarray(read_pixels(hdus, variance_hdu, path, window, geometry.shape), np.float32)
    variance = variance * np.float32(factor**2)
    planes["NO_DATA"] |= ~(np.isfinite(image) & np.isfinite(variance) & (variance > 0))
    flags = pack_planes(*planes.values())
    return Frame(path, files.band, image, geometry.cropped(window), flags, variance)


def read_exposure_geometry(files: BandFiles) -> Geometry:
    """Reads the place of a coadd from the header of its image."""
    with open_fits(files.image) as hdus:
        header = hdus[_find_plane(hdus, "IMAGE", files.image)].header
        return read_geometry(header, files.image, _EXPECTED)


def exposures(
    found: dict[tuple[str, ...], dict[str, Path]], bands: Sequence[str]
) -> list[tuple[str, tuple[BandFiles, ...]]]:
    """Returns the name and files of each patch, from tract, patch and band of the files' names."""
    return [
        (
            f"tract {tract} patch {patch}",
            tuple(BandFiles(band, paths[band], paths[band], paths[band]) for band in bands if band in paths),
        )
        for (tract, patch), paths in sorted(found.items())
    ]


def _planes(mask: npt.NDArray[Any], header: Any, path: Path) -> list[npt.NDArray[np.bool_]]:
    lacking = [f"MP_{plane}" for plane in PLANES if f"MP_{plane}" not in header]
    if lacking:
        raise BadInput(f"{path}: its mask has no plane {', '.join(lacking)}: expected {_EXPECTED}")
    return [mask & 1 << int(header[f"MP_{plane}"]) != 0 for plane in PLANES]


def _find_plane(hdus: Any, name: str, path: Path) -> int:
    for k, hdu in enumerate(hdus):
        if name in (hdu.name, hdu.header.get("EXTTYPE")):
            return k
    raise BadInput(f"{path}: has no HDU {name}: expected {_EXPECTED} ({', '.join(_HDUS)})")


def _njy_per_count(hdus: Any, image_hdu: int, path: Path) -> float:
    headers = (hdus[0].header, hdus[image_hdu].header)
    for header in headers:
        if header.get("PHOTOCALIB_ID"):  # 0: none
            return _archived_calibration(hdus, int(header["PHOTOCALIB_ID"]), path)
    for header in headers:
        if "FLUXMAG0" in header:
            flux = _positive(float(header["FLUXMAG0"]), "FLUXMAG0", path)
            return float(10 ** (NJY_ZERO_POINT / 2.5)) / flux
    if any(str(header.get("BUNIT", "")).strip().lower() == "njy" for header in headers):
        return 1.0
    raise BadInput(
        f"{path}: no zero point: neither PHOTOCALIB_ID, nor FLUXMAG0, nor BUNIT = 'nJy' in a header"
    )


def _archived_calibration(hdus: Any, number: int, path: Path) -> float:
    """Returns nJy a count by the PhotoCalib of that id in the archive."""
    index = next((k for k, hdu in enumerate(hdus) if hdu.header.get("EXTTYPE") == "ARCHIVE_INDEX"), None)
    entries = [] if index is None else [one for one in hdus[index].data if one["id"] == number]
    if index is None or len(entries) != 1:
        raise BadInput(f"{path}: its archive has no PhotoCalib of id {number}: expected {_EXPECTED}")
    calibration = hdus[index + int(entries[0]["cat.archive"])].data[int(entries[0]["row0"])]
    if not np.ravel(calibration["flags"])[0]:
        raise BadInput(f"{path}: its calibration varies over the image: expected a coadd")
    return _positive(float(calibration["calibrationMean"]), "calibrationMean", path)


def _positive(value: float, name: str, path: Path) -> float:
    if not 0 < value < np.inf:
        raise BadInput(f"{path}: {name} = {value:g}: the image has no photometric calibration")
    return value
