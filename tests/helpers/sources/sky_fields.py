"""Writes fields of empty SDSS sky: frames, masks and PSF, into which galaxies are injected."""

from pathlib import Path

import numpy as np
from astropy.io import fits

from hpcphotoz.sources.constants import BANDS, PIXEL_SCALE
from tests.helpers.sources.psfield_files import write_psfield
from tests.helpers.sources.sdss_files import write_mask

SHAPE = (200, 230)  # y, x


FLUX20 = (950.0, 2700.0, 1980.0, 1590.0, 264.0)


OFFSET = ((3.3, -2.6), (-1.7, 0.45), (0.0, 0.0), (0.5, 0.5), (-4.25, 6.1))  # of each band's frame, pixels


SKY_DN, NOISE_DN = 120, 4.0


def write_field(folder: Path, run: int = 94, field: int = 12) -> Path:
    """Write frames, masks and PSF of one field of empty sky, like SDSS."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(run)
    for band, flux20, (dx, dy) in zip(BANDS, FLUX20, OFFSET, strict=True):
        scale = PIXEL_SCALE / 3600
        header = {
            **{"SOFTBIAS": 1000, "SKY": SKY_DN, "FLUX20": flux20, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"},
            **{"CRPIX1": SHAPE[1] / 2 + dx, "CRPIX2": SHAPE[0] / 2 + dy, "CRVAL1": 351.65, "CRVAL2": 0.1},
            **{"CD1_1": 0.0, "CD1_2": scale, "CD2_1": scale, "CD2_2": 0.0},
        }
        counts = np.rint(SKY_DN + 1000 + NOISE_DN * rng.standard_normal(SHAPE)).astype(np.uint16)
        name = f"{run:06d}-{band}4-{field:04d}.fit"
        fits.PrimaryHDU(counts, fits.Header(header)).writeto(folder / f"fpC-{name}")
        write_mask(folder / f"fpM-{name}", {"CR": [[(10, 11, 12)]]})
    write_psfield(folder / f"psField-{run:06d}-4-{field:04d}.fit")
    return folder
