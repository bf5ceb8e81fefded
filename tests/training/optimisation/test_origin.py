"""`train --from RUN`: another run's weights as the start."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hpcphotoz.errors import BadInput
from hpcphotoz.training.distributed import group
from hpcphotoz.training.distributed.preflight import difference
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.run.network import load_network, save_network
from hpcphotoz.training.trainer import train
from hpcphotoz.world import World
from tests.helpers import ranks
from tests.helpers.commands import fails
from tests.helpers.datasets import make_stamps, write_stamps
from tests.helpers.training.runs import SAME, arguments, assert_same_curve, config
from tests.helpers.user_networks import NAME


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of other noise, so that it has another scale."""
    stamps = make_stamps(40, seed=9)
    stamps = replace(stamps, images=2 * stamps.images, sky_sigma=2 * stamps.sky_sigma)
    return write_stamps(tmp_path_factory.mktemp("data") / "other", stamps, shard_rows=20)


def scale_of(run: Path) -> list[float]:
    newest = checkpoint.latest(run)
    assert newest is not None
    scale: list[float] = checkpoint.load(newest)["scale"]
    return scale


def test_a_run_begins_with_the_weights_and_the_scale_of_another(
    alone: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a learning rate near 0 the network stays that of the other run, on other noise too."""
    still = config(learning_rate=1e-30, epochs=1)
    train(still, other, tmp_path / "run", start_from=alone)
    ours, theirs = (load_network(run) for run in (tmp_path / "run", alone))
    state = theirs.module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.module.state_dict().items())
    assert ours.scale == theirs.scale
    train(still, other, tmp_path / "random")
    assert scale_of(tmp_path / "random") != scale_of(alone), "the dataset would have another"
    said = capsys.readouterr().out
    assert (
        f"begins with the weights of {alone.resolve()} (step 20); its normalisation keeps its scale, " in said
    )
    start = json.loads((tmp_path / "run" / "provenance.json").read_text())["starts"][0]
    assert start["from"]["run"] == str(alone.resolve()) and start["from"]["step"] == 20


def test_it_is_resumed_to_the_bit_without_the_other_run(alone: Path, other: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(alone, tmp_path / "source"))
    train(config(ema_decay=0.9), other, tmp_path / "whole", start_from=source)
    train(config(ema_decay=0.9, max_steps=4), other, tmp_path / "parts", start_from=source)
    moved = source.rename(tmp_path / "moved")
    train(config(ema_decay=0.9, max_steps=5), other, tmp_path / "parts", start_from=moved)
    shutil.rmtree(moved)
    train(config(ema_decay=0.9, max_steps=6), other, tmp_path / "parts", start_from=source)
    train(config(ema_decay=0.9), other, tmp_path / "parts")
    assert_same_curve(tmp_path / "parts", tmp_path / "whole", 0.0)
    ours, theirs = (load_network(tmp_path / run).module.state_dict() for run in ("parts", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_two_ranks_give_the_same_curve(alone: Path, other: Path, tmp_path: Path) -> None:
    train(config(epochs=1), other, tmp_path / "one", start_from=alone)
    words = [*arguments(other, tmp_path / "two", tmp_path, epochs=1), "--from", str(alone)]
    for status, _, error in ranks.run(2, words):
        assert status == 0, error
    assert_same_curve(tmp_path / "two", tmp_path / "one", SAME)


def test_an_average_a_checkpoint_and_safetensors_are_taken(dataset: Path, tmp_path: Path) -> None:
    train(config(epochs=1, ema_decay=0.9), dataset, tmp_path / "source")
    network, first = load_network(tmp_path / "source"), []
    pytest.importorskip("safetensors", reason="needs hpcphotoz[export]")
    save_network(network, tmp_path / "network.safetensors")
    newest = checkpoint.latest(tmp_path / "source")
    assert newest is not None
    for number, source in enumerate((tmp_path / "source", newest, tmp_path / "network.safetensors")):
        train(config(max_steps=1, learning_rate=1e-30), dataset, tmp_path / f"{number}", start_from=source)
        first.append(load_network(tmp_path / f"{number}").module.state_dict())
    for state in first:
        assert all(torch.equal(tensor, state[key]) for key, tensor in network.module.state_dict().items())


def test_what_does_not_suit_is_refused_in_one_line_and_makes_no_folder(
    alone: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    save_network(
        replace(load_network(alone), bands=("g", "u", "r", "i", "z")), tmp_path / "bands.safetensors"
    )
    for source, options, says in (
        (
            alone,
            {"bins": 30},
            "its redshift bins are 20 bins on [0, 0.4), not 30 bins on [0, 0.4): want --model.bins 20",
        ),
        (alone, {"z_max": 0.5}, "want --model.z_max 0.4"),
        (alone, {"width": 16, "softening": 5.0}, "want --model.softening 10.0 --model.width 8"),
        (
            tmp_path / "bands.safetensors",
            {},
            "its bands are g,u,r,i,z, those of the dataset u,g,r,i,z: want the same",
        ),
        (tmp_path / "none", {}, "no checkpoint"),
        (dataset, {}, "no checkpoint"),
    ):
        words = [*arguments(dataset, out, tmp_path, **options), "--from", source]
        fails(capsys, words, says)
        assert not out.exists()


def test_a_run_is_continued_with_the_same_from_only(alone: Path, dataset: Path, tmp_path: Path) -> None:
    train(config(max_steps=2), dataset, tmp_path / "random")
    with pytest.raises(BadInput, match="was not begun --from another: leave --from out"):
        train(config(), dataset, tmp_path / "random", start_from=alone)
    train(config(max_steps=2), dataset, tmp_path / "run", start_from=alone)
    with pytest.raises(BadInput, match=f"was begun --from {alone.resolve()}, not .*random"):
        train(config(), dataset, tmp_path / "run", start_from=tmp_path / "random")


def test_a_network_of_the_user_is_taken_without_trusting_the_file(dataset: Path, tmp_path: Path) -> None:
    """Its factory is that of the options, not that of the file."""
    how = {"name": f"{NAME}:resnet", "epochs": 1}
    train(config(**how), dataset, tmp_path / "source")
    train(config(**how, freeze=["blocks"]), dataset, tmp_path / "run", start_from=tmp_path / "source")
    ours, theirs = (
        load_network(tmp_path / run, trust_code=True).module.state_dict() for run in ("run", "source")
    )
    same = {name for name in ours if torch.equal(ours[name], theirs[name])}
    assert same == {name for name in ours if not name.startswith("head")}


def test_weights_that_change_between_the_ranks_are_noticed(
    alone: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is still in training saves between the moments at which two ranks look."""
    same = group.same_on_all_ranks

    def other_rank(what: str, value: str, advice: str, world: World) -> None:
        if what.startswith("--from"):
            raise BadInput(str(difference(what, [("a", value), ("b", "step 21 (...)")], advice)))
        same(what, value, advice, world)

    monkeypatch.setattr(group, "same_on_all_ranks", other_rank)
    said = (
        r"--from .*alone is not the same on all ranks: rank 1 on b has step 21 .*, rank 0 on a has step 20 "
    )
    with pytest.raises(BadInput, match=said):
        train(config(max_steps=1), dataset, tmp_path / "run", start_from=alone)
