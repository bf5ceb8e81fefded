"""Zero points of SDSS frames: the final calibration where it is there, and two runs of the same objects."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("astropy")
pytest.importorskip("scipy")

from astropy.io import fits
from scipy import ndimage, signal

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.catalogue import RUN_FACTOR
from hpcphotoz.sources.constants import BANDS
from hpcphotoz.sources.simulation.real_sky import load_field
from hpcphotoz.sources.surveys.sdss.fields import find_frame_sets
from hpcphotoz.sources.surveys.sdss.psf import read_psf
from hpcphotoz.sources.surveys.sdss.survey import SURVEY, read_frame
from tests.helpers.datasets import load
from tests.helpers.sources import sky_fields
from tests.helpers.sources.sdss_files import (
    DEC,
    FLUX20,
    RA,
    STRIPE82,
    ingest_frames,
    real_frames,
    write_photofield,
    write_set,
    write_table,
    write_tsfield,
)

HEADER = 10 / np.array([FLUX20[band] for band in BANDS])  # nMgy a count
FINAL = HEADER / [1.05, 1.03, 1.002, 1.007, 1.02]


def ratios(folder: Path) -> npt.NDArray[np.float64]:
    """Of each band's image to that by the header."""
    (one,) = find_frame_sets(folder)
    found = []
    for files, per_count in zip(one.files, HEADER, strict=True):
        counts = fits.getdata(files.image).astype(float) - fits.getheader(files.image)["SKY"] - 1000
        star = np.unravel_index(np.argmax(counts), counts.shape)
        found.append(read_frame(files).image[star] / (counts[star] * per_count))
    return np.array(found)


def test_the_field_s_own_calibration_counts(tmp_path: Path) -> None:
    write_set(tmp_path, [(RA, DEC)])
    np.testing.assert_allclose(ratios(tmp_path), 1, rtol=1e-5)
    write_photofield(tmp_path, FINAL)
    np.testing.assert_allclose(ratios(tmp_path), FINAL / HEADER, rtol=1e-5)
    (one,) = find_frame_sets(tmp_path)
    assert read_frame(one.files[0]).psf_fwhm == pytest.approx(1.3)
    # tsField comes first, and of two the one of the higher rerun; 40 is above 9, which text would deny.
    write_tsfield(tmp_path, FINAL / 2, rerun=9)
    write_tsfield(tmp_path, FINAL / 3, rerun=40)
    np.testing.assert_allclose(ratios(tmp_path), FINAL / HEADER / 3, rtol=1e-5)
    (one,) = find_frame_sets(tmp_path)
    assert [read_frame(files).psf_fwhm for files in one.files] == [1.44, 1.34, 1.18, 1.15, 1.22]


def test_what_the_fluxes_are_by_is_told_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in (94, 752):
        write_set(tmp_path / "f", [(RA, DEC)], run=run)
    error = np.array([0.036, 0.002, 0.002, 0.002, 0.025])
    write_tsfield(tmp_path / "f", FINAL, run=752, aaErr=error)
    table = write_table(tmp_path / "t.csv", [{"object_id": 5, "ra": RA, "dec": DEC}])
    manifest = ingest_frames(tmp_path / "o", tmp_path / "f", table, epochs="all", stamp=32, processes=1)
    said = capsys.readouterr().err
    assert said.count("5 of 10 frames have no tsField or photoField file: their fluxes are by FLUX20") == 1
    assert "2 of 10 frames have a zero point that is uncertain by more than 0.02 mag" in said
    assert "the most: 0.036 in u of run 752 camcol 4 field 12\n" in said
    assert manifest.provenance["calibration"] == {"FLUX20": 5, "tsField": 5}
    stamps = load(tmp_path / "o", manifest)
    flux = stamps.images.sum(axis=(2, 3), dtype=np.float64)
    np.testing.assert_allclose(flux[1, :4] / flux[0, :4], (FINAL / HEADER)[:4], rtol=0.02)
    write_tsfield(tmp_path / "f", FINAL)
    notes = SURVEY.notes(find_frame_sets(tmp_path / "f"))
    assert not any("FLUX20" in line for line in notes.lines)


