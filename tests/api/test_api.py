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
from hpcphotoz.models.bins import RedshiftBins
from tests.helpers.datasets import load, make_dataset
from tests.helpers.training.runs import SMALL


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
    assert repr(opened) == f"<Dataset {dataset}: 75 objects, bands u g r i z, stamps of 16 x 16 pixels>"
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
    for bands, said in (("gri", "g,r,i"), ("zirgu", "z,i,r,g,u")):
        other = hpcphotoz.open(make_dataset(tmp_path / bands, n=4, shard_rows=4, bands=bands), device="cpu")
        with pytest.raises(BadInput, match=f"a batch of bands {said} but run 'run' takes u,g,r,i,z, in that"):
            hpcphotoz.attack(network, next(iter(other)))


NAN, X = torch.nan, torch.zeros(2, 5, 16, 16)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"images": X.numpy()}, "images: a ndarray: want a torch tensor"),
        ({"images": X[0, 0, 0, 0]}, r"images of shape \(\), but"),
        ({"images": X.double()}, "images of type torch.float64, but run 'run' takes torch.float32"),
        ({"images": X[:, :4]}, r"\(2, 4, 16, 16\).* takes \(2, 5, 16, 16\)$"),
        ({"images": X[..., :8]}, r"\(2, 5, 16, 8\).* takes \(2, 5, 16, 16\)"),
        ({"images": X.to("meta")}, "images on meta, but run 'run' is on cpu"),
        (
            {"images": X + torch.tensor([0, torch.inf])[:, None, None, None]},
            "object 1: inf in images: must be",
        ),
        ({"ebv": None}, "ebv: a NoneType: want a torch tensor"),
        ({"ebv": torch.zeros(1)}, r"ebv of shape \(1,\), but .* takes \(2,\)"),
        ({"ebv": torch.tensor([0, NAN])}, "object 1: nan in ebv: must be finite"),
        ({"z_spec": torch.zeros(3)}, "attack: z_spec of shape"),
        ({"sky_sigma": torch.ones(5)}, "attack: sky_sigma of shape"),
        ({"sky_sigma": torch.zeros(2, 5)}, "object 0: 0 in sky_sigma: must be finite and positive"),
        (
            {"object_id": torch.arange(2, dtype=torch.int32)},
            "torch.int32, but run 'run' takes torch.int64",
        ),
        ({"seed": 1.5}, "seed 1.5: must be a whole number"),
        ({"seed": 2**63}, "seed 9223372036854775808: must be a whole number of 64 bits"),
    ],
)
def test_attack_and_pdf_refuse_tensors_that_mean_nothing(run: Path, given: dict[str, Any], said: str) -> None:
    network = hpcphotoz.load(run, device="cpu")
    given, seed = {**given}, given.get("seed", 0)
    given.pop("seed", None)
    batch = api.StampBatch(
        X, torch.zeros(2), torch.full((2,), NAN), torch.ones(2, 5), torch.arange(2), network.bands
    )
    batch = replace(batch, **given)
    with pytest.raises(BadInput, match=said):
        hpcphotoz.attack(network, batch, seed=seed)
    if given.keys() & {"images", "ebv"}:
        with pytest.raises(BadInput, match=said):
            network.pdf(batch.images, batch.ebv)


