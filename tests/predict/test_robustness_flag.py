"""The flag of objects that a small perturbation moves: against the analytic answer of a logistic network."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import torch

from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.evaluation.batches import to_tensors
from hpcphotoz.predict import predict
from hpcphotoz.predict.robustness_flag import robustness_flag
from tests.helpers.datasets import noise_stamps, write_stamps
from tests.helpers.networks import LogisticNetwork, StubNetwork


def analytic(network: StubNetwork, content: Stamps) -> np.ndarray:
    """Smallest epsilon of <z> = 0.1 + 0.2 sigmoid(w . x), whose best attack is the sign of the weights."""
    assert isinstance(network.module, LogisticNetwork)
    w = network.module.w.detach().double().numpy()
    logit = (content.images * w).sum(axis=(1, 2, 3))
    z = 0.1 + 0.2 / (1 + np.exp(-logit))
    rate = (np.abs(w).sum(axis=(1, 2)) * content.sky_sigma).sum(axis=1)  # of the logit, per sky sigma
    least = np.full(len(z), np.inf)
    for sign in (1, -1):
        target = (z + sign * 0.05 * (1 + z) - 0.1) / 0.2
        inside = (target > 0) & (target < 1)
        t = np.clip(target, 1e-9, 1 - 1e-9)
        least = np.where(inside, np.minimum(least, np.abs(np.log(t / (1 - t)) - logit) / rate), least)
    return least


def test_minimal_eps_is_that_of_the_change_of_the_mean_redshift() -> None:
    content, network = noise_stamps(40, unknown=20), StubNetwork()
    expected = analytic(network, content)
    threshold = float(np.median(expected))
    found = robustness_flag([network], to_tensors(content, "cpu"), threshold)
    clear = np.abs(expected / threshold - 1) > 0.04  # the bisection leaves 2.7 %
    np.testing.assert_array_equal(found["fragile"][clear], (expected <= threshold)[clear])
    assert 10 < found["fragile"].sum() < 30 and found["fragile"].dtype == np.uint8
    hit = found["fragile"] == 1
    np.testing.assert_allclose(found["minimal_eps"][hit], expected[hit], rtol=0.04)
    assert np.isinf(found["minimal_eps"][~hit]).all()


def test_the_most_fragile_network_counts() -> None:
    content = to_tensors(noise_stamps(8), "cpu")
    one, two = StubNetwork(), StubNetwork("other", LogisticNetwork(0.03, seed=1))
    alone = [robustness_flag([network], content, 1.0)["minimal_eps"] for network in (one, two)]
    np.testing.assert_array_equal(
        robustness_flag([one, two], content, 1.0)["minimal_eps"], np.minimum(*alone)
    )


def test_the_flag_is_a_column_of_the_file_and_of_the_points(tmp_path: Path) -> None:
    content = noise_stamps(24)
    content = replace(content, z_spec=np.full_like(content.z_spec, np.nan))
    data, out, points = write_stamps(tmp_path / "d", content), tmp_path / "pz.hdf5", tmp_path / "points.csv"
    predict([StubNetwork()], data, out, batch=16, flag_below=0.5, points=points)
    with h5py.File(out) as file:
        fragile, eps = file["ancil/fragile"][:], file["ancil/minimal_eps"][:]
        assert json.loads(file.attrs["prediction"])["flag_below"] == 0.5
    np.testing.assert_array_equal(fragile, eps <= 0.5)
    found = np.genfromtxt(points, delimiter=",", names=True)
    np.testing.assert_array_equal(found["fragile"], fragile)
    np.testing.assert_allclose(found["minimal_eps"], eps, rtol=1e-6)
    assert torch.is_grad_enabled()
