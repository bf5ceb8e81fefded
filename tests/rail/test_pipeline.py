"""The pipeline of the how-to page, exactly as printed: RAIL's evaluator finds the figures that we find."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("rail.core", reason="needs pz-rail-base: pip install 'hpcphotoz[rail]'")

import qp

from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.evaluation import metrics
from hpcphotoz.training.run.network import load_network
from tests.helpers.datasets import load
from tests.helpers.pages import blocks
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow

PAGE = "docs/how-to/rail.md"
Floats = npt.NDArray[np.float64]


def commands() -> list[str]:
    """The command lines of the page's section on pipelines."""
    section = (ROOT / PAGE).read_text().partition("## Train and estimate")[2]
    found = re.search(r"^```\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert found
    return found[1].splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of the page have run, on its two files."""
    folder = tmp_path_factory.mktemp("rail")
    files = re.findall(
        r"^`([\w.]+)`:\n```yaml\n(.*?)^```", (ROOT / PAGE).read_text(), re.DOTALL | re.MULTILINE
    )
    assert [name for name, _ in files] == ["photoz.yml", "photoz_config.yml"]
    for name, content in files:
        (folder / name).write_text(content)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if shutil.which("mpirun", path=path) is None:
        pytest.skip("no mpirun: pip install mpich")
    for command in commands():
        done = subprocess.run(
            command.split(),
            cwd=folder,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=250,
            check=False,
        )
        logs = "".join(log.read_text() for log in (folder / "out").glob("logs/*.out"))
        assert done.returncode == 0, done.stdout + logs
    return folder


@pytest.fixture(scope="module")
def test_set(folder: Path) -> Stamps:
    return load(folder / "data" / "test")


@pytest.fixture(scope="module")
def pz(folder: Path) -> qp.Ensemble:
    return qp.read(str(folder / "out" / "pz.hdf5"))


def test_every_object_has_a_pdf_in_order(folder: Path, test_set: Stamps, pz: qp.Ensemble) -> None:
    np.testing.assert_array_equal(pz.ancil["id"], test_set.object_id)
    np.testing.assert_array_equal(pz.ancil["redshift"], test_set.z_spec)
    with h5py.File(folder / "out" / "truth.hdf5") as truth:
        np.testing.assert_array_equal(truth["redshift"], test_set.z_spec)
    assert load_network(folder / "out" / "model.safetensors").step == 24
    assert not list((folder / "out").glob("inprogress*"))


def test_the_figures_of_rail_are_ours(folder: Path, test_set: Stamps, pz: qp.Ensemble) -> None:
    with h5py.File(folder / "out" / "figures.hdf5") as file:
        rail = {name: float(values[0]) for name, values in file.items()}
    z_spec = test_set.z_spec.astype(np.float64)
    dz = metrics.residuals(pz.ancil["zmean"], z_spec)
    sigma_iqr = np.subtract(*np.percentile(dz, [75, 25])) / 1.349
    close: Any = {"rel": 1e-6, "abs": 1e-7}  # RAIL's residuals are float32 where its redshifts are
    assert rail["point_bias_zmean_redshift"] == pytest.approx(np.median(dz), **close)
    assert rail["point_stats_sigma_mad_zmean_redshift"] == pytest.approx(metrics.sigma_mad(dz), **close)
    assert rail["point_stats_iqr_zmean_redshift"] == pytest.approx(sigma_iqr, **close)
    outliers = metrics.eta(dz, max(0.06, 3 * sigma_iqr))
    assert rail["point_outlier_rate_zmean_redshift"] == pytest.approx(outliers, abs=1e-12)
    # The trapezium rule over the bins' centres leaves out half of the first and of the last bin.
    edges, p = np.squeeze(pz.metadata["bins"]), probabilities(pz)
    density, width = p / np.diff(edges), edges[1] - edges[0]
    ends = (density[:, 0] ** 2 + density[:, -1] ** 2).mean() * width / 2
    ours = metrics.cde_loss(p, edges, z_spec).mean()
    assert rail["cdeloss_redshift"] == pytest.approx(ours - ends, rel=1e-5)


def test_the_pit_of_rail_is_ours(folder: Path, test_set: Stamps, pz: qp.Ensemble) -> None:
    found = qp.read_dict(str(folder / "out" / "pit.hdf5"))["pit_redshift"]
    edges = np.squeeze(pz.metadata["bins"])
    ours = metrics.pit(probabilities(pz), edges, test_set.z_spec)
    quantiles = np.quantile(ours, np.squeeze(found.metadata["quants"]))
    np.testing.assert_allclose(np.squeeze(found.objdata["locs"]), quantiles, atol=1e-6)


def test_the_page_s_python_reads_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, test_set: Stamps
) -> None:
    monkeypatch.chdir(folder / "out")
    Path("data").symlink_to(folder / "data")
    names: dict[str, Any] = {}
    for block in blocks(PAGE):
        exec(block, names)
    quantiles, photoz = names["quantiles"], names["photoz"]
    assert isinstance(quantiles, np.ndarray) and quantiles.shape == (len(test_set), 3)
    assert photoz.data.npdf == len(test_set)
    np.testing.assert_allclose(names["pdfs"].objdata["pdfs"], photoz.data.objdata["pdfs"], atol=1e-4)


def probabilities(ensemble: qp.Ensemble) -> Floats:
    """Probability per bin of a histogram ensemble, (N, n)."""
    found: Floats = ensemble.objdata["pdfs"] * np.diff(np.squeeze(ensemble.metadata["bins"]))
    return found