def test_attack_and_pdf_keep_mode_and_precision_of_the_caller(run: Path, dataset: Path) -> None:
    network = hpcphotoz.load(run, device="cpu")
    batch = next(iter(hpcphotoz.open(dataset, device="cpu")))
    batch = replace(batch, z_spec=torch.full_like(batch.z_spec, NAN))
    plain = hpcphotoz.attack(network, batch), network.pdf(batch.images, batch.ebv)
    network.module.train()
    next(network.module.children()).eval()
    modes = [part.training for part in network.module.modules()]
    with torch.autocast("cpu", torch.bfloat16):
        again = hpcphotoz.attack(network, batch), network.pdf(batch.images, batch.ebv)
    assert modes == [part.training for part in network.module.modules()] and any(modes)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_train_and_load_leave_the_random_state_of_the_caller(dataset: Path, tmp_path: Path) -> None:
    torch.manual_seed(8)
    before = torch.get_rng_state()
    hpcphotoz.train("adversarial", dataset, tmp_path / "run", device="cpu", **SMALL)
    hpcphotoz.load(tmp_path / "run", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_device_is_one_of_three_words(run: Path, dataset: Path) -> None:
    device: Any
    for device in ("gpu", "cuda:0", torch.device("cuda")):
        for call in (
            lambda device=device: hpcphotoz.load(run, device=device),
            lambda device=device: hpcphotoz.open(dataset, device=device),
            lambda device=device: hpcphotoz.train("adversarial", dataset, run, device=device),
        ):
            with pytest.raises(BadInput, match="device .*: want one of 'auto', 'cuda', 'cpu'"):
                call()


def test_open_refuses_a_part_without_objects_and_a_batch_that_is_no_number(run: Path, dataset: Path) -> None:
    whole = configure("test").data
    with pytest.raises(BadInput, match="the split of the training has no test part .data.test is 0."):
        hpcphotoz.open(dataset, subset=Subset.from_options(whole, "test", tuple("ugriz")), device="cpu")
    batch: Any
    for batch in (2.5, "8"):
        with pytest.raises(BadInput, match="batch .*: must be a whole number"):
            hpcphotoz.open(dataset, batch=batch, device="cpu")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"n": 2.5}, "n 2.5: must be a whole number"),
        ({"n": "8"}, "n '8': must be a whole number"),
        ({"seed": 1.5}, "seed 1.5: must be a whole number"),
        ({"shard_rows": 1.5}, "shard_rows 1.5: must be a whole number"),
        ({"processes": 1.5}, "processes 1.5: must be a whole number"),
        ({"storage": "x"}, "storage 'x': want one of float32, float16, int16"),
    ],
)
def test_simulate_refuses_arguments_of_the_wrong_type(given: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        hpcphotoz.simulate(tmp_path / "set", **{"n": 4, **given})
    assert not (tmp_path / "set").exists()


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


class Bilinear(torch.nn.Bilinear):
    def forward(self, input1: Any, input2: Any, third: Any) -> Any:  # type: ignore[override]
        raise NotImplementedError


class ImagesOnly(torch.nn.Module):
    """20 logits of images alone; an option of its forward is no E(B-V)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(5 * 16 * 16, 20)

    def forward(self, images: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        logits: torch.Tensor = self.head(images.flatten(1))
        return scale * logits


class WithEbv(ImagesOnly):
    def forward(self, images: torch.Tensor, ebv: torch.Tensor | None = None) -> torch.Tensor:  # type: ignore[override]
        assert ebv is not None and ebv.shape == (len(images),)
        return super().forward(images) + ebv[:, None]


@pytest.mark.parametrize("kind", [ImagesOnly, WithEbv])
def test_a_module_of_ones_own_is_attacked_as_a_trained_network(
    run: Path, dataset: Path, kind: type[ImagesOnly]
) -> None:
    torch.manual_seed(0)
    module, batch = kind(), hpcphotoz.open(dataset, device="cpu")[:12]
    batch = replace(batch, z_spec=torch.cat([torch.tensor([NAN]), batch.z_spec[1:]]))
    bins = RedshiftBins(20, 0.0, 0.4)
    attacked = hpcphotoz.attack(module, batch, bins=bins, eps=0.2, steps=3)
    change = (attacked - batch.images).abs() / batch.sky_sigma[:, :, None, None]
    assert 0.19 < change.max() <= 0.2 * (1 + 1e-4) and module.training

    class Called(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, images: torch.Tensor, ebv: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(images) if kind is ImagesOnly else self.inner(images, ebv)
            return logits

    trained = replace(hpcphotoz.load(run, device="cpu"), module=Called())
    assert torch.equal(attacked, hpcphotoz.attack(trained, batch, eps=0.2, steps=3))


def test_a_module_is_attacked_only_with_bins_that_are_those_of_its_logits(run: Path, dataset: Path) -> None:
    batch, bins = hpcphotoz.open(dataset, device="cpu")[:4], RedshiftBins(20, 0.0, 0.4)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5 * 16 * 16, 20))
    wrong: Any
    for wrong in (None, 20):
        with pytest.raises(BadInput, match="attack: bins: want those of the module Sequential: say what"):
            hpcphotoz.attack(module, batch, bins=wrong)
    for n in (10, 30):
        with pytest.raises(BadInput, match=rf"module Sequential: logits of shape \(1, 20\) for .* {n} bins"):
            hpcphotoz.attack(module, batch, bins=RedshiftBins(n, 0.0, 0.4))
    with pytest.raises(BadInput, match="object .* inf in images"):
        hpcphotoz.attack(module, replace(batch, images=batch.images / 0), bins=bins)
    with pytest.raises(BadInput, match="bins: run 'run' has its own: leave them out"):
        hpcphotoz.attack(hpcphotoz.load(run, device="cpu"), batch, bins=RedshiftBins(10, 0.0, 0.4))
    with pytest.raises(BadInput, match="attack: module Bilinear: its forward takes input1, input2, third: w"):
        hpcphotoz.attack(Bilinear(4, 4, 20), batch, bins=bins)
    assert hpcphotoz.attack(module, batch, bins=bins).shape == batch.images.shape
    for count in (0, 1):
        few = hpcphotoz.open(dataset, device="cpu")[:count]
        assert hpcphotoz.attack(module, few, bins=bins).shape == (count, 5, 16, 16)


def test_attack_takes_networks_and_batches_only(run: Path, dataset: Path) -> None:
    network, batch = hpcphotoz.load(run, device="cpu"), hpcphotoz.open(dataset, device="cpu")[:2]
    other: Any
    for other in (batch.images, batch.images.numpy(), {"images": batch.images}, None, "set"):
        with pytest.raises(BadInput, match="attack: batch: a .*: want a StampBatch, such as hpcphotoz.open"):
            hpcphotoz.attack(network, other)
    for other in (str(run), run, None, torch.nn.Linear):
        with pytest.raises(BadInput, match="attack: network: a .*: want hpcphotoz.load.RUN., or a torch mod"):
            hpcphotoz.attack(other, batch)
