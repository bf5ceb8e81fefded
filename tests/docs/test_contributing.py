"""The examples of CONTRIBUTING.md run."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpcphotoz.attacks import cross_entropy, fgsm
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.layers import Normalise
from hpcphotoz.sources.catalogue import Catalogue
from tests.helpers.attack_problems import batch_norm_problem, rounding
from tests.helpers.pages import blocks, example, module, write_coadd
from tests.helpers.paths import ROOT

PAGE = "CONTRIBUTING.md"
LONGEST = 40  # lines of an example


@pytest.mark.parametrize("name", ["mifgsm.py", "legacy.py", "tiny.py", "kernels/clip.py"])
def test_examples_are_short(name: str) -> None:
    assert len([line for line in example(PAGE, name).splitlines() if line.strip()]) < LONGEST


def test_the_attack_stays_in_the_ball_and_raises_the_loss(tmp_path: Path) -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    model.eval()
    loss = cross_entropy(RedshiftBins(20, 0.0, 0.4))
    adv = module(example(PAGE, "mifgsm.py"), tmp_path, "mifgsm").mifgsm(model, images, ebv, z, eps, loss=loss)
    radius = eps[:, None, None]
    assert ((adv - images).abs() <= radius + rounding(images, radius)).all()
    assert (loss(model(adv, ebv), z) > loss(model(images, ebv), z)).all()


def test_the_survey_keeps_flux_and_lists_what_it_skips(tmp_path: Path) -> None:
    path = tmp_path / "image.fits"
    sky = write_coadd(path)
    legacy = module(example(PAGE, "legacy.py"), tmp_path, "legacy")
    ids = np.array([5, 6])
    objects = Catalogue(ids, sky[:, 0], sky[:, 1], np.array([0.1, np.nan]), np.array([0.02, 0.03]))
    manifest = legacy.ingest_legacy(
        tmp_path / "d", [legacy.Brick((path, path), objects)], ("g", "r"), processes=1
    )
    with h5py.File(tmp_path / "d" / manifest.shards[0].file) as file:
        assert file["object_id"][:].tolist() == [5]
        assert file["images"][0, :, 32, 32].tolist() == [7, 7]
        # 2048 pixels or more: 2 % of noise in the answer.
        np.testing.assert_allclose(file["sky_sigma"][0], 0.02, rtol=0.1)
    assert [entry["object_id"] for entry in manifest.provenance["skipped"]] == [6]


def test_the_network_has_gradients_everywhere(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = module(example(PAGE, "tiny.py"), tmp_path, "tiny").TinyCNN(Normalise("asinh", (0.1, 0.2)), 2, 20)
    images, ebv, z = torch.randn(3, 2, 17, 17), torch.rand(3), 0.3 * torch.rand(3)
    loss = cross_entropy(RedshiftBins(20, 0.0, 0.4))
    gradients = torch.autograd.grad(loss(tiny(images, ebv), z).sum(), tuple(tiny.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert not torch.equal(fgsm(tiny, images, ebv, z, torch.tensor([0.1, 0.1]), loss=loss), images)


def test_the_kernel_equals_its_reference(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed: the kernel cannot run")
    (tmp_path / "clip.py").write_text(example(PAGE, "kernels/clip.py"))
    definition = next(block for block in blocks(PAGE) if block.startswith("def clip("))
    check = (
        "import torch\nfrom torch import Tensor\nfrom hpcphotoz.kernels import reference\n"
        + definition
        + "reference.clip = clip\nimport clip as kernel\nkernel.wrap_triton = lambda jitted: jitted\n"
        "for shape in ((2, 3, 5, 7), (1, 2, 32, 32), (2, 1, 33, 47)):\n"
        "    images, limit = torch.randn(shape), torch.rand(shape[:2])\n"
        "    wanted = reference.clip(images, limit)\n"
        "    assert torch.equal(kernel.launch(images, limit), wanted), shape\n"
        "    assert torch.equal(kernel.clip(images, limit), wanted), shape\n"
        "    assert torch.equal(kernel.launch(images, limit, 64), wanted), shape\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", check],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert found.returncode == 0, found.stderr
