"""The perturbation of linear networks, which is the corner of the ball that their weights point to."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from hpcphotoz.evaluation.perturbation.headline import HeadlineAttack
from hpcphotoz.evaluation.perturbation.measure import Perturbation, measure_perturbations
from hpcphotoz.evaluation.perturbation.section import perturbation_section
from hpcphotoz.evaluation.robustness import evaluate
from tests.helpers.datasets import noise_stamps, write_stamps
from tests.helpers.evaluation_results import check_section
from tests.helpers.networks import LogisticNetwork, StubNetwork


def measured(data: Path, network: StubNetwork, batch: int = 7) -> tuple[HeadlineAttack, Perturbation]:
    result = evaluate([network], data, eps=(0.25,), methods=("fgsm",), headline_eps=0.25)
    headline = HeadlineAttack([network], result, batch=batch)
    return headline, measure_perturbations(headline)[0]


def test_the_corner_of_the_ball_has_its_power_in_every_band_and_ring(tmp_path: Path) -> None:
    _, found = measured(write_stamps(tmp_path / "d", noise_stamps()), StubNetwork())
    for power in (found.by_band, found.by_radius):
        np.testing.assert_allclose(power, 0.25**2, rtol=1e-4)
    assert found.change.shape == found.error.shape == (50, 5, 3)


def test_weights_of_one_band_move_that_band_alone(tmp_path: Path) -> None:
    network = LogisticNetwork()
    network.w.data[[0, 2]] = 0
    network.w.data[1] = network.w.data[1].abs()
    _, found = measured(write_stamps(tmp_path / "d", noise_stamps()), StubNetwork(module=network))
    np.testing.assert_allclose(found.by_band, [0, 0.25**2, 0], rtol=1e-4, atol=1e-12)
    # The change has one sign in all pixels: a wave of no cycle, in the first ring of frequency.
    assert found.by_frequency[1:] == pytest.approx(0, abs=1e-9) and found.by_frequency[0] > 0
    assert (
        np.abs(found.change[..., 0] + found.change[..., 1]).max() < 1e-5
    )  # g - r and r - i, of a change in r


def test_batches_change_nothing_and_the_record_is_json(tmp_path: Path) -> None:
    data, network = write_stamps(tmp_path / "d", noise_stamps(unknown=3)), StubNetwork()
    headline, found = measured(data, network)
    _, other = measured(data, network, batch=50)
    np.testing.assert_allclose(found.by_frequency, other.by_frequency, rtol=1e-5)
    np.testing.assert_allclose(found.change, other.change, atol=1e-5)
    pytest.importorskip("matplotlib")
    section = perturbation_section(headline.result, [found])
    record = json.loads(json.dumps(section.record, allow_nan=False))
    one = record["networks"]["standard"]
    assert math.sqrt(one["power_by_band"]["g"]) == pytest.approx(0.25, rel=1e-4)
    assert set(one["colours"]["2.5"]) == {"g-r", "r-i", "r"} and record["eps_sky_sigma"] == 0.25
    assert one["seen_3_sigma"] <= one["seen_1_sigma"] <= 1
    assert len(section.figures) == 4
    check_section(section)


def test_a_single_band_has_a_power_and_no_colour(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    stamps, network = noise_stamps(12), LogisticNetwork()
    stamps = replace(stamps, images=stamps.images[:, 1:2], sky_sigma=stamps.sky_sigma[:, 1:2])
    network.w = nn.Parameter(network.w.data[1:2])
    data = write_stamps(tmp_path / "d", stamps, bands=("r",))
    headline, found = measured(data, StubNetwork(module=network, bands=("r",)))
    section = perturbation_section(headline.result, [found])
    assert section.tables == [[["run", "r", "all bands"], ["standard", "0.2500", "0.2500"]]]
    assert len(section.figures) == 3 and section.record["networks"]["standard"]["seen_1_sigma"] == 0
    check_section(section)


def test_colours_are_shown_in_an_aperture_that_fits_into_the_stamp(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    headline, found = measured(write_stamps(tmp_path / "d", noise_stamps()), StubNetwork())
    section = perturbation_section(headline.result, [found])
    assert "a radius of 1.5 arcsec" in section.captions[1]  # the stamp's half side is 1.58 arcsec
    for k, name in enumerate(("g-r", "r-i")):
        shown = section.record["networks"]["standard"]["colours"]["1.5"][name]["median_change_over_error"]
        assert section.tables[1][1][1 + k] == f"{shown:.2f}"
