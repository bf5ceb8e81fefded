"""Writes small SDSS files like the survey, and names the folder of real ones."""

import bz2
import csv
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from hpcphotoz.data.format.manifest import Manifest
from hpcphotoz.sources.constants import BANDS
from hpcphotoz.sources.surveys.frame import Frame
from hpcphotoz.sources.surveys.ingest import ingest_images
from hpcphotoz.sources.surveys.sdss.frames import read_fpc
from hpcphotoz.sources.surveys.survey import BandFiles
from tests.helpers.paths import DATA

STRIPE82 = DATA / "sdss-stripe82"
real_frames = pytest.mark.skipif(
    not STRIPE82.is_dir(), reason=f"no SDSS frames at {STRIPE82} (HPCPHOTOZ_DATA names their parent)"
)

PLANES = "INTERP SATUR NOTCHECKED OBJECT BRIGHTOBJECT BINOBJECT CATOBJECT SUBTRACTED GHOST CR".split()
Spans = list[list[tuple[int, int, int]]]  # of each mask: row, first and last column
RA, DEC = 351.65, 0.10
SCALE = 0.396 / 3600  # deg
FLUX20 = {"u": 950.0, "g": 2700.0, "r": 1980.0, "i": 1590.0, "z": 264.0}
FLUX = {"u": 800.0, "g": 900.0, "r": 1000.0, "i": 1100.0, "z": 1200.0}  # nMgy of the injected source
# Each band's frame: offset in x and y (pixels), rotation (deg), scale.
LIE = {
    "u": (3.3, -2.6, 0.4, 1.0),
    "g": (-1.7, 0.45, -0.3, 1.01),
    "r": (0.0, 0.0, 0.0, 1.0),
    "i": (0.5, 0.5, 2.0, 0.99),
    "z": (-4.25, 6.1, -1.0, 1.001),
}
SHAPE = (220, 240)  # y, x
SKY_DN = 120.0
NOISE_DN = 4.0


def ingest_frames(out: Path, frames: Path, objects: Path, **options: Any) -> Manifest:
    """What `ingest sdss-frames --storage float32` does."""
    options = {"storage": "float32", **options}
    return ingest_images(out, "sdss", frames, objects, command="ingest sdss-frames", **options)


def read_frame(path: Path) -> Frame:
    """An fpC frame by itself, calibrated by its header."""
    return read_fpc(BandFiles(path.name.split("-")[2][0], path))


def header(band: str) -> fits.Header:
    dx, dy, turn, scale = LIE[band]
    # The camera's orientation: x runs to the north, y to the east.
    angle = np.radians(90 + turn)
    cd = SCALE * scale * np.array([[np.cos(angle), np.sin(angle)], [np.sin(angle), -np.cos(angle)]])
    values = {
        "SOFTBIAS": 1000,
        "SKY": SKY_DN,
        "FLUX20": FLUX20[band],
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CRPIX1": SHAPE[1] / 2 + dx,
        "CRPIX2": SHAPE[0] / 2 + dy,
        "CRVAL1": RA,
        "CRVAL2": DEC,
        "CD1_1": cd[0, 0],
        "CD1_2": cd[0, 1],
        "CD2_1": cd[1, 0],
        "CD2_2": cd[1, 1],
        "RADECSYS": "ICRS",
        "EQUINOX": 2000.0,
    }
    return fits.Header(values)


