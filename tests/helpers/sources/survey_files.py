"""Small files of each survey in its documented layout, with stars of known flux, for tests of the readers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.wcs import WCS

Array = npt.NDArray[Any]
RA, DEC = 150.1, 2.2
SHAPE = (180, 200)  # y, x
NOISE = 1e-3  # nMgy a pixel
FWHM_PX = 4.0


@dataclass
class Sky:
    """What one tile sees: stars, noise and bad pixels, the same in all bands but for the flux."""

    scale: float  # arcsec a pixel
    stars: list[tuple[float, float]]  # ra, dec, deg
    flux: Mapping[str, float]  # nMgy a band
    shift: tuple[float, float] = (0.0, 0.0)  # pixels by which the tile's centre lies off RA, DEC
    bad: list[tuple[int, int]] = field(default_factory=list)  # y, x
    projection: str = "TAN"  # or TAN-SIP, TPV: with 2 % more scale at one edge, and 2 % less at the other
    turn: float = 0.0  # deg

    def wcs(self) -> WCS:
        return WCS(self.header())

    def header(self) -> fits.Header:
        cards = fits.Header()
        cards["CTYPE1"], cards["CTYPE2"] = f"RA---{self.projection}", f"DEC--{self.projection}"
        cards["CRVAL1"], cards["CRVAL2"] = RA, DEC
        cards["CRPIX1"], cards["CRPIX2"] = SHAPE[1] / 2 - self.shift[0], SHAPE[0] / 2 - self.shift[1]
        cosine, sine = np.cos(np.radians(self.turn)), np.sin(np.radians(self.turn))
        cd = self.scale / 3600 * np.array([[-cosine, sine], [sine, cosine]])
        cards.update({f"CD{i}_{j}": cd[i - 1, j - 1] for i in (1, 2) for j in (1, 2)})
        cards["CUNIT1"] = cards["CUNIT2"] = "deg"
        if self.projection == "TAN-SIP":
            cards.update({"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-4, "B_1_1": 5e-5, "B_0_2": -3e-5})
        if self.projection == "TPV":
            bend = 1e-4 * 3600 / self.scale  # per deg
            cards.update({"PV1_1": 1.0, "PV1_4": bend, "PV2_1": 1.0, "PV2_5": bend / 2, "PV2_6": -bend / 3})
        return cards

    def image(self, band: str, seed: int = 0) -> Array:
        """(y, x) nMgy a pixel."""
        return draw_stars(self.wcs(), SHAPE, self.stars, self.flux[band], seed)

    def bad_pixels(self) -> Array:
        mask = np.zeros(SHAPE, np.bool_)
        for y, x in self.bad:
            mask[y, x] = True
        return mask


def draw_stars(
    wcs: WCS, shape: tuple[int, int], stars: list[tuple[float, float]], flux: float, seed: int = 0
) -> Array:
    """(y, x) nMgy a pixel: noise, and Gaussian stars whose pixels are FWHM_PX wide everywhere."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = NOISE * np.random.default_rng(seed).standard_normal(shape)
    sigma = FWHM_PX / 2.3548
    for ra, dec in stars:
        px, py = wcs.all_world2pix(ra, dec, 0)
        profile = np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
        image += flux * profile
    return np.asarray(image)


def write_legacy(folder: Path, sky: Sky, brick: str = "1501p022") -> None:
    """A brick of DR9 or DR10: tile-compressed images, their inverse variance and PSF width, one maskbits."""
    bits, saturated = np.zeros(SHAPE, np.int16), {"g": 2, "r": 3, "z": 4, "i": 14}
    for band in sky.flux:
        bits[sky.bad_pixels()] |= 1 << saturated[band]
        head = sky.header()
        maps = {
            "image": sky.image(band),
            "invvar": np.full(SHAPE, NOISE**-2),
            "psfsize": np.full(SHAPE, FWHM_PX * sky.scale),
        }
        for kind, pixels in maps.items():
            _write_compressed(
                folder / f"legacysurvey-{brick}-{kind}-{band}.fits.fz", [("", pixels.astype("f4"), head)]
            )
    bits |= 1  # NPRIMARY: the overlap with other bricks has good pixels
    _write_compressed(folder / f"legacysurvey-{brick}-maskbits.fits.fz", [("MASKBITS", bits, sky.header())])


