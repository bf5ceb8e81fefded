"""The benchmark of int16: a copy keeps to its error, and differences are told from the scatter of seeds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.training.storage import Judged, change, difference, store
from hpcphotoz.data.format.manifest import read_manifest
from tests.helpers.datasets import load, make_stamps, write_stamps

N = 400


def judged(seed: int, scatter: float = 0.02) -> Judged:
    rng = np.random.default_rng(seed)
    z = np.linspace(0.02, 0.38, N)
    clean, robust = (z + rng.normal(0, width, N) * (1 + z) for width in (scatter, 1.3 * scatter))
    return Judged(z, clean, robust, {"clean": scatter, "robust": 1.3 * scatter})


def test_a_copy_keeps_objects_and_stays_within_half_a_step(tmp_path: Path) -> None:
    stamps = make_stamps(40)
    stamps.images[7, 2, 3, 3] = 100  # 3,300 sky sigmas
    source = write_stamps(tmp_path / "a", stamps)
    found = store(source, tmp_path / "b", "int16")
    assert read_manifest(tmp_path / "b").header.storage == "int16"
    assert np.array_equal(load(tmp_path / "b").object_id, stamps.object_id)
    assert 0.9 / 64 < found["change_faint"] < 1.001 / 64 < found["change"] < 1
    assert found["images_with_bright_pixels"] == pytest.approx(1 / 200)


def test_errors_are_those_of_galaxies_and_of_seeds() -> None:
    float32, int16 = ([judged(seed) for seed in seeds] for seeds in ((1, 2, 3), (4, 5, 6)))
    found = difference(float32, int16, "clean")
    # sigma_MAD of N normal values has an error of 1.17 / sqrt(N) of it; the difference is of two means of 3.
    expected = 0.02 * 1.17 / np.sqrt(N) * np.sqrt(2 / 3)
    assert found["error"] == pytest.approx(expected, rel=0.4) and abs(found["mean"]) < 3 * expected
    same = difference(float32, float32, "robust")
    assert same["mean"] == same["error"] == same["crps_mean"] == 0 < same["scatter"] < same["seeds_error"] * 3


def test_a_worse_network_is_told() -> None:
    float32, int16 = ([judged(seed, width) for seed in (1, 2, 3)] for width in (0.02, 0.024))
    found = difference(float32, int16, "robust")
    assert found["mean"] > max(2 * found["seeds_error"], 3 * found["error"])
    assert found["mean"] == pytest.approx(0.004 * 1.3, rel=0.2) and found["crps_mean"] > 0


def test_the_change_of_one_network_is_that_of_its_predictions() -> None:
    first = judged(1)
    found = change(first, replace(first, clean=first.clean + np.linspace(0, 1e-3, N)))
    assert found["z_max_clean"] == pytest.approx(1e-3) and found["z_median_clean"] == pytest.approx(5e-4)
    assert found["z_max_robust"] == 0 and "sigma_mad_clean" in found
    assert "sigma_mad_clean" not in change(replace(first, crps={}), replace(first, crps={}))