def write_set(
    folder: Path,
    sources: list[tuple[float, float]],
    run: int = 94,
    field: int = 12,
    camcol: int = 4,
    offset: float = 0.0,
    dr8: str = "",
) -> None:
    """Write five frames of Gaussian sources (FWHM 1.3") at these positions, like SDSS.

    Args:
        folder: output folder.
        sources: ra and dec, deg.
        run, field, camcol: numbers of the frame set.
        offset: deg by which the frames lie farther east.
        dr8: the suffix of DR8 frames with the same light, rather than of DR7.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(run)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for band in BANDS:
        head = header(band)
        head["CRVAL1"] = RA + offset
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = [head["CTYPE1"], head["CTYPE2"]]
        wcs.wcs.crpix, wcs.wcs.crval = [head["CRPIX1"], head["CRPIX2"]], [RA + offset, DEC]
        wcs.wcs.cd = [[head["CD1_1"], head["CD1_2"]], [head["CD2_1"], head["CD2_2"]]]
        counts = SKY_DN + 1000 + NOISE_DN * rng.standard_normal(SHAPE)
        for ra, dec in sources:
            px, py = wcs.wcs_world2pix(ra, dec, 0)
            sigma = 1.3 / 0.396 / 2.355 / LIE[band][3]
            profile = np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
            counts += FLUX[band] * FLUX20[band] / 10 * profile
        whole = np.rint(counts).clip(0, 65535).astype(np.uint16)
        if dr8:
            path = folder / f"frame-{band}-{run:06d}-{camcol}-{field:04d}.{dr8}"
            write_dr8(path, (whole - 1000.0 - SKY_DN) * 10 / FLUX20[band], head)
        else:
            path = folder / f"fpC-{run:06d}-{band}{camcol}-{field:04d}.fit"
            fits.PrimaryHDU(whole, head).writeto(path)


def write_dr8(path: Path, image: npt.NDArray[Any], head: fits.Header, hdus: int = 3) -> None:
    """Write a frame in the layout of DR8 and later: image, calibration of the columns and sky table."""
    head = head.copy()
    for key in ("SOFTBIAS", "SKY", "FLUX20"):
        head.remove(key, ignore_missing=True)
    head["CUNIT1"] = head["CUNIT2"] = "deg"
    height, width = image.shape
    sky = fits.BinTableHDU.from_columns(
        [
            fits.Column("ALLSKY", f"{8 * 6}E", dim="(8,6)", array=np.full((1, 6, 8), SKY_DN)),
            fits.Column("XINTERP", f"{width}E", array=np.linspace(0, 7, width)[None]),
            fits.Column("YINTERP", f"{height}E", array=np.linspace(0, 5, height)[None]),
        ]
    )
    layout = [
        fits.PrimaryHDU(image.astype(">f4"), head),
        fits.ImageHDU(np.full(width, 0.005, np.float32)),
        sky,
    ]
    buffer = io.BytesIO()
    fits.HDUList(layout[:hdus]).writeto(buffer)
    raw = buffer.getvalue()
    if path.suffix == ".bz2":
        raw = bz2.compress(raw)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_mask(path: Path, planes: dict[str, Spans], row0: int = 0) -> Path:
    """Write an fpM file like SDSS."""
    hdus: list[fits.PrimaryHDU | fits.BinTableHDU] = [fits.PrimaryHDU()]
    for name in PLANES:
        masks = planes.get(name, [])
        blobs = np.empty(len(masks), object)
        for k, spans in enumerate(masks):
            blobs[k] = np.frombuffer(np.array(spans, ">i2").tobytes(), np.uint8)
        columns = [fits.Column("nspan", "1J", array=np.array([len(spans) for spans in masks], np.int32))]
        columns += [fits.Column(key, "1J", array=np.full(len(masks), row0)) for key in ("row0", "col0")]
        columns += [fits.Column("s", "1PB()", array=blobs)]
        hdus.append(fits.BinTableHDU.from_columns(columns))
    names = [*(f"S_MASK_{name}" for name in PLANES), "S_NMASK_TYPES"]
    columns = [fits.Column("attributeName", "31A", array=names), fits.Column("Value", "1J", array=range(11))]
    hdus.append(fits.BinTableHDU.from_columns(columns))
    fits.HDUList(hdus).writeto(path)
    return path


def write_tsfield(
    folder: Path,
    nmgy: npt.ArrayLike,  # (band,) nanomaggies of a count
    run: int = 94,
    field: int = 12,
    camcol: int = 4,
    rerun: int = 40,
    **changes: npt.ArrayLike,
) -> Path:
    """A tsField file with these zero points, at airmasses and extinctions that differ from band to band."""
    airmass, kk = np.array([1.19, 1.2, 1.21, 1.22, 1.23]), np.array([0.46, 0.14, 0.07, 0.05, 0.03])
    values = {
        "airmass": airmass,
        "aa": 2.5 * np.log10(np.asarray(nmgy) * 1e-9 * 53.907456) - kk * airmass,
        "aaErr": np.full(5, 0.002),
        "kk": kk,
        "psf_width": np.array([1.44, 1.34, 1.18, 1.15, 1.22]),
        **changes,
    }
    columns = [fits.Column("field", "1J", array=[field])]
    columns += [fits.Column(name, "5D", array=np.reshape(value, (1, 5))) for name, value in values.items()]
    path = folder / f"tsField-{run:06d}-{camcol}-{rerun}-{field:04d}.fit"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(path, overwrite=True)
    return path


def write_photofield(
    folder: Path, nmgy: npt.ArrayLike, fields: tuple[int, ...] = (11, 12, 13), run: int = 94
) -> Path:
    """A photoField file: these zero points in the row of field 12, other ones in the other rows."""
    rows = np.array([np.asarray(nmgy) * (1 if field == 12 else 7) for field in fields])
    columns = [
        fits.Column("FIELD", "1I", array=fields),
        fits.Column("NMGYPERCOUNT", "5E", array=rows),
        fits.Column("PSFWIDTH", "5E", array=np.full((len(fields), 5), 1.3)),
    ]
    path = folder / f"photoField-{run:06d}-4.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(path)
    return path


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def centroids(images: npt.NDArray[Any], radius: float) -> npt.NDArray[Any]:
    """(..., 2): mean x, y from the stamp's centre within a radius, pixels."""
    size = images.shape[-1]
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    light = np.where(x**2 + y**2 < radius**2, images, 0.0)
    total = light.sum(axis=(-2, -1))
    return np.stack([(light * axis).sum(axis=(-2, -1)) / total for axis in (x, y)], axis=-1)
