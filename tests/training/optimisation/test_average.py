"""The average of the weights: its formula, its exchange with the weights, and where it is used."""

from pathlib import Path

import pytest
import torch

from hpcphotoz.training.optimisation.average import WeightAverage, ema_decay
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.run.export import export
from hpcphotoz.training.run.network import load_network
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.networks import BatchNormNetwork
from tests.helpers.training.runs import SAME, arguments, assert_same_curve, config, validations
from tests.helpers.user_networks import NAME


def test_the_decay_grows_to_its_value() -> None:
    assert ema_decay(0, 0.99) == 0.1 and ema_decay(1, 0.99) == 2 / 11
    assert ema_decay(10_000, 0.99) == 0.99


def test_weights_and_running_statistics_are_averaged_and_counts_are_those_of_the_network() -> None:
    network = BatchNormNetwork()
    average = WeightAverage(network, 0.5)
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for step in range(12):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        network(torch.randn(4, 3, 8, 8), torch.zeros(4))  # changes the running statistics
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
    found = average.state_dict()
    assert int(found["norm.num_batches_tracked"]) == 12
    assert not torch.equal(found["norm.running_mean"], network.state_dict()["norm.running_mean"])
    for name, tensor in expected.items():
        if tensor.is_floating_point():  # twelve roundings of numbers of order one
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


def test_in_place_of_the_weights_and_back_to_the_bit_in_the_same_memory() -> None:
    network = BatchNormNetwork()
    average = WeightAverage(network, 0.5)
    with torch.no_grad():
        network.head.weight += 1
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    places = [parameter.data_ptr() for parameter in network.parameters()]
    with pytest.raises(KeyboardInterrupt), average.in_place():
        assert not torch.equal(network.head.weight, own["head.weight"])
        torch.testing.assert_close(network.head.weight, own["head.weight"] - 1)
        raise KeyboardInterrupt
    assert all(torch.equal(tensor, own[name]) for name, tensor in network.state_dict().items())
    assert places == [parameter.data_ptr() for parameter in network.parameters()]


@pytest.fixture(scope="module")
def averaged(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "averaged"
    train(config(ema_decay=0.9), dataset, out)
    return out


def test_the_loss_curve_is_that_without_and_the_validation_another(averaged: Path, alone: Path) -> None:
    assert_same_curve(averaged, alone, 0.0)
    assert validations(averaged)[0]["sigma_mad"] != validations(alone)[0]["sigma_mad"]


def test_the_average_is_loaded_and_exported(averaged: Path, alone: Path, tmp_path: Path) -> None:
    newest = checkpoint.latest(averaged)
    assert newest is not None
    state = checkpoint.load(newest)
    loaded = load_network(averaged)
    assert all(torch.equal(tensor, state["ema"][name]) for name, tensor in loaded.module.state_dict().items())
    last = load_network(alone).module.state_dict()
    assert all(torch.equal(tensor, last[name]) for name, tensor in state["model"].items())
    assert not torch.equal(state["ema"]["head.weight"], state["model"]["head.weight"])
    pytest.importorskip("safetensors", reason="needs hpcphotoz[export]")
    export(averaged, tmp_path / "network.safetensors")
    exported = load_network(tmp_path / "network.safetensors").module.state_dict()
    assert all(torch.equal(tensor, state["ema"][name]) for name, tensor in exported.items())


def test_resumed_gives_the_same_bits(averaged: Path, dataset: Path, tmp_path: Path) -> None:
    for stop in (7, 0):
        train(config(ema_decay=0.9, max_steps=stop), dataset, tmp_path / "run")
    ours, theirs = (load_network(run).module.state_dict() for run in (tmp_path / "run", averaged))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert validations(tmp_path / "run") == validations(averaged)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [pytest.param({}, marks=pytest.mark.slow), {"mode": "ranks", "attackers": 1}], ids=str
)
def test_two_ranks_have_the_same_average(
    how: dict[str, object], averaged: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for status, _, error in ranks.run(2, arguments(dataset, out, tmp_path, ema_decay=0.9, **how)):
        assert status == 0, error
    assert_same_curve(out, averaged, SAME)
    ours, theirs = (load_network(run).module.state_dict() for run in (out, averaged))
    # Weights follow gradients of another summation order through Adam: its first steps divide by them.
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4) for name in ours)


def test_a_network_with_batch_normalisation_is_validated_with_its_averaged_statistics(
    dataset: Path, tmp_path: Path
) -> None:
    how = {"name": f"{NAME}:resnet", "epochs": 2}
    train(config(**how, ema_decay=0.9), dataset, tmp_path / "run")
    train(config(**how), dataset, tmp_path / "last")
    assert_same_curve(tmp_path / "run", tmp_path / "last", 0.0)
    ours, theirs = (load_network(tmp_path / run, trust_code=True).module for run in ("run", "last"))
    for name, tensor in ours.state_dict().items():
        same = torch.equal(tensor, theirs.state_dict()[name])
        assert same == (name.endswith("num_batches_tracked") or name.startswith("normalise")), name
