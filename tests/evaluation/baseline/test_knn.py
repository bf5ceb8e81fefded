"""The nearest-neighbour baseline, on galaxies whose colours are a known function of redshift."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcphotoz.data import order
from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.select.subset import Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.baseline import knn, photometry
from hpcphotoz.models.bins import RedshiftBins
from tests.helpers.datasets import write_stamps

BINS = RedshiftBins(40, 0.0, 0.4)
BANDS = ("u", "g", "r", "i", "z")


def galaxies(
    n: int, seed: int, *, bands: tuple[str, ...] = BANDS, ebv: float = 0.0, informative: bool = True
) -> Stamps:
    """Round galaxies of 2 arcsec on noisy sky, of random brightness, whose colours are linear in redshift."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(0.02, 0.38, n)
    seen = z if informative else rng.permutation(z)
    magnitude = rng.uniform(15, 17, n)[:, None] - np.outer(6 * seen, np.arange(len(bands)))
    extinction = rng.uniform(0, ebv, n) if ebv else np.zeros(n)
    dust = np.array([photometry.REDDENING.get(band, 0.0) for band in bands])
    total = 10 ** (-0.4 * (magnitude - 22.5 + extinction[:, None] * dust))
    at = (np.arange(32) - 15.5) * 0.396
    shape = np.exp(-0.5 * (at[:, None] ** 2 + at[None] ** 2) / 1.0**2)
    images = total[:, :, None, None] * shape / shape.sum() + rng.normal(0, 0.02, (n, len(bands), 32, 32))
    return Stamps(
        images=images.astype(np.float32),
        z_spec=z.astype(np.float32),
        ebv=extinction.astype(np.float32),
        object_id=np.arange(n, dtype=np.int64),  # train and test both count from 0, as two simulations may
        sky_sigma=np.full((n, len(bands)), 0.02, np.float32),
        ra=np.zeros(n),
        dec=np.zeros(n),
    )


def write(folder: Path, stamps: Stamps, bands: tuple[str, ...] = BANDS) -> Path:
    return write_stamps(folder, stamps, bands=bands, shard_rows=200)


def test_redshift_is_recovered_from_colour_for_any_brightness_and_dust(tmp_path: Path) -> None:
    train = write(
        tmp_path / "train", galaxies(600, 1)
    )  # without dust: neighbours of dusty galaxies must be found
    test = write(tmp_path / "test", galaxies(100, 2, ebv=0.3))
    figures = knn.knn_colours(train, test, BINS, k=10)
    assert figures["n"] == 100 and figures["n_train"] == 600
    # Ten neighbours among 600 on [0.02, 0.38] span 0.006: half of that, plus noise. Guessing gives 0.1.
    assert figures["sigma_mad"] < 0.006
    assert abs(figures["bias"]) < 0.003
    assert figures["eta"] < 0.02
    assert figures["crps"] < 0.006


def test_is_no_better_than_guessing_where_colours_tell_nothing(tmp_path: Path) -> None:
    train = write(tmp_path / "train", galaxies(400, 1, informative=False))
    test = write(tmp_path / "test", galaxies(200, 2, informative=False))
    figures = knn.knn_colours(train, test, BINS)
    # The best guess for a uniform z on [0.02, 0.38] is its middle: mean abs(dz) 0.09, CRPS 0.36/12.
    assert figures["sigma_mad"] > 0.06
    assert figures["crps"] > 0.027
    errors = figures["errors"]
    assert errors["eta"] == pytest.approx(np.sqrt(figures["eta"] * (1 - figures["eta"]) / 200))
    # dz of such guesses is nearly uniform, of half width 0.18 / 1.2: sigma / sqrt(200) of its mean.
    assert errors["bias"] == pytest.approx(0.15 / np.sqrt(3 * 200), rel=0.25)
    assert 0 < errors["sigma_mad"] < 0.2 * figures["sigma_mad"]


def test_an_object_of_training_is_refused_as_test(tmp_path: Path) -> None:
    stamps = galaxies(200, 1)
    train, test = write(tmp_path / "train", stamps), write(tmp_path / "test", stamps[150:])
    with pytest.raises(BadInput, match="50 of its objects"):
        knn.knn_colours(train, test, BINS)


