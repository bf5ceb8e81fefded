"""Masking checks of a trained network, which passes all, and of networks that mask their gradients."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hpcphotoz.attacks.losses import cross_entropy
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.masking.checks import run_checks
from hpcphotoz.evaluation.masking.measure import measure_masking, total_failure, vanishing_gradients
from hpcphotoz.evaluation.result import EvaluationResult
from hpcphotoz.evaluation.robustness import evaluate
from tests.helpers.datasets import write_stamps
from tests.helpers.models.masked_networks import (
    QuantisedInput,
    SaturatedSoftmax,
    ShatteredGradients,
    coloured_stamps,
    trained_network,
)
from tests.helpers.networks import BINS, ConvNetwork, StubNetwork

OBJECTS = 16


def stub(name: str, module: nn.Module) -> StubNetwork:
    return StubNetwork(name, module, BINS)


def evaluated(folder: Path, networks: list[StubNetwork]) -> EvaluationResult:
    """The settings of the checks: an evaluation of few objects at epsilon 0.2."""
    data = write_stamps(folder / "data", coloured_stamps(OBJECTS), shard_rows=OBJECTS)
    return evaluate(networks, data, eps=(0.2,), methods=("fgsm",), headline_eps=0.2)


def failed(network: StubNetwork, folder: Path) -> set[str]:
    (losses,) = measure_masking([network], evaluated(folder, [network]))
    return {check.name for check in run_checks(losses) if not check.passed}


def test_a_trained_network_passes_all_checks(tmp_path: Path) -> None:
    networks = [stub("one", trained_network(0)), stub("two", trained_network(1))]
    both = measure_masking(networks, evaluated(tmp_path, networks))
    for losses, other in zip(both, ("two", "one"), strict=True):
        checks = {check.name: check for check in run_checks(losses)}
        assert f"transfer from {other}" in checks and len(checks) == 8
        assert [check.title for check in checks.values() if not check.passed] == []
    assert all(len(loss) == OBJECTS for loss in both[0].attacked.values())


def test_quantised_images_fail_by_gradients_rise_and_black_box(tmp_path: Path) -> None:
    found = failed(stub("quantised", QuantisedInput(trained_network())), tmp_path)
    assert {"gradients", "steps", "black_box"} <= found


@pytest.mark.slow
def test_the_rounding_of_an_evaluation_in_bfloat16_does_not_reach_the_checks(tmp_path: Path) -> None:
    network = stub("one", trained_network(0))
    result = evaluated(tmp_path, [network])
    (exact,) = measure_masking([network], result, objects=2)
    (other,) = measure_masking([network], replace(result, precision="bf16"), objects=2)
    for name, losses in exact.attacked.items():
        np.testing.assert_array_equal(other.attacked[name], losses)


@pytest.mark.slow
def test_a_saturated_softmax_fails_by_its_gradients(tmp_path: Path) -> None:
    assert "gradients" in failed(stub("saturated", SaturatedSoftmax(trained_network())), tmp_path)


@pytest.mark.slow
def test_shattered_gradients_fail_by_the_black_box_attack(tmp_path: Path) -> None:
    found = failed(stub("shattered", ShatteredGradients(trained_network())), tmp_path)
    assert "black_box" in found and "gradients" not in found


def test_vanishing_gradients_are_found_object_by_object() -> None:
    class Dead(nn.Module):
        def forward(self, images: torch.Tensor, ebv: torch.Tensor) -> torch.Tensor:
            level = images.mean((1, 2, 3))[:, None]
            return torch.relu(level * torch.linspace(0.1, 2, BINS.n))  # all logits are dead where level < 0

    images = torch.ones(3, 3, 8, 8) * torch.tensor([1.0, -1.0, 2.0])[:, None, None, None]
    tensor = {"images": images, "ebv": torch.zeros(3), "sky_sigma": torch.ones(3, 3)}
    tensor["object_id"] = torch.arange(3)
    found = vanishing_gradients(stub("dead", Dead()), tensor, torch.full((3,), 0.1), cross_entropy(BINS))
    assert found.tolist() == [False, True, False]


def test_total_failure_is_an_outlier_or_a_pdf_that_excludes_the_redshift() -> None:
    peak, uniform = torch.full((20,), -20.0), torch.zeros(20)
    right, far, beside = peak.clone(), peak.clone(), peak.clone()
    right[4], far[12], beside[5] = 20.0, 20.0, 20.0
    z = torch.full((4,), 0.09)  # in bin 4; the uniform PDF's mean, 0.2, is an outlier
    found = total_failure(BINS, torch.stack([right, far, beside, uniform]), z)
    assert found.tolist() == [False, True, True, True]
    assert total_failure(BINS, uniform[None], torch.tensor([0.21])).tolist() == [False]


def test_one_object_is_refused(tmp_path: Path) -> None:
    network = stub("one", ConvNetwork())
    result = evaluated(tmp_path, [network])
    with pytest.raises(BadInput, match="one object"):
        measure_masking([network], result, objects=1)


@pytest.mark.slow
def test_the_batch_size_changes_nothing(tmp_path: Path) -> None:
    network = stub("one", trained_network())
    result = evaluated(tmp_path, [network])
    (few,) = measure_masking([network], result, objects=4, batch=3)
    (many,) = measure_masking([network], result, objects=4)
    for name, loss in many.attacked.items():
        np.testing.assert_allclose(few.attacked[name], loss, rtol=1e-3, err_msg=name)