_PLANES = {"BAD": 0, "SAT": 5, "INTRP": 2, "CR": 3, "DETECTED": 1, "NO_DATA": 8}


def write_exposure(
    path: Path, sky: Sky, band: str, zero_point: float, calibration: str = "PhotoCalib"
) -> None:
    """A coadd of the LSST pipelines; `calibration` says where its zero point is."""
    factor = 10 ** ((zero_point - 22.5) / 2.5)  # counts a nMgy
    mask = np.full(SHAPE, 1 << _PLANES["DETECTED"], np.int32)
    mask[sky.bad_pixels()] |= 1 << _PLANES["SAT"]
    mask_head = sky.header()
    mask_head.update({f"HIERARCH MP_{name}": bit for name, bit in _PLANES.items()})
    primary = fits.PrimaryHDU()
    image_head = sky.header()
    hdus: list[Any] = [primary]
    if calibration == "FLUXMAG0":
        primary.header["FLUXMAG0"] = 10 ** (zero_point / 2.5)
    elif calibration == "BUNIT":
        image_head["BUNIT"] = "nJy"
    hdus += [
        fits.CompImageHDU((factor * sky.image(band)).astype("f4"), image_head, name="IMAGE", **_LOSSLESS),
        fits.CompImageHDU(mask, mask_head, name="MASK", **_TILES),
        fits.CompImageHDU(
            np.full(SHAPE, (factor * NOISE) ** 2, "f4"), sky.header(), name="VARIANCE", **_LOSSLESS
        ),
    ]
    if calibration == "PhotoCalib":
        primary.header["HIERARCH PHOTOCALIB_ID"] = 7
        hdus += _archive(10 ** ((31.4 - zero_point) / 2.5))
    if calibration == "FLUXMAG0":  # files of older pipelines name their planes so
        for hdu in hdus[1:]:
            hdu.header["EXTTYPE"] = hdu.header.pop("EXTNAME")
    fits.HDUList(hdus).writeto(path)


def _archive(njy_per_count: float) -> list[fits.BinTableHDU]:
    """The archive of a coadd: the calibrations of two exposures come before its own, which has the id 7."""
    index = [
        fits.Column("id", "J", array=[3, 5, 7, 8]),
        fits.Column("cat.archive", "J", array=[2, 2, 2, 1]),
        fits.Column("cat.persistable", "J", array=[0, 0, 0, 0]),
        fits.Column("row0", "J", array=[0, 1, 2, 0]),
        fits.Column("nrows", "J", array=[1, 1, 1, 1]),
        fits.Column("name", "16A", array=["PhotoCalib"] * 3 + ["SkyWcs"]),
    ]
    calibrations = [
        fits.Column("flags", "1X", array=np.array([[False], [True], [True]])),
        fits.Column("calibrationMean", "D", array=[0.31, 0.62, njy_per_count]),
        fits.Column("calibrationErr", "D", array=[0.0, 0.0, 0.0]),
    ]
    wcs = [fits.Column("wcs", "B", array=[0])]
    tables = [fits.BinTableHDU.from_columns(one) for one in (index, wcs, calibrations)]
    names = (("ARCHIVE_INDEX", "ARCHIVE_INDEX"), ("ARCHIVE_DATA", "SkyWcs"), ("ARCHIVE_DATA", "PhotoCalib"))
    for table, (kind, name) in zip(tables, names, strict=True):
        table.header["EXTTYPE"], table.header["EXTNAME"] = kind, name
    return tables


def write_hsc(folder: Path, sky: Sky, patch: str = "4,5") -> None:
    for band in sky.flux:
        name = f"HSC-{band.upper()}{'2' if band == 'i' else ''}"
        write_exposure(folder / f"calexp-{name}-9813-{patch}.fits", sky, band, 27.0, "FLUXMAG0")


