"""Photometric calibration of SDSS frames: the final one where its file is there, the header's otherwise.

- `tsField-RRRRRR-C-RERUN-FFFF.fit` (DR7): one row for the field, with `aa`, `kk` and `airmass` of each band.
  A flux in units of that of magnitude 0 is counts / 53.907456 s 10^(0.4 (aa + kk airmass)).
- `photoField-RRRRRR-C.fits` (DR8 and later): one row a field, with `nMgyPerCount`, of the recalibration of
  the whole survey (Padmanabhan et al. 2008, ApJ 674, 1217).
- FLUX20 in the header of an fpC frame: counts of a star of magnitude 20, preliminary. On the two Stripe 82
  runs at hand it makes fluxes 5 and 10 % too bright in u, 3 % in g, 2 to 3 % in z, 0.2 to 2 % in r and i,
  measured against tsField.

`asTrans` files hold astrometry only. No offset from SDSS to AB magnitudes is applied (-0.04 in u, +0.02 in
z), as in the SDSS's own frames in nanomaggies.

Sources: "Photometric flux calibration" of the SDSS DR7 pages (classic.sdss.org/dr7/algorithms/fluxcal.html);
the data model of photoField (data.sdss.org/datamodel). tsField is tried on real files, photoField on
synthetic files only.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.constants import BANDS
from hpcphotoz.sources.surveys.fits import header_numbers, open_fits
from hpcphotoz.sources.surveys.survey import BandFiles, FrameSet

EXPOSURE = 53.907456  # s, of every frame
# mag; an error of a zero point that is worth a line. Run 6377 of Stripe 82 has 0.036 in u.
_LARGE_ERROR = 0.02
_TSFIELD, _PHOTOFIELD = "tsField", "photoField"
_COLUMNS = ("field", "aa", "kk", "airmass", "aaerr", "psfwidth", "nmgypercount")  # by plain name
_PSF_SUMMARY = 6  # HDU of psField


def calibration_kind(files: BandFiles) -> str:
    """Returns where a frame's zero point comes from: tsField, photoField, FLUX20, or "frame" (DR8)."""
    if files.image.name.startswith("frame-"):
        return "frame"
    return "FLUX20" if files.calibration is None else files.calibration.name.partition("-")[0]


def nmgy_per_count(files: BandFiles, header: Any) -> float:
    """Returns the nanomaggies of one count of an fpC frame.

    Raises:
        BadInput: the calibration file is unreadable or has no usable figures of this field, or there is none
            and the header has no FLUX20 above 0.
    """
    path, kind = files.calibration, calibration_kind(files)
    if path is None:
        flux20 = header_numbers(header, ("FLUX20",), files.image, "an fpC frame of SDSS DR7")["FLUX20"]
        if not flux20 > 0:
            raise BadInput(f"{files.image}: FLUX20 = {flux20:g}: the frame has no photometric calibration")
        return 10.0 / flux20
    if kind == _PHOTOFIELD:
        value = _figures(files, ("nMgyPerCount",))[0]
    else:
        aa, kk, airmass = _figures(files, ("aa", "kk", "airmass"))
        value = 1e9 * 10 ** (0.4 * (aa + kk * airmass)) / EXPOSURE
    # Outside these limits no photometric night has a frame: 0.0035 in g to 0.04 in z.
    if not 1e-4 < value < 1:
        raise BadInput(f"{path}: {value:.3g} nMgy a count in {files.band}: not a calibration of this field")
    return value


def psf_width(files: BandFiles) -> float | None:
    """Returns the PSF's effective full width at half maximum in the field, arcsec; None: no file gives it.

    It is `psf_width` of tsField and psField, and `psfWidth` of photoField.

    Raises:
        BadInput: such a file is unreadable, or the width is no number above 0.
    """
    if files.calibration is not None:
        return _figures(files, ("psf_width",))[0]
    if files.psf is not None:
        with open_fits(files.psf) as hdus:
            width = float(hdus[_PSF_SUMMARY].data[0]["psf_width"][BANDS.index(files.band)])
        if not width > 0:
            raise BadInput(f"{files.psf}: psf_width = {width:g} in {files.band}: a positive number expected")
        return width
    return None


