"""Small end-to-end runs: simulate, train, evaluate and predict; and attacks on real galaxies."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcphotoz.__main__ import main
from tests.helpers.paths import DATA

SIZE = [
    "--model.bins",
    "60",
    "--model.width",
    "16",
    "--run.epochs",
    "6",
    "--optimiser.learning_rate",
    "2e-3",
]
SIZE += ["--run.global_batch", "32", "--compute.precision", "fp32"]


def command(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on 600 simulated galaxies, and 100 more to test on."""
    pytest.importorskip("galsim", reason="galsim is not installed: nothing can be simulated")
    out = tmp_path_factory.mktemp("job")
    assert command("simulate", out / "train", "--n", 600, "--seed", 1, "--shard-rows", 256) == 0
    assert command("simulate", out / "test", "--n", 100, "--seed", 2) == 0
    for recipe in ("standard", "adversarial"):
        assert command("train", recipe, "--data", out / "train", "--out", out / recipe, *SIZE) == 0
    return out


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stamps of real galaxies, without redshifts."""
    pytest.importorskip("astropy", reason="astropy is not installed: FITS cannot be read")
    frames = DATA / "sdss-stripe82"
    if not frames.is_dir():
        pytest.skip(f"no SDSS frames in {frames}: set HPCPHOTOZ_DATA to the folder that holds sdss-stripe82")
    out = tmp_path_factory.mktemp("real") / "set"
    words = [
        "ingest",
        "sdss-frames",
        out,
        "--frames",
        frames / "run-006377",
        "--objects",
        frames / "objects.csv",
    ]
    assert command(*words) == 0
    return out


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_evaluate_writes_what_the_readme_says(folder: Path, tmp_path: Path) -> None:
    words = [
        "evaluate",
        folder / "standard",
        folder / "adversarial",
        "--data",
        folder / "test",
        "--out",
        tmp_path,
    ]
    assert command(*words, "--eps", 0.1, 0.3, "--steps", 4, "--knn-train", folder / "train") == 0
    summary = json.loads((tmp_path / "metrics.json").read_text())
    for run in ("standard", "adversarial"):
        for condition in ("clean", "fgsm", "pgd"):
            figures = summary[run][condition]
            assert {"bias", "sigma_mad", "eta", "crps", "eps_sky_sigma", "n"} <= set(figures)
            assert figures["eps_sky_sigma"] == (0 if condition == "clean" else 0.1) and figures["n"] == 100
    assert summary["knn_colours"]["sigma_mad"] > 0
    # PGD raises its loss; the network has learnt something: a blind guess scatters by about 0.08.
    assert summary["standard"]["pgd"]["crps"] > summary["standard"]["clean"]["crps"]
    assert summary["standard"]["clean"]["sigma_mad"] < 0.04
    page = (tmp_path / "report.html").read_text()
    assert (
        "<img" in page and "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    )


def test_predict_gives_a_pdf_an_object(folder: Path, tmp_path: Path) -> None:
    words = ["predict", folder / "standard", folder / "adversarial", "--data", folder / "test"]
    assert command(*words, "--out", tmp_path / "pz.hdf5", "--tta") == 0
    with h5py.File(tmp_path / "pz.hdf5") as file:
        pdf = file["data/pdfs"][...] * np.diff(file["meta/bins"][0])
        np.testing.assert_allclose(pdf.sum(axis=1), 1, atol=1e-5)
        assert pdf.shape == (100, 60) and len(set(file["ancil/object_id"][...])) == 100


def test_real_galaxies_move_further_as_epsilon_grows(folder: Path, real: Path) -> None:
    import torch

    from hpcphotoz.evaluation.robustness import evaluate
    from hpcphotoz.training.run.network import load_network

    torch.manual_seed(0)
    networks = [load_network(folder / run) for run in ("standard", "adversarial")]
    result = evaluate(networks, real, eps=[0.05, 0.2, 0.5], methods=["pgd"], steps=4, keep_objects=True)
    assert result.unlabelled == result.objects > 40
    for network in result.networks:
        moved = [median for _, median, _ in network.shift_curve("pgd")]
        assert moved[0] == 0 and moved == sorted(moved), "an attack in a larger ball moves <z> further"
        assert all(np.isfinite(c.z_phot).all() and not c.metrics for c in network.conditions)
        assert 0.0 < np.median(network.clean.z_phot) < 0.4
    standard, adversarial = (network.shift_curve("pgd")[-1][1] for network in result.networks)
    assert standard > adversarial, "training on attacks steadies the network on real galaxies too"