def test_an_object_of_training_is_known_again_when_its_pixels_have_changed(tmp_path: Path) -> None:
    stamps = galaxies(200, 1)
    train = write(tmp_path / "train", stamps)
    attacked = write(tmp_path / "attacked", replace(stamps[150:], images=stamps.images[150:] + 0.01))
    with pytest.raises(BadInput, match="50 of its objects"):
        knn.knn_colours(train, attacked, BINS)


def test_the_subset_and_the_limit_select_measured_objects_and_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = galaxies(400, 1)
    stamps.z_spec[5] = np.nan
    data = write(tmp_path / "d", stamps)
    asked, train_subset = (Subset(part, 0.1, 0.3) for part in ("test", "train"))
    parts = order.split_part(stamps.object_id, 0.1, 0.3, 0)
    figures = knn.knn_colours(data, data, BINS, 10, subset=asked, limit=50, train_subset=train_subset)
    assert (figures["n"], figures["n_train"]) == (50, (parts[np.isfinite(stamps.z_spec)] == 0).sum())
    found = photometry.measure_photometry(data, BINS, asked, 50)
    np.testing.assert_array_equal(found.object_id, stamps.object_id[parts == 2][:50])
    assert figures["sigma_mad"] < 0.01
    monkeypatch.setattr(knn, "measure_photometry", None)  # ids are compared before anything is measured
    with pytest.raises(BadInput, match="of its objects are in .*such as --part test"):
        knn.knn_colours(data, data, BINS, 10, subset=asked)


def test_unknown_redshifts_are_left_out_and_unusable_sets_refused(tmp_path: Path) -> None:
    some = galaxies(300, 1)
    some.z_spec[:100] = np.nan
    train, test = write(tmp_path / "train", some), write(tmp_path / "test", galaxies(50, 2))
    assert knn.knn_colours(train, test, BINS)["n_train"] == 200
    none = galaxies(50, 3)
    none.z_spec[:] = np.nan
    with pytest.raises(BadInput, match="no object of known redshift"):
        knn.knn_colours(train, write(tmp_path / "none", none), BINS)
    with pytest.raises(BadInput, match="20 neighbours need 80"):
        knn.knn_colours(write(tmp_path / "few", galaxies(40, 4)), test, BINS)
    with pytest.raises(BadInput, match="outside"):
        knn.knn_colours(train, test, RedshiftBins(10, 0.0, 0.2))
    other = write(tmp_path / "other", galaxies(50, 5, bands=("g", "r", "z")), ("g", "r", "z"))
    with pytest.raises(BadInput, match="different bands"):
        knn.knn_colours(train, other, BINS)


def test_a_band_of_unknown_reddening_brings_ebv_as_a_feature(tmp_path: Path) -> None:
    bands = ("g", "r", "y")
    data = photometry.measure_photometry(write(tmp_path / "gry", galaxies(30, 1, bands=bands), bands), BINS)
    colours, rest = photometry.features(data, 1, data.noise)
    assert colours.shape == (30, 2) and rest.shape == (30, 3)


def test_apertures_have_the_area_of_their_circles() -> None:
    weights = photometry.apertures(Header(BANDS, 64, 0.396))
    circles = np.pi * (np.array(photometry.RADII) / 0.396) ** 2
    # 8 x 8 samples a pixel: a relative error below 1 % from a radius of 2.5 pixels on.
    np.testing.assert_allclose(weights.sum(axis=(1, 2)), circles, rtol=0.01)
    np.testing.assert_allclose(weights, weights[:, ::-1, ::-1])


def test_the_pdf_is_a_pdf_and_its_mean_is_the_estimate(tmp_path: Path) -> None:
    known = photometry.measure_photometry(write(tmp_path / "train", galaxies(200, 1)), BINS)
    asked = photometry.measure_photometry(write(tmp_path / "test", galaxies(30, 2)), BINS)
    options = knn.KnnOptions(radius=2, whiten=False, magnitude=0.2, inverse=True, kernel=0.005)
    z_phot, pdf = knn.estimate(known, asked, options, BINS, 10)
    np.testing.assert_allclose(pdf.sum(axis=1), 1, atol=1e-12)
    inside = (z_phot > 0.05) & (z_phot < 0.35)  # nothing is cut off at the ends of the bins
    mean = pdf @ BINS.centres().double().numpy()
    # Binning a Gaussian of half a bin's width moves its mean by far less than a bin (0.01).
    np.testing.assert_allclose(mean[inside], z_phot[inside], atol=5e-4)
