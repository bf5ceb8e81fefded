"""Validation under attack: the same objects after each epoch and on any number of ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hpcphotoz.attacks import perturb
from hpcphotoz.config import load as configuration
from hpcphotoz.evaluation.metrics import sigma_mad
from hpcphotoz.evaluation.network import compute_pdfs
from hpcphotoz.training.adversaries import start_seed
from hpcphotoz.training.optimisation.attacked_subset import chosen
from hpcphotoz.training.run.network import load_network
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.datasets import make_dataset
from tests.helpers.training.runs import arguments, assert_same_curve, config, validations

import hpcphotoz  # isort: skip


def test_the_choice_depends_on_seed_and_object_alone_and_grows_with_the_fraction() -> None:
    ids = np.arange(100_000)
    few, many = chosen(ids, 0.1, 3), chosen(ids, 0.2, 3)
    # Binomial: 5 sigma are 474 and 632 objects.
    assert abs(few.sum() - 10_000) < 474 and abs(many.sum() - 20_000) < 632
    assert not (few & ~many).any()
    assert np.array_equal(chosen(ids[::-1], 0.1, 3), few[::-1])
    assert (chosen(ids, 0.1, 4) != few).any()
    assert chosen(ids, 1.0, 3).all() and chosen(ids, 7.0, 3).all() and not chosen(ids, 0.0, 3).any()


def test_figures_are_those_of_the_attacked_objects(dataset: Path, tmp_path: Path) -> None:
    """Recomputed from the run's network and the dataset, with the attack of the configuration."""
    options = config(epochs=1, validation=0.5, validation_objects=15, global_batch=4, eps=2.0, max_steps=0)
    train(options, dataset, tmp_path / "run")
    (line,) = validations(tmp_path / "run")
    network = load_network(tmp_path / "run")
    batch = hpcphotoz.open(dataset, part="validation", network=network, device="cpu")[:]
    fraction = 15 / len(batch)
    rows = torch.from_numpy(chosen(batch.object_id.numpy(), fraction, options.run.seed))
    assert line["n"] == len(batch) and line["n_adversarial"] == int(rows.sum()) > 8
    given = [batch.images, batch.ebv, batch.z_spec, batch.sky_sigma, batch.object_id]
    images, ebv, z, sky_sigma, ids = (tensor[rows] for tensor in given)
    how = {"attack": options.attack, "bins": network.bins, "seed": start_seed(options)}
    adv = perturb(network.module, images, ebv, z, sky_sigma, ids, **how)  # type: ignore[arg-type]
    with torch.no_grad():
        found = compute_pdfs(network, adv, ebv, ids)
    dz = (network.bins.integral(found) - z).double() / (1 + z.double())
    assert line["sigma_mad_adversarial"] == pytest.approx(sigma_mad(dz.numpy()), rel=1e-4)


def test_the_loss_curve_is_the_same_and_every_epoch_attacks_the_same_number(
    alone: Path, dataset: Path, tmp_path: Path
) -> None:
    train(config(validation_objects=0), dataset, tmp_path / "none")
    assert_same_curve(tmp_path / "none", alone, 0.0)
    assert "n_adversarial" not in validations(tmp_path / "none")[0]
    train(config(validation_objects=4), dataset, tmp_path / "few")
    assert_same_curve(tmp_path / "few", alone, 0.0)
    numbers = [line["n_adversarial"] for line in validations(tmp_path / "few")]
    assert len(set(numbers)) == 1 and 0 < numbers[0] < validations(alone)[0]["n_adversarial"]


@pytest.mark.slow
def test_three_ranks_attack_the_same_objects(tmp_path: Path) -> None:
    """Where a rank has none of them, too."""
    data = make_dataset(tmp_path / "data", n=75, shard_rows=32)
    how = {"epochs": 1, "validation_objects": 3, "validation": 0.2}
    train(config(**how), data, tmp_path / "one")
    for status, _, error in ranks.run(3, arguments(data, tmp_path / "three", tmp_path, **how)):
        assert status == 0, error
    (one,), (three,) = validations(tmp_path / "one"), validations(tmp_path / "three")
    assert one["n_adversarial"] == three["n_adversarial"] > 0
    for name in ("bias_adversarial", "sigma_mad_adversarial"):
        assert one[name] == pytest.approx(three[name], abs=1e-5)


def test_by_default_adversarial_runs_attack_and_standard_ones_do_not() -> None:
    for recipe in configuration.recipes():
        config = configuration.load(recipe)
        assert config.adversarial.attacked_in_validation == (256 if "adversarial" in recipe else 0)
    asked = configuration.configure("test", validation_objects=10)
    assert asked.adversarial.attacked_in_validation == 10
    with pytest.raises(Exception, match="want auto, or a number of objects"):
        configuration.configure("test", validation_objects=-1)
