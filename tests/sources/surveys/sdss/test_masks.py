"""Mask planes: written spans are read back, bad files are named, real masks lie on saturated stars."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("astropy")

from astropy.io import fits

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.surveys.sdss.masks import BAD_PLANES, read_mask
from tests.helpers.sources.sdss_files import STRIPE82, real_frames, write_mask


def planes_of(
    path: Path, shape: tuple[int, int], planes: tuple[str, ...]
) -> dict[str, npt.NDArray[np.bool_]]:
    flags = read_mask(path, shape, planes)
    return {plane: (flags >> k & 1).astype(np.bool_) for k, plane in enumerate(planes)}


def test_spans_come_back(tmp_path: Path) -> None:
    # Row 300 and column 700 need the second byte; a span ends on the column it names, and may start before 0.
    path = write_mask(
        tmp_path / "fpM.fit",
        {"SATUR": [[(2, 3, 5), (3, 4, 4)], [(300, 700, 701)]], "CR": [[(0, -1, 0)]], "INTERP": [[(9, 9, 9)]]},
    )
    expected = np.zeros((301, 702), np.bool_)
    expected[2, 3:6] = expected[3, 4] = expected[300, 700:] = True
    planes = planes_of(path, expected.shape, BAD_PLANES)
    np.testing.assert_array_equal(planes["SATUR"], expected)
    assert np.argwhere(planes["CR"]).tolist() == [[0, 0]] and not planes["GHOST"].any()
    assert np.argwhere(read_mask(path, expected.shape, ["INTERP"])).tolist() == [[9, 9]]


def test_bad_masks_are_named(tmp_path: Path) -> None:
    good = write_mask(tmp_path / "fpM-good.fit", {"CR": [[(40, 3, 5)]]})
    offset = write_mask(tmp_path / "fpM-offset.fit", {"CR": [[(4, 3, 5)]]}, row0=7)
    short = tmp_path / "fpM-short.fit"
    short.write_bytes(good.read_bytes()[:-4000])
    image = tmp_path / "fpM-image.fit"
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(image)
    cases: list[tuple[Path, tuple[int, int], tuple[str, ...], str]] = [
        (good, (40, 9), ("CR",), "outside the frame of 9 x 40"),
        (good, (50, 5), ("CR",), "outside the frame"),
        (good, (50, 9), ("HOT",), "no mask plane HOT: it has INTERP, SATUR"),
        (offset, (50, 9), ("CR",), "offset"),
        (short, (50, 9), ("CR",), "fpM-short.fit"),
        (image, (50, 9), ("CR",), "names no mask planes"),
        (tmp_path / "fpM-none.fit", (50, 9), ("CR",), "fpM-none.fit: not a readable FITS"),
    ]
    for path, shape, planes, message in cases:
        with pytest.raises(BadInput) as caught:
            read_mask(path, shape, planes)
        assert message in str(caught.value) and "\n" not in str(caught.value)


@real_frames
def test_real_masks_lie_on_the_stars(tmp_path: Path) -> None:
    folder = STRIPE82 / "run-004192"
    counts = fits.getdata(folder / "fpC-004192-r4-0300.fit.gz").astype(np.float64)
    planes = planes_of(folder / "fpM-004192-r4-0300.fit", counts.shape, ("SATUR", "INTERP", "CR"))
    assert planes["SATUR"].sum() == 575 and planes["CR"].sum() == 557
    assert not (planes["CR"] & ~planes["INTERP"]).any()
    # Saturated pixels are among the brightest; flipped or transposed spans would fall on sky.
    bright = np.percentile(counts, 99.5)
    assert np.mean(counts[planes["SATUR"]] > bright) > 0.8
    assert np.mean(counts[planes["SATUR"][::-1]] > bright) < 0.2
    # A dead column follows its neighbours; any other differs from their mean by the noise.
    departure = np.asarray(np.median(np.abs(counts[:, 1:-1] - (counts[:, :-2] + counts[:, 2:]) / 2), axis=0))
    dead = np.flatnonzero(np.all(planes["INTERP"][:, 1:-1], axis=0))
    assert len(dead) == 11
    assert departure[dead].max() < 0.5 * np.median(departure)  # 2 DN, 4.5 DN
