"""Coverage of the intervals of a network on a dataset, clean and attacked."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from hpcphotoz.data.select.subset import ALL_OBJECTS
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.conformal.intervals import LEVELS, calibrate, central_interval, coverage
from hpcphotoz.evaluation.conformal.measure import measure_conformal
from hpcphotoz.evaluation.conformal.section import conformal_section
from hpcphotoz.evaluation.perturbation.headline import HeadlineAttack
from hpcphotoz.evaluation.redshift_pdf import RedshiftPdf
from hpcphotoz.evaluation.robustness import evaluate
from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration
from tests.helpers.datasets import noise_stamps, write_stamps
from tests.helpers.evaluation_results import check_section
from tests.helpers.networks import StubNetwork

T = 0.5  # temperature of the PDFs that are scored


def pdf_of(network: StubNetwork, images: npt.NDArray[np.float32]) -> RedshiftPdf:
    with torch.no_grad():
        logits = network.module(torch.from_numpy(images), torch.zeros(len(images)))
    return RedshiftPdf(torch.softmax(logits / T, dim=1).numpy(), network.bins)


def headline_of(data: Path, network: StubNetwork, batch: int = 16) -> HeadlineAttack:
    calibrations = {network.name: Calibration(temperature=T)}
    result = evaluate(
        [network], data, eps=(0.5,), methods=("fgsm",), headline_eps=0.5, calibrations=calibrations
    )
    return HeadlineAttack([network], result, batch=batch)


def test_clean_intervals_are_those_of_the_calibration_and_an_attack_loses_coverage(tmp_path: Path) -> None:
    rng, network = np.random.default_rng(5), StubNetwork()
    content = noise_stamps(120, unknown=4)
    content = replace(content, images=rng.normal(0, 3, content.images.shape).astype(np.float32))
    parts = [
        replace(content, **{name: getattr(content, name)[rows] for name in vars(content) if name != "extra"})
        for rows in (slice(0, 60), slice(60, 120))
    ]
    data, other = (write_stamps(tmp_path / name, one) for name, one in zip("ab", parts, strict=True))
    headline = headline_of(data, network)
    found = measure_conformal(headline, other, ALL_OBJECTS)[0]
    again = measure_conformal(headline_of(data, network, batch=50), other, ALL_OBJECTS)[0]
    calibration = calibrate(central_interval(pdf_of(network, parts[1].images)), parts[1].z_spec)
    np.testing.assert_allclose(found.calibration.widening, calibration.widening, atol=1e-5)
    known = np.isfinite(parts[0].z_spec)
    central = central_interval(pdf_of(network, parts[0].images[known]))
    expected = coverage(calibration.interval(central, 0.0, 0.4), parts[0].z_spec[known])
    assert found.n == 56 and found.calibration.n == 60
    np.testing.assert_allclose(found.covered["conformal", "clean"], expected, atol=1e-6)
    np.testing.assert_allclose(found.covered["pdf", "clean"], coverage(central, parts[0].z_spec[known]))
    assert np.all(found.covered["conformal", "attacked"] <= found.covered["conformal", "clean"])
    for key, value in found.covered.items():
        np.testing.assert_allclose(again.covered[key], value)
    pytest.importorskip("matplotlib")
    section = conformal_section(headline.result, [found])
    record = json.loads(json.dumps(section.record, allow_nan=False))
    assert record["networks"]["standard"]["conformal"]["clean"]["coverage"] == pytest.approx(expected)
    assert len(section.tables[0]) == 1 + 2 * len(LEVELS) and len(section.figures) == 1
    check_section(section)
    (alt,) = section.alts.values()
    clean = ", ".join(f"{100 * x:.0f}" for x in found.covered["pdf", "clean"][:2])
    assert f"on clean images {clean} and" in alt and "At the levels 68, 90 and 95 % it is" in alt
    few = replace(found, calibration=replace(calibration, widening=np.array([0.0, 0.1, np.inf]), n=12))
    assert "12 are too few for 95 %" in conformal_section(headline.result, [few]).text
    assert "too few" not in section.text


def test_calibration_objects_that_are_measured_are_refused(tmp_path: Path) -> None:
    data = write_stamps(tmp_path / "d", noise_stamps(20))
    headline = headline_of(data, StubNetwork())
    with pytest.raises(BadInput, match="20 calibration objects of --conformal are measured too"):
        measure_conformal(headline, data, ALL_OBJECTS)
    unknown = write_stamps(tmp_path / "u", noise_stamps(20, unknown=20))
    with pytest.raises(BadInput, match="no calibration object of known z_spec"):
        measure_conformal(headline, unknown, ALL_OBJECTS)
    with pytest.raises(BadInput, match="the coverage of intervals needs it"):
        measure_conformal(headline_of(unknown, StubNetwork()), data, ALL_OBJECTS)
