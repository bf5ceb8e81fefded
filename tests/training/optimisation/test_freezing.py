"""Frozen parameters: named by patterns, unchanged by training, and without statistics that move."""

from pathlib import Path

import pytest
import torch

from hpcphotoz.errors import BadInput
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.distributed import group
from hpcphotoz.training.optimisation.freezing import freeze, frozen_names, training_mode
from hpcphotoz.training.overlap.roles import RankRole
from hpcphotoz.training.run.network import load_network
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.training.trainer import train
from hpcphotoz.world import World
from tests.helpers import ranks
from tests.helpers.networks import BatchNormNetwork, ConvNetwork
from tests.helpers.training.runs import SAME, arguments, assert_same_curve, config
from tests.helpers.training.steps import CPU
from tests.helpers.user_networks import NAME


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        (["head"], ["head.weight", "head.bias"]),
        (["body.0.weight"], ["body.0.weight"]),
        (["body.*.bias", "head.bia?"], ["body.0.bias", "body.2.bias", "head.bias"]),
        (["body"], ["body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias"]),
        ([], []),
    ],
)
def test_patterns_name_parameters_and_modules(patterns: list[str], frozen: list[str]) -> None:
    network = ConvNetwork()
    freeze(network, patterns)
    assert frozen_names(network) == frozen


def test_a_pattern_without_a_parameter_and_patterns_of_all_are_refused() -> None:
    with pytest.raises(
        BadInput, match=r"optimiser.freeze hed: no .* this name \(did you mean head\?\); it has"
    ):
        freeze(ConvNetwork(), ["body", "hed"])
    with pytest.raises(BadInput, match="nothing is left to train"):
        freeze(ConvNetwork(), ["*"])


def test_statistics_of_a_frozen_normalisation_stay() -> None:
    for patterns, moves in ((["norm"], False), (["norm.weight"], True)):
        network = BatchNormNetwork()
        freeze(network, patterns)
        training_mode(network)
        assert network.drop.training and network.norm.training == moves
        network(torch.randn(4, 3, 8, 8), torch.zeros(4))
        assert bool(network.norm.running_mean.any()) == moves  # type: ignore[union-attr]


def test_statistics_of_frozen_layers_stay_on_three_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of three equal numbers is another number, by rounding."""
    given = config(name=f"{NAME}:resnet", freeze=["blocks.0"])
    components = TrainingComponents.create(given, 16, [0.1] * 5, CPU, Timers(CPU))
    statistics = {name: value for name, value in components.module.state_dict().items() if "running" in name}
    with torch.no_grad():
        for value in statistics.values():
            value.uniform_(1, 2)
    before = {name: value.clone() for name, value in statistics.items()}
    monkeypatch.setattr(group, "sum_over_ranks", lambda values, *_: values.add_(values.clone(), alpha=2))
    components.end_step(0, RankRole(World(0, 3)), torch.ones(1))
    same = {name: torch.equal(value, before[name]) for name, value in statistics.items()}
    assert all(kept for name, kept in same.items() if name.startswith("blocks.0"))
    assert not all(same.values()), "the others have their mean"


FROZEN: dict[str, object] = {"freeze": "stem conv1", "weight_decay": 0.5, "epochs": 2}


def test_frozen_parameters_stay(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config(**FROZEN, max_steps=1), dataset, tmp_path / "start")
    assert "frozen: 4 of 12 parameters" in (said := capsys.readouterr().out)
    assert "stem.weight, stem.bias, conv1.weight, conv1.bias" in said
    train(config(**FROZEN), dataset, tmp_path / "end")
    begun, ended = (load_network(tmp_path / run).module.state_dict() for run in ("start", "end"))
    for name in ended:
        frozen = name.startswith(("stem", "conv1", "normalise"))
        assert torch.equal(begun[name], ended[name]) == frozen, name


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["off", "ranks"])
def test_frozen_parameters_stay_on_two_ranks(mode: str, dataset: Path, tmp_path: Path) -> None:
    train(config(**FROZEN), dataset, tmp_path / "one")
    words = arguments(dataset, tmp_path / "two", tmp_path, **FROZEN, mode=mode)
    for status, _, error in ranks.run(2, words):
        assert status == 0, error
    assert_same_curve(tmp_path / "two", tmp_path / "one", SAME)


def test_a_frozen_user_network_with_batch_normalisation_resumes(dataset: Path, tmp_path: Path) -> None:
    how = {"name": f"{NAME}:resnet", "freeze": ["blocks"], "epochs": 2}
    train(config(**how), dataset, tmp_path / "whole")
    train(config(**how, max_steps=4), dataset, tmp_path / "parts")
    train(config(**how), dataset, tmp_path / "parts")
    assert_same_curve(tmp_path / "parts", tmp_path / "whole", 0.0)
    state = load_network(tmp_path / "whole", trust_code=True).module.state_dict()
    assert (
        not state["blocks.0.norm1.running_mean"].any()
        and int(state["blocks.0.norm1.num_batches_tracked"]) == 0
    )


def test_another_freeze_does_not_continue_a_run(dataset: Path, tmp_path: Path) -> None:
    train(config(max_steps=1), dataset, tmp_path / "run")
    with pytest.raises(BadInput, match=r"another optimiser.freeze \(\[\], now \[.stem.\]\)"):
        train(config(freeze="stem"), dataset, tmp_path / "run")
