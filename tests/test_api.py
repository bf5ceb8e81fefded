"""The public functions of the package, from data to the PDF of an attacked galaxy."""

import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hpcphotoz
from hpcphotoz import api
from hpcphotoz.config.load import configure
from hpcphotoz.data.select.subset import Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.adversarial_dataset import write_adversarial_dataset
from tests.helpers.datasets import load, make_dataset

SMALL: dict[str, Any] = {"bins": 20, "width": 8, "global_batch": 16, "max_steps": 6, "precision": "fp32"}


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("api") / "run"
    assert hpcphotoz.train("adversarial", dataset, out, device="cpu", test=0.3, **SMALL) == out
    return out


def test_public_names_are_imported_when_first_used() -> None:
    code = (
        "import sys, hpcphotoz\n"
        "assert set(hpcphotoz.__all__) < set(dir(hpcphotoz)) and 'torch' not in sys.modules\n"
        "assert all(callable(getattr(hpcphotoz, name)) for name in hpcphotoz.__all__)\n"
        "assert not hasattr(hpcphotoz, 'attcak')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("name", hpcphotoz.__all__)
def test_a_public_function_describes_its_arguments_and_errors(name: str) -> None:
    function = getattr(hpcphotoz, name)
    assert function is getattr(api, name)
    text = inspect.getdoc(function) or ""
    assert "Raises:" in text and "BadInput:" in text
    for argument in inspect.signature(function).parameters:
        assert f"    {argument}: " in text


def test_a_dataset_gives_all_objects_in_batches(dataset: Path) -> None:
    opened = hpcphotoz.open(str(dataset), batch=20, device="cpu")
    batches = list(opened)
    assert opened.manifest.rows == 75 and max(map(len, batches)) == 20
    stored = load(dataset, opened.manifest)
    for name in ("images", "ebv", "z_spec", "sky_sigma", "object_id"):
        found = torch.cat([getattr(batch, name) for batch in batches])
        np.testing.assert_array_equal(found.numpy(), getattr(stored, name))
    with pytest.raises(BadInput, match="batch 0: must be at least 1"):
        hpcphotoz.open(dataset, batch=0)


def test_options_by_name_replace_those_of_the_recipe(run: Path) -> None:
    config = hpcphotoz.load(run, device="cpu").config
    assert config.run.max_steps == 6 and config.data.test == 0.3 and config.adversarial.fraction > 0
    with pytest.raises(BadInput, match="train: unknown option epoch .did you mean epochs?"):
        hpcphotoz.train("adversarial", run, run, epoch=3)
    with pytest.raises(BadInput, match="train: run.epochs = -3: "):
        hpcphotoz.train(config, run, run, epochs=-3)


def test_a_network_gives_the_pdfs_of_attacked_images_on_its_test_part(run: Path, dataset: Path) -> None:
    network = hpcphotoz.load(run, device="cpu")
    part = Subset.from_options(network.config.data, "test", network.bands)
    objects = 0
    for batch in hpcphotoz.open(dataset, subset=part, device="cpu"):
        attacked = hpcphotoz.attack(network, batch, eps=0.2, steps=3)
        change = (attacked - batch.images).abs() / batch.sky_sigma[:, :, None, None]
        assert 0.19 < change.max() <= 0.2 * (1 + 1e-4)
        pdf = network.pdf(attacked, batch.ebv)
        assert pdf.shape == (len(batch), 20)
        torch.testing.assert_close(pdf.sum(dim=1), torch.ones(len(batch)))
        objects += len(batch)
    assert 5 < objects < 45


@pytest.mark.parametrize("method", ["fgsm", "pgd", "apgd"])
def test_attack_is_the_attack_of_the_command_line(
    run: Path, dataset: Path, tmp_path: Path, method: str
) -> None:
    network = hpcphotoz.load(run, device="cpu")
    chosen = configure("test", method=method, eps=0.3, steps=3, loss="shift").attack
    write_adversarial_dataset(network, dataset, tmp_path / "out", chosen, seed=4, batch=32)
    batches = hpcphotoz.open(dataset, batch=32, device="cpu")
    attacked = [
        hpcphotoz.attack(network, batch, method=method, eps=0.3, steps=3, seed=4, loss="shift")
        for batch in batches
    ]
    written = load(tmp_path / "out")
    np.testing.assert_array_equal(torch.cat(attacked).numpy(), written.images)


def test_an_object_of_unknown_redshift_is_attacked_away_from_its_prediction(run: Path, dataset: Path) -> None:
    network = hpcphotoz.load(run, device="cpu")
    batch = next(iter(hpcphotoz.open(dataset, device="cpu")))
    predicted = network.bins.centres()[network.pdf(batch.images, batch.ebv).argmax(dim=1)]
    unknown = replace(batch, z_spec=torch.full_like(batch.z_spec, torch.nan))
    torch.testing.assert_close(
        hpcphotoz.attack(network, unknown), hpcphotoz.attack(network, replace(batch, z_spec=predicted))
    )


def test_attack_refuses_batches_that_do_not_fit_the_network(run: Path, dataset: Path, tmp_path: Path) -> None:
    network = hpcphotoz.load(run, device="cpu")
    batch = next(iter(hpcphotoz.open(dataset, device="cpu")))
    with pytest.raises(BadInput, match="attack: unknown key 'attack.epsilon'"):
        hpcphotoz.attack(network, batch, epsilon=0.1)
    with pytest.raises(BadInput, match="object .* has z_spec 0.5000, outside"):
        hpcphotoz.attack(network, replace(batch, z_spec=torch.full_like(batch.z_spec, 0.5)))
    other = hpcphotoz.open(make_dataset(tmp_path / "gri", n=4, shard_rows=4, bands="gri"), device="cpu")
    with pytest.raises(BadInput, match=r"images of shape \(3, 16, 16\) but run 'run' takes \(5, 16, 16\)"):
        hpcphotoz.attack(network, next(iter(other)))


@pytest.mark.slow
def test_simulate_in_a_script_does_not_repeat_the_script(tmp_path: Path) -> None:
    """Processes that Python spawns import the main script; this one has no `if __name__ == "__main__"`."""
    pytest.importorskip("galsim", reason="galsim is not installed: nothing can be simulated")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, hpcphotoz\n"
        "data = hpcphotoz.simulate(sys.argv[1], 40, processes=2)\n"
        "print(hpcphotoz.open(data, device='cpu').manifest.rows)\n"
        "print(__file__)\n"
    )
    words = [sys.executable, str(script), str(tmp_path / "set")]
    found = subprocess.run(words, capture_output=True, text=True, timeout=200, check=True)
    assert found.stdout.split() == ["40", str(script)]
