"""The examples of CONTRIBUTING.md run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table

import hpcphotoz
from hpcphotoz.attacks import cross_entropy, fgsm
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.layers import Normalise
from hpcphotoz.sources.surveys.ingest import ingest_images
from tests.helpers.attack_problems import batch_norm_problem, rounding
from tests.helpers.pages import blocks, example, module, write_coadd
from tests.helpers.paths import ROOT

PAGE = "CONTRIBUTING.md"
LONGEST = 40  # lines of an example


@pytest.mark.parametrize("name", ["mifgsm.py", "mine.py", "tiny.py", "kernels/attack/clip.py"])
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


@pytest.mark.slow
def test_the_attack_is_in_every_command_after_the_edits(dataset: Path, tmp_path: Path) -> None:
    for folder in ("hpcphotoz", "kernels", "launch"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)
    package = tmp_path / "hpcphotoz"
    call, entry = (next(b for b in blocks(PAGE) if start in b) for start in ("if attack.method", 'MI-FGSM",'))
    line = "from hpcphotoz.attacks.mifgsm import mifgsm\n"
    (package / "attacks" / "mifgsm.py").write_text(example(PAGE, "mifgsm.py"))
    for file, before, added in (
        ("attacks/__init__.py", "from hpcphotoz.attacks.minimal_eps", line),
        ("attacks/__init__.py", '    "minimal_eps",', '    "mifgsm",\n'),
        ("config/attack.py", '"apgd", ', '"mifgsm", '),
        ("attacks/from_config.py", "from hpcphotoz.attacks.pgd import", line),
        ("attacks/from_config.py", "    return pgd(", call),
        ("evaluation/attack_grid.py", '    "apgd": AttackMethod', entry),
    ):
        text = (package / file).read_text()
        assert text.count(before) == 1, f"{file}: {before}"
        (package / file).write_text(text.replace(before, added + before))
    for room in {path.parent for path in package.rglob("*.py")}:
        assert len(list(room.glob("*.py"))) <= 12, room
    run = hpcphotoz.train("standard", dataset, tmp_path / "run", device="cpu", width=8, bins=20, max_steps=1)
    where = ["--data", str(dataset), "--device", "cpu", "--steps", "2", "--restarts", "2"]
    attack = ["attack", str(run), *where, "--out", "attacked", "--method", "mifgsm", "--stop", "0.1"]
    evaluate = [
        "evaluate",
        str(run),
        *where,
        "--limit",
        "8",
        "--out",
        "report",
        "--eps",
        "0.1",
        "--attacks",
        "pgd",
        "mifgsm",
    ]
    code = (
        "import hpcphotoz\nfrom pathlib import Path\nfrom hpcphotoz.__main__ import main\n"
        "assert Path(hpcphotoz.__file__).parents[1] == Path.cwd()\n"
        f"assert main({attack}) == 0 and main({evaluate}) == 0\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "MI-FGSM takes 2 steps along" in (tmp_path / "report" / "report.html").read_text()
    summary = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert summary["attack"]["by_method"]["mifgsm"]["restarts"] == 2


def test_the_survey_keeps_flux_and_lists_what_it_skips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").mkdir()
    for band, zero_point in (("g", 22.5), ("r", 25.0)):
        path = tmp_path / "f" / f"tile-0001-{band}.fits"
        sky = write_coadd(path)
        with fits.open(path) as hdus:
            hdus[0].header["MAGZERO"] = zero_point
            weight = fits.ImageHDU(np.full(hdus[0].shape, 0.02**-2, np.float32))
            fits.HDUList([hdus[0], weight]).writeto(path, overwrite=True)
    mine = module(example(PAGE, "mine.py"), tmp_path, "mine")
    for name in ("surveys.ingest", "cutouts"):
        monkeypatch.setattr(f"hpcphotoz.sources.{name}.load_survey", lambda _: mine.SURVEY)
    Table({"object_id": [5, 6], "ra": sky[:, 0], "dec": sky[:, 1]}).write(tmp_path / "t.csv")
    options: dict[str, Any] = {"stamp": 33, "processes": 1, "storage": "float32"}
    manifest = ingest_images(tmp_path / "d", "mine", tmp_path / "f", tmp_path / "t.csv", **options)
    with h5py.File(tmp_path / "d" / manifest.shards[0].file) as file:
        assert file["object_id"][:].tolist() == [5]
        np.testing.assert_allclose(file["images"][0, :, 16, 16], [7, 0.7], rtol=1e-3)
        np.testing.assert_allclose(file["sky_sigma"][0], [0.02, 0.002], rtol=1e-4)
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
    (tmp_path / "clip.py").write_text(example(PAGE, "kernels/attack/clip.py"))
    definition = next(block for block in blocks(PAGE) if block.startswith("def clip("))
    check = (
        "import torch\nfrom torch import Tensor\nfrom hpcphotoz.kernels.attack import reference\n"
        + definition
        + "reference.clip = clip\nimport clip as kernel\nkernel.wrap_triton = lambda jitted: jitted\n"
        "for shape in ((2, 3, 5, 7), (1, 2, 32, 32), (2, 1, 33, 47)):\n"
        "    images, limit = torch.randn(shape), torch.rand(shape[:2])\n"
        "    wanted = reference.clip(images, limit)\n"
        "    assert torch.equal(kernel.launch(images, limit), wanted), shape\n"
        "    assert torch.equal(kernel.clip(images, limit), wanted), shape\n"
        "    assert torch.equal(kernel.launch(images, limit, 64), wanted), shape\n"
        "    for per_band in (limit[0], limit[0].expand(shape[:2])):\n"
        "        wanted = reference.clip(images, per_band)\n"
        "        assert torch.equal(kernel.launch(images, per_band), wanted), shape\n"
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
