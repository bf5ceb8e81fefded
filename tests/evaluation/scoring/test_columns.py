"""Bins of columns: edges of equal numbers, values outside, photometry, names that do not exist."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcphotoz.data.format.extra import ExtraColumn
from hpcphotoz.data.format.manifest import Header, read_manifest
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.report.bins import bins_section
from hpcphotoz.evaluation.result import EvaluationResult
from hpcphotoz.evaluation.robustness import evaluate
from hpcphotoz.evaluation.scoring.columns import Binning, ObjectColumns
from tests.helpers.datasets import NOISE_BANDS, NOISE_SIDE, make_stamps, noise_stamps
from tests.helpers.networks import StubNetwork

EXTRA = (ExtraColumn("seeing", "float64", "arcsec"), ExtraColumn("depth", "float32", "mag", (3,)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """50 stamps of noise, 5 of them without z_spec, with a column of their own and one a band."""
    stamps = noise_stamps(50, unknown=5)
    rng = np.random.default_rng(0)
    seeing = rng.uniform(0.8, 1.6, 50)
    seeing[7] = np.nan
    depth = rng.uniform(22, 24, (50, 3)).astype(np.float32)
    header = Header(NOISE_BANDS, NOISE_SIDE, 0.396, "float32", EXTRA)
    with DatasetWriter(tmp_path / "d", header, 16, {"made": "for a test"}) as writer:
        writer.append(replace(stamps, extra={"seeing": seeing, "depth": depth}))
    return tmp_path / "d"


def measured(data: Path, *by: str) -> EvaluationResult:
    binnings = [Binning.parse(one) for one in by]
    return evaluate([StubNetwork()], data, eps=(0.1,), methods=("fgsm",), by=binnings, keep_objects=True)


def test_metrics_in_bins_are_those_of_their_objects(data: Path) -> None:
    result = measured(data, "seeing:0.9,1.1,1.5", "depth_r")
    binned = {one.column: one for one in result.binned}
    assert set(binned) == {"z_spec", "aperture_mag", "aperture_snr", "ebv", "seeing", "depth_r"}
    assert binned["seeing"].edges == (0.9, 1.1, 1.5) and binned["seeing"].meaning == "seeing (arcsec)"
    seeing = np.random.default_rng(0).uniform(0.8, 1.6, 50)
    seeing[7] = np.nan
    known = np.isfinite(result.z_spec)
    for method, condition in (
        ("clean", result.networks[0].clean),
        ("fgsm", result.networks[0].at("fgsm", 0.1)),
    ):
        for k, (low, high) in enumerate([(0.9, 1.1), (1.1, 1.5)]):
            rows = known & (seeing >= low) & (seeing < high)
            dz = metrics.residuals(condition.z_phot[rows], result.z_spec[rows])
            found = binned["seeing"].found["standard"][method][k].metrics
            assert found["n"] == rows.sum() > 5
            assert found["bias"] == pytest.approx(metrics.bias(dz), rel=1e-5)
            assert found["sigma_mad"] == pytest.approx(metrics.sigma_mad(dz), rel=1e-5)
    # Fifths of 45 galaxies; E(B-V) is 0 for all.
    assert [one.metrics["n"] for one in binned["depth_r"].found["standard"]["clean"]] == [9] * 5
    assert binned["z_spec"].edges[-1] == result.z_spec[known].max()
    assert [one.metrics["n"] for one in binned["ebv"].found["standard"]["clean"]] == [45]


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_the_section_shows_every_column_and_writes_every_bin(data: Path) -> None:
    section = bins_section(measured(data, "seeing:0.9,1.1,9,10"))
    assert section is not None and set(section.figures) == {
        f"Metrics by {name}" for name in ("z_spec", "aperture_mag", "aperture_snr", "ebv", "seeing")
    }
    entry = section.record["seeing"]
    assert entry["edges"] == [0.9, 1.1, 9, 10] and entry["runs"]["standard"]["clean"][2] == {}
    first = entry["runs"]["standard"]["fgsm"][0]
    assert first["errors"].keys() == first.keys() - {"n", "errors"}
    (table,) = [one for one in section.tables if one[0][0] == "seeing"]
    assert len(table) == 1 + 3 * 2 and table[1][0] == "0.900 to 1.10" and table[-1][-1] == "-"
    assert f"{first['bias']:.4f} ± {first['errors']['bias']:.4f}" in table[2]


def test_without_a_redshift_there_are_no_bins(tmp_path: Path) -> None:
    from tests.helpers.datasets import write_stamps

    none = evaluate([StubNetwork()], write_stamps(tmp_path / "d", noise_stamps(9, unknown=9)), eps=())
    assert none.binned == () and bins_section(none) is None


def test_photometry_is_the_flux_in_the_aperture(data: Path) -> None:
    stamps = make_stamps(6)
    header = Header(tuple("ugriz"), 16, 0.396)
    magnitude, ratio = ObjectColumns(data, header, ["aperture_mag", "aperture_snr"])(stamps)
    y, x = np.mgrid[:160, :160] / 10 - 7.95
    inside = (np.hypot(x, y) * 0.396 < 2.5).reshape(16, 10, 16, 10).mean((1, 3))
    flux = (stamps.images[:, 2] * inside).sum((1, 2))
    # The fractions of edge pixels are sampled differently.
    np.testing.assert_allclose(magnitude, 22.5 - 2.5 * np.log10(flux), atol=0.01)
    np.testing.assert_allclose(ratio, flux / (0.03 * np.sqrt((inside**2).sum())), rtol=0.01)
    dark = replace(stamps, images=-stamps.images)
    assert np.isnan(ObjectColumns(data, header, ["aperture_mag"])(dark)).all()


@pytest.mark.parametrize("text", ["seeing:", ":1,2", "seeing:1", "seeing:2,1", "seeing:1,x", "seeing:1,inf"])
def test_bins_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="want COLUMN, or COLUMN:EDGE,EDGE"):
        Binning.parse(text)


def test_a_column_that_is_not_there_is_refused_with_those_that_are(data: Path) -> None:
    with pytest.raises(BadInput, match=r"has no column 'psf' .* depth_g, depth_i, depth_r, .*seeing"):
        measured(data, "psf")
    assert read_manifest(data).header.extra == EXTRA


def test_a_value_on_an_edge_is_in_the_bin_above_although_columns_are_float32() -> None:
    edges = (0.1, 0.3, 0.7, 0.9)  # as float32 some are above these numbers, some below
    values = np.array([*edges, np.nextafter(np.float32(0.1), np.float32(0)), np.nan], np.float32)
    assert Binning("z_spec", edges).groups(values, edges).tolist() == [0, 1, 2, 2, -1, -1]
