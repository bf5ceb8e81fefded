"""What pictures show, points or a histogram of redshifts and PIT histograms, and values kept on demand."""

from pathlib import Path

import numpy as np
import pytest

from hpcphotoz.evaluation.metrics import pit_histogram
from hpcphotoz.evaluation.report.plots.redshifts import redshift_scatter
from hpcphotoz.evaluation.robustness import evaluate
from hpcphotoz.evaluation.scoring import accumulator, spill
from hpcphotoz.evaluation.scoring.accumulator import coarse_pit_histogram
from tests.helpers.datasets import noise_stamps, write_stamps
from tests.helpers.networks import StubNetwork


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_many_objects_are_a_histogram_of_the_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_stamps(tmp_path / "d", noise_stamps(50, unknown=8))
    options = {"eps": (0.1,), "methods": ("fgsm",), "keep_objects": True}
    few = evaluate([StubNetwork()], data, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(accumulator, "POINTS", 41)
    many = evaluate([StubNetwork()], data, **options)  # type: ignore[arg-type]
    known = np.isfinite(few.z_spec)
    for one, other in zip(few.networks[0].conditions, many.networks[0].conditions, strict=True):
        points, counted = one.scatter, other.scatter
        assert points is not None and counted is not None
        np.testing.assert_array_equal(points.z_spec, few.z_spec[known])
        np.testing.assert_array_equal(points.z_phot, one.z_phot[known])
        assert counted.is_histogram and not points.is_histogram and counted.limits == points.limits
        limits = [points.limits, points.limits]
        expected = np.histogram2d(points.z_spec, points.z_phot, bins=120, range=limits)[0]
        np.testing.assert_array_equal(counted.counts, expected)
        assert counted.counts.sum() == 42
        assert one.metrics == other.metrics
    assert len(redshift_scatter(many)) == 2


def test_a_condition_that_no_picture_shows_has_no_scatter(tmp_path: Path) -> None:
    data = write_stamps(tmp_path / "d", noise_stamps(20))
    one = evaluate([StubNetwork()], data, eps=(0.1, 0.3), headline_eps=0.1, methods=("fgsm",)).networks[0]
    assert [condition.scatter is not None for condition in one.conditions] == [True, True, False]
    assert [int(condition.pit_histogram.sum()) for condition in one.conditions] == [20, 20, 20]


def test_values_of_each_object_are_kept_on_demand_alone(tmp_path: Path) -> None:
    data = write_stamps(tmp_path / "d", noise_stamps(20))
    result = evaluate([StubNetwork()], data, eps=(), methods=("fgsm",))
    for read in (lambda: result.object_id, lambda: result.z_spec, lambda: result.networks[0].clean.pit):
        with pytest.raises(ValueError, match="keep_objects=True"):
            read()
    assert result.objects == 20 and result.unlabelled == 0


def test_blocks_on_the_disk_give_the_figures_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_stamps(tmp_path / "d", noise_stamps(50, unknown=8))
    options = {"eps": (0.1,), "methods": ("fgsm",), "keep_objects": True}
    one = evaluate([StubNetwork()], data, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(spill, "BLOCK", 7)
    other = evaluate([StubNetwork()], data, batch=16, **options)  # type: ignore[arg-type]
    for a, b in zip(one.networks[0].conditions, other.networks[0].conditions, strict=True):
        np.testing.assert_allclose(a.z_phot, b.z_phot, atol=1e-6)  # another batch size
        assert b.metrics == pytest.approx(a.metrics, rel=1e-3)
    assert one.binned[0].edges == other.binned[0].edges
    np.testing.assert_array_equal(one.object_id, other.object_id)


def test_the_picture_counts_pits_as_the_histogram_does() -> None:
    pit = np.random.default_rng(0).random(5000)
    fine = pit_histogram(pit, 1 << 16)
    shown, exact = coarse_pit_histogram(fine), pit_histogram(pit)
    assert shown.sum() == 5000 and np.abs(shown - exact).max() <= 2  # a fine bin lies across an edge