def test_a_frame_without_header_calibration_needs_the_file(tmp_path: Path) -> None:
    write_set(tmp_path, [(RA, DEC)])
    path = tmp_path / "fpC-000094-g4-0012.fit"
    with fits.open(path) as hdus:
        del hdus[0].header["FLUX20"]
        hdus.writeto(path, overwrite=True)
    (one,) = find_frame_sets(tmp_path)
    with pytest.raises(BadInput, match="fpC-000094-g4-0012.fit: its header lacks FLUX20"):
        read_frame(one.files[1])
    write_tsfield(tmp_path, FINAL)
    (one,) = find_frame_sets(tmp_path)
    assert np.isfinite(read_frame(one.files[1]).image).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"field": 13}, "has no row of field 12"),
        ({"aa": np.full(5, np.nan)}, "aa, kk, airmass of r = .*nan.*: finite numbers expected"),
        ({"aa": np.zeros(5)}, "not a calibration of this field"),
    ],
)
def test_a_calibration_that_cannot_be_is_named(
    tmp_path: Path, change: dict[str, npt.ArrayLike], message: str
) -> None:
    write_set(tmp_path, [(RA, DEC)])
    path = write_tsfield(tmp_path, FINAL, **change)  # type: ignore[arg-type]
    path = path.rename(tmp_path / "tsField-000094-4-40-0012.fit")
    (one,) = find_frame_sets(tmp_path)
    with pytest.raises(BadInput, match=message) as caught:
        read_frame(one.files[2])
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_galaxies_put_into_frames_are_counted_in_the_same_calibration(tmp_path: Path) -> None:
    sky_fields.write_field(tmp_path)
    before = load_field(find_frame_sets(tmp_path)[0])
    final = 10 / np.array(sky_fields.FLUX20) / 1.05
    write_tsfield(tmp_path, final)
    after = load_field(find_frame_sets(tmp_path)[0])
    np.testing.assert_allclose(after.electrons, before.electrons * 1.05, rtol=1e-6)
    for one, other in zip(after.frames, before.frames, strict=True):
        np.testing.assert_allclose(one.image, other.image / 1.05, rtol=1e-4, atol=1e-6)


def two_run_differences(out: Path) -> dict[str, tuple[int, float, float]]:
    """Objects of the field in both runs: number, median of mag(6377) - mag(4192), and its error, a band.

    Peaks of the r frame of run 4192, of which a band's mask is good. Each stamp is convolved with the PSF of
    the other run, so that both have one PSF; then an aperture of 5 pixels, sky from a ring, and objects at 20
    sigma and more in both.
    """
    sets = find_frame_sets(STRIPE82)
    r = read_frame(sets[0].files[BANDS.index("r")])
    smooth = ndimage.gaussian_filter(r.image, 1.5)
    peak = (smooth == ndimage.maximum_filter(smooth, 25)) & (smooth > 0.15)
    y, x = np.nonzero(peak)
    places = r.geometry.sky(np.stack([x, y], axis=1).astype(float))
    rows: list[dict[str, object]] = [{"object_id": k, "ra": a, "dec": d} for k, (a, d) in enumerate(places)]
    table = write_table(out / "t.csv", rows)
    psfs = [read_psf(path) for one in sets if (path := one.files[0].psf) is not None]
    y, x = np.mgrid[:64, :64] - 31.5
    radius = np.hypot(x, y)
    aperture, ring = radius < 5, (radius > 20) & (radius < 29)
    found = {}
    for k, band in enumerate(BANDS):
        manifest = ingest_frames(out / band, STRIPE82, table, bands=band, epochs="all", processes=1)
        stamps = load(out / band, manifest)
        runs, ids = stamps.object_id % RUN_FACTOR, stamps.object_id // RUN_FACTOR
        flux = np.zeros(len(stamps))
        for run, other in ((4192, psfs[1]), (6377, psfs[0])):
            mine = runs == run
            kernel = other.bands[k].at(r.image.shape[1] / 2, r.image.shape[0] / 2)
            image = signal.fftconvolve(stamps.images[mine, 0], kernel[None], mode="same", axes=(1, 2))
            sky = np.median(image[:, ring], axis=1)
            flux[mine] = image[:, aperture].sum(axis=1) - sky * aperture.sum()
        bright = flux > 20 * stamps.sky_sigma[:, 0] * np.sqrt(aperture.sum())
        _, first, second = np.intersect1d(
            ids[(runs == 4192) & bright], ids[(runs == 6377) & bright], return_indices=True
        )
        a, b = flux[(runs == 4192) & bright][first], flux[(runs == 6377) & bright][second]
        difference = -2.5 * np.log10(b / a)
        scatter = 1.4826 * np.median(np.abs(difference - np.median(difference)))
        error = 1.253 * scatter / np.sqrt(len(difference))
        found[band] = (len(difference), float(np.median(difference)), float(error))
    return found


@real_frames
def test_two_runs_agree_on_the_same_objects(tmp_path: Path) -> None:
    found = two_run_differences(tmp_path)
    assert all(found[band][0] >= 40 and abs(found[band][1]) < 0.03 for band in "griz"), found
    # Not so in u, 0.08: by its own tsField, the zero point of run 6377 is uncertain by 0.036 mag.
    assert found["u"][0] >= 20 and abs(found["u"][1]) < 3 * 0.036, found
