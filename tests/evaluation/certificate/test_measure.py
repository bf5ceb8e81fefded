"""Certificates of linear networks on a dataset, attacked within the same radii."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from hpcphotoz.evaluation.attack_grid import METHODS
from hpcphotoz.evaluation.batches import to_tensors
from hpcphotoz.evaluation.certificate.measure import Certificate, certify
from hpcphotoz.evaluation.certificate.section import certificate_section, certificate_table
from hpcphotoz.evaluation.certificate.smoothing import (
    SmoothedNetwork,
    Smoothing,
    draw_redshifts,
    seen_by,
)
from hpcphotoz.evaluation.inference import DatasetForward
from hpcphotoz.evaluation.network import view_of
from hpcphotoz.evaluation.result import EvaluationResult
from hpcphotoz.evaluation.robustness import evaluate
from hpcphotoz.models.view import View
from tests.helpers.datasets import NOISE_SIDE, noise_stamps, write_stamps
from tests.helpers.evaluation_results import check_section
from tests.helpers.networks import PIXELS, VIEW, CroppedNetwork, LogisticNetwork, StubNetwork

ONE = Smoothing(sigma=0.4, samples=150, confidence=0.99)
N = 30


def measured(
    folder: Path, batch: int = 16, module: torch.nn.Module | None = None
) -> tuple[EvaluationResult, Certificate]:
    content = noise_stamps(N, unknown=2)
    network = StubNetwork(module=module or LogisticNetwork(0.1))
    z_spec = content.z_spec.copy()
    z_spec[2:24] = redshifts(network, content.images)[2:24]  # so that most are no outliers
    data = write_stamps(folder / "d", replace(content, z_spec=z_spec))
    result = evaluate([network], data, eps=(0.1,), methods=("fgsm",), steps=4)
    return result, certify([network], result, ONE, batch=batch)[0]


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationResult, Certificate]:
    return measured(tmp_path_factory.mktemp("once"))


def redshifts(network: StubNetwork, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        pdf = torch.softmax(network.module(torch.from_numpy(images), torch.zeros(len(images))), dim=1)
    return np.asarray(network.bins.integral(pdf).numpy())


@pytest.mark.parametrize("module", [LogisticNetwork(0.1), CroppedNetwork()], ids=["whole", "cropped"])
def test_the_attack_reaches_the_worst_case_and_does_not_pass_the_certified_bounds(
    once: tuple[EvaluationResult, Certificate], tmp_path: Path, module: LogisticNetwork | CroppedNetwork
) -> None:
    found = measured(tmp_path, module=module)[1] if isinstance(module, CroppedNetwork) else once[1]
    content = noise_stamps(N)
    w = module.w.detach().numpy()
    norm = np.sqrt((np.square(w).sum(axis=(1, 2)) * content.sky_sigma**2).sum(axis=1))
    logit = (content.images * w).sum(axis=(1, 2, 3))
    z_spec = found.z_spec
    for k, radius in enumerate(found.radii):
        ends = [0.1 + 0.2 / (1 + np.exp(-(logit + sign * radius * norm))) for sign in (-1, 1)]
        assert (found.low[k] > ends[0]).sum() + (found.high[k] < ends[1]).sum() <= 2  # of 60, at 0.995
        # The worst case of a linear network is an outlier on the side on which PGD left z_spec.
        worst = np.maximum(z_spec - ends[0], ends[1] - z_spec)
        clear = np.abs(worst - 0.05 * (1 + z_spec)) > 0.02
        known = ~np.isnan(z_spec) & clear & (np.abs(z_spec - (ends[0] + ends[1]) / 2) > 0.01)
        np.testing.assert_array_equal(found.outlier[k, known], worst[known] > 0.05 * (1 + z_spec[known]))
    assert found.contradictions == 0 and found.problem is None
    assert np.isnan(found.radius[:2]).all() and (found.radius[2:] > 0).sum() > 12
    for k, radius in enumerate(found.radii):
        assert max(found.certified(radius, vote=True), found.certified(radius)) <= found.attacked(k)
    assert found.certified(0.0) > found.certified(found.radii[-1])
    assert found.dimensions == PIXELS
    assert found.seen == (w != 0).sum()  # no other pixel counts
    assert found.linf(found.radii[0]) == pytest.approx(0.2 / np.sqrt((w != 0).sum()))


def test_noise_is_drawn_for_what_a_network_sees_and_is_that_of_whole_stamps() -> None:
    network, stamps = StubNetwork(module=CroppedNetwork()), to_tensors(noise_stamps(20), "cpu")
    assert view_of(network) == VIEW and view_of(StubNetwork()) == View(NOISE_SIDE, 1)
    seen, n = seen_by(VIEW, stamps), 800
    assert seen["images"].shape == (20, 3, 2, 2)
    forward = DatasetForward(network, 8, 0)
    whole, cut = (
        draw_redshifts(network, forward, tensor, tensor["images"], ONE, range(n), rows=640)
        for tensor in (stamps, seen)
    )
    pairs = [np.log((z - 0.1) / (0.3 - z)).astype(np.float64) for z in (whole, cut)]
    error = pairs[0].std(axis=0) * np.sqrt(2 / n)
    assert (np.abs(pairs[0].mean(axis=0) - pairs[1].mean(axis=0)) < 4.5 * error).all()
    np.testing.assert_allclose(pairs[1].std(axis=0), pairs[0].std(axis=0), rtol=0.16)  # 3.5 % is a sigma


def test_batches_change_nothing(tmp_path: Path, once: tuple[EvaluationResult, Certificate]) -> None:
    one, other = once[1], measured(tmp_path, batch=9)[1]
    for name in ("z_smooth", "radius", "radius_vote", "low", "high"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(one.outlier, other.outlier)


def test_draws_are_those_of_noisy_copies() -> None:
    network, tensor = StubNetwork(), to_tensors(noise_stamps(20), "cpu")
    forward, images = DatasetForward(network, 8, 0), tensor["images"]
    draws = draw_redshifts(network, forward, tensor, images, ONE, range(800), rows=640)
    logit = np.log((draws - 0.1) / (0.3 - draws)).astype(np.float64)
    w = next(network.module.parameters()).detach()
    spread = ONE.sigma * (tensor["sky_sigma"][:, :, None, None] * w).flatten(1).norm(dim=1).numpy()
    np.testing.assert_allclose(logit.std(axis=0), spread, rtol=0.12)  # 2.5 % is one sigma of 800 draws
    mean = (images * w).sum(dim=(1, 2, 3)).numpy()
    assert np.abs((logit.mean(axis=0) - mean) / spread * np.sqrt(800)).max() < 4.5
    apart = draw_redshifts(network, forward, tensor, images, ONE, range(7, 9), rows=1)
    np.testing.assert_allclose(apart, draws[7:9], atol=1e-6)


def test_the_smoothed_network_averages_pdfs_of_the_rows_it_is_given() -> None:
    network, tensor = StubNetwork(), to_tensors(noise_stamps(6), "cpu")
    smoothed = SmoothedNetwork(network, tensor, ONE)
    logits = smoothed(tensor["images"], torch.arange(6.0))
    torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(6))
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(smoothed(tensor["images"][rows], rows.float()), logits[rows])
    bare = network.module(tensor["images"], tensor["ebv"]).softmax(dim=1)
    assert 1e-4 < (logits.exp() - bare).abs().max() < 0.2


def test_contradictions_fail_loudly_and_chance_does_not() -> None:
    n = 1000
    flags = np.zeros((4, n), bool)
    radius, zeros = np.full(n, 0.9, np.float32), np.zeros(n, np.float32)
    bounds = np.zeros((4, n), np.float32)
    made = Certificate(
        "robust",
        Smoothing(0.4, confidence=0.999),
        100,
        100,
        (0.2, 0.4, 0.6, 1.0),
        np.arange(n),
        zeros,
        zeros,
        radius,
        radius,
        bounds,
        bounds,
        flags,
        flags,
    )
    beyond = flags.copy()
    beyond[3, :] = True  # radius 1.0, which is not certified
    assert replace(made, outlier_surely=beyond).problem is None
    by_chance, wrong = flags.copy(), flags.copy()
    by_chance[1, :3] = True  # 2 expected of 1000 at 2 x 0.001
    wrong[1, :40] = True
    assert replace(made, outlier_surely=by_chance).problem is None
    said = replace(made, outlier_surely=wrong).problem
    assert said and "40 galaxies" in said and "'robust'" in said


def test_the_section_has_both_curves_and_a_table_of_every_galaxy(
    once: tuple[EvaluationResult, Certificate],
) -> None:
    pytest.importorskip("matplotlib")
    result, found = once
    section = certificate_section(result, [found])
    record = json.loads(json.dumps(section.record, allow_nan=False))["networks"]["standard"]
    assert record["radii_sky_sigma"] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert record["certified"] == [found.certified(radius) for radius in found.radii]
    assert record["check"] == {"contradictions": 0, "allowed": found.allowed, "passed": True}
    assert len(section.figures) == 2
    check_section(section)
    lines = certificate_table([found]).splitlines()
    assert len(lines) == 1 + N and lines[0].startswith(
        "run,object_id,z_spec,z_smooth,radius,radius_vote,z_low_0.2,"
    )
    cells = lines[1 + 5].split(",")
    assert cells[:2] == ["standard", "105"] and float(cells[4]) == pytest.approx(found.radius[5], rel=1e-5)
    assert lines[1].split(",")[2] == "" and "l2" in METHODS


def test_galaxies_without_z_spec_have_intervals_and_no_curve(
    once: tuple[EvaluationResult, Certificate],
) -> None:
    pytest.importorskip("matplotlib")
    result, found = once
    none = np.full(N, np.nan, np.float32)
    blind = replace(found, z_spec=none, radius=none, radius_vote=none)
    section = certificate_section(result, [blind])
    assert list(section.figures) == ["interval widths"]
    record = json.loads(json.dumps(section.record, allow_nan=False))["networks"]["standard"]
    assert record["median_radius_sky_sigma"] is None and "certified" not in record
    assert section.tables[0][1][1:] == ["no z_spec"] * 7