def write_rubin(folder: Path, sky: Sky, patch: int = 24) -> None:
    for band in sky.flux:
        name = f"deep_coadd_5063_{patch}_{band}_lsst_cells_v1_LSSTComCam.fits"
        write_exposure(folder / name, sky, band, 31.4, "BUNIT" if band == "u" else "PhotoCalib")


def write_des(folder: Path, sky: Sky, tile: str = "DES1000+0212") -> None:
    factor = 10 ** ((30.0 - 22.5) / 2.5)
    for band in sky.flux:
        head = sky.header()
        head["MAGZERO"] = 30.0
        planes = [
            ("SCI", (factor * sky.image(band)).astype("f4"), head),
            ("MSK", sky.bad_pixels().astype(np.int32) * 2, sky.header()),
            ("WGT", np.full(SHAPE, (factor * NOISE) ** -2, "f4"), sky.header()),
        ]
        _write_compressed(folder / f"{tile}_r4907p01_{band}.fits.fz", planes)


_MAGZERO = {"VIS": 24.57, "Y": 29.8, "J": 30.0, "H": 29.9}


def write_euclid(folder: Path, sky: Sky, tile: int = 102018211) -> None:
    for band in sky.flux:
        factor = 10 ** ((_MAGZERO[band] - 22.5) / 2.5)
        name = band if band == "VIS" else f"NIR-{band}"
        rest = f"_TILE{tile}-ACBD03_20241018T142710.276838Z_00.00.fits"
        head = sky.header()
        head["MAGZERO"] = _MAGZERO[band]
        rms = np.full(SHAPE, factor * NOISE, "f4")
        flag = np.where(sky.bad_pixels(), 1 | 8, 2 | 16).astype(np.int32)
        fits.PrimaryHDU((factor * sky.image(band)).astype("f4"), head).writeto(
            folder / f"EUC_MER_BGSUB-MOSAIC-{name}{rest}"
        )
        for kind, pixels in (("RMS", rms), ("FLAG", flag)):
            fits.PrimaryHDU(pixels, sky.header()).writeto(folder / f"EUC_MER_MOSAIC-{name}-{kind}{rest}")


@dataclass(frozen=True)
class Written:
    """How a survey's files are written for tests."""

    write: Callable[..., None]
    bands: tuple[str, ...]
    scale: float
    other: Any  # name of a second tile
    plane: str  # that flags `Sky.bad`


WRITTEN = {
    "legacy": Written(write_legacy, ("g", "r", "z"), 0.262, "1502p022", "SATUR"),
    "hsc": Written(write_hsc, ("g", "r", "i", "z", "y"), 0.168, "4,6", "SAT"),
    "rubin": Written(write_rubin, ("u", "g", "r", "i", "z", "y"), 0.2, 25, "SAT"),
    "des": Written(write_des, ("g", "r", "i", "z", "Y"), 0.263, "DES1001+0212", "MSK"),
    "euclid": Written(write_euclid, ("VIS", "Y", "J", "H"), 0.1, 102018212, "INVALID"),
}
# Quantised tiles would add noise of their own; surveys choose steps far below theirs.
_TILES: dict[str, Any] = {"tile_shape": (60, SHAPE[1])}  # rows one by one take ten times as long
_LOSSLESS: dict[str, Any] = {"compression_type": "GZIP_2", "quantize_level": 0.0, **_TILES}


def _write_compressed(path: Path, images: list[tuple[str, Array, fits.Header]]) -> None:
    hdus: list[Any] = [fits.PrimaryHDU()]
    for name, pixels, head in images:
        lossless = _LOSSLESS if pixels.dtype.kind == "f" else {"compression_type": "RICE_1", **_TILES}
        hdus.append(fits.CompImageHDU(pixels, head, name=name or None, **lossless))
    fits.HDUList(hdus).writeto(path)
