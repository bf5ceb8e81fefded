"""What a calibration does to a PDF."""

import numpy as np
import pytest
import torch

from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration, calibrated, with_temperature
from tests.helpers.pdfs import gaussians


def test_a_temperature_is_that_of_the_logits() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (20, 7))

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(axis=1, keepdims=True))
        return np.asarray(e / e.sum(axis=1, keepdims=True))

    np.testing.assert_allclose(with_temperature(softmax(logits), 1.7), softmax(logits / 1.7), rtol=1e-12)
    spike = np.array([[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(Calibration(temperature=3.0)(spike), spike, atol=1e-12)


@pytest.mark.parametrize("pit", [(), (0.4,), (-0.5, 0.8, 0.3), (2.0, -2.0)])
def test_a_calibrated_pdf_is_a_pdf_and_its_cdf_is_mapped(pit: tuple[float, ...]) -> None:
    pdf = gaussians(np.linspace(0.1, 0.5, 9), 0.03, np.linspace(0, 0.6, 61))
    calibration = Calibration(temperature=1.3, pit=pit)
    found = calibration(pdf)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)
    before = np.cumsum(with_temperature(pdf, 1.3), axis=1)
    if pit:
        np.testing.assert_allclose(np.cumsum(found, axis=1), calibration.mapped(before), atol=1e-9)
        u = np.linspace(0, 1, 1001)
        assert (np.diff(calibration.mapped(u)) > 0).all()
        np.testing.assert_allclose(calibration.mapped(np.array([0.0, 1.0])), [0, 1], atol=1e-12)


def test_tensors_are_calibrated_as_arrays_are_and_left_alone_without_a_calibration() -> None:
    pdf = torch.from_numpy(gaussians(np.linspace(0.1, 0.5, 9), 0.03, np.linspace(0, 0.6, 61))).float()
    assert calibrated(None, pdf) is pdf
    calibration = Calibration(temperature=1.4, pit=(0.3, -0.2))
    found = calibrated(calibration, pdf)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), calibration(pdf.double().numpy()), rtol=1e-6)