def calibration_notes(sets: Sequence[FrameSet]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Returns lines on frames of preliminary or uncertain calibration, and how many frames have which kind.

    Raises:
        BadInput: as `nmgy_per_count`.
    """
    counts: dict[str, int] = {}
    errors: list[tuple[float, str]] = []
    for one in sets:
        for files in one.files:
            kind = calibration_kind(files)
            counts[kind] = counts.get(kind, 0) + 1
        if calibration_kind(one.files[0]) == _TSFIELD:
            (row,) = _field_row(one.files[0], ("aaErr",))
            errors += [(float(row[BANDS.index(band)]), f"{band} of {one.name}") for band in one.bands]
    lines = []
    if counts.get("FLUX20"):
        lines.append(
            f"{counts['FLUX20']} of {sum(counts.values())} frames have no tsField or photoField file: their "
            "fluxes are by FLUX20 of the header, which is preliminary (up to 10 % too bright in u, 3 % in g "
            "and z)"
        )
    large = [error for error in errors if error[0] > _LARGE_ERROR]
    if large:
        worst, place = max(large)
        lines.append(
            f"{len(large)} of {sum(counts.values())} frames have a zero point that is uncertain by more than "
            f"{_LARGE_ERROR:g} mag by their tsField; the most: {worst:.3f} in {place}"
        )
    return tuple(lines), counts


def _figures(files: BandFiles, names: tuple[str, ...]) -> list[float]:
    """Returns a band's values of columns of its calibration file.

    Raises:
        BadInput: as `_field_row`, or a value that is no number.
    """
    values = [float(row[BANDS.index(files.band)]) for row in _field_row(files, names)]
    if not np.isfinite(values).all():
        raise BadInput(
            f"{files.calibration}: {', '.join(names)} of {files.band} = {values}: finite numbers expected"
        )
    return values


def _field_row(files: BandFiles, names: tuple[str, ...]) -> list[npt.NDArray[np.float64]]:
    """Returns the five bands' values of columns of the calibration file, in the row of the frame's field.

    Raises:
        BadInput: unreadable, without a column or without the field.
    """
    path = files.calibration
    assert path is not None
    try:
        stat = path.stat()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    columns = _columns(path, stat.st_mtime_ns, stat.st_size)
    lacking = [name for name in (*names, "field") if _plain(name) not in columns]
    if lacking:
        raise BadInput(f"{path}: its table lacks {', '.join(lacking)}: expected an SDSS field table")
    field = int(files.image.name.partition(".")[0][-4:])
    rows = np.flatnonzero(columns["field"] == field)
    if not len(rows):
        raise BadInput(f"{path}: has no row of field {field}: is it the file of {files.image.name}?")
    values = [np.array(columns[_plain(name)][rows[0]], np.float64) for name in names]
    if any(one.shape != (len(BANDS),) for one in values):
        raise BadInput(f"{path}: {', '.join(names)}: five values a field expected")
    return values


@lru_cache(maxsize=16)
def _columns(path: Path, modified_ns: int, size: int) -> dict[str, npt.NDArray[Any]]:
    """Returns the columns of a calibration file that are used here, by plain name: five frames share a file.

    Raises:
        BadInput: it cannot be read.
    """
    with open_fits(path) as hdus:
        table = hdus[1].data
        return {_plain(name): np.array(table[name]) for name in table.dtype.names if _plain(name) in _COLUMNS}


def _plain(name: str) -> str:
    """Returns a column's name as it is the same in files of DR7 and DR8: psf_width, psfWidth, PSFWIDTH."""
    return name.lower().replace("_", "")
