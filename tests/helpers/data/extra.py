"""A small dataset with extra columns of every kind."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from hpcphotoz.data.format.extra import ExtraColumn, mask_column, pack_mask, variance_column
from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.format.writer import DatasetWriter
from tests.helpers.datasets import make_stamps

BANDS, SIDE = 3, 9  # 81 pixels: the last byte of a mask is not full
EXTRA = (
    ExtraColumn("petro_r", "float32", "mag"),
    ExtraColumn("z_err", "float64"),
    ExtraColumn("flags", "uint64"),
    ExtraColumn("zwarning", "int8"),
    ExtraColumn("clean", "bool"),
    ExtraColumn("spectype", "S6"),
    ExtraColumn("psf_fwhm", "float32", "arcsec", (BANDS,)),
    variance_column(BANDS, SIDE),
    mask_column(BANDS, SIDE),
)
HEADER = Header(tuple("ugr"), SIDE, 0.4, extra=EXTRA)


def extra_stamps(n: int) -> Stamps:
    """Stamps of `n` objects with every extra column; petro_r of the second is NaN."""
    rng = np.random.default_rng(5)
    petro = rng.uniform(14, 20, n).astype(np.float32)
    petro[1:2] = np.nan
    return replace(
        make_stamps(n, size=SIDE, bands=BANDS),
        extra={
            "petro_r": petro,
            "z_err": rng.uniform(0, 1e-3, n),
            "flags": rng.integers(0, 2**62, n).astype(np.uint64),
            "zwarning": rng.integers(-5, 120, n).astype(np.int8),
            "clean": rng.random(n) < 0.5,
            "spectype": np.array([b"GALAXY", b"QSO", b"STAR"])[rng.integers(0, 3, n)],
            "psf_fwhm": rng.uniform(1, 2, (n, BANDS)).astype(np.float32),
            "variance": rng.uniform(1e-4, 1e-2, (n, BANDS, SIDE, SIDE)).astype(np.float16),
            "mask": pack_mask(rng.random((n, BANDS, SIDE, SIDE)) < 0.1),
        },
    )


def write_extra_dataset(out: Path, n: int) -> Path:
    """Write `extra_stamps` as a dataset of shards of 8 objects and return its folder."""
    with DatasetWriter(out, HEADER, 8, {"made": "for a test"}) as writer:
        writer.append(extra_stamps(n))
    return out
