"""Networks as safetensors files: the same network again, from a file in which nothing is code."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import hpcphotoz
from hpcphotoz.errors import BadInput
from hpcphotoz.training.run.network import TrainedNetwork, load_network, save_network
from tests.helpers.datasets import make_stamps

SMALL: dict[str, Any] = {"width": 8, "bins": 20, "global_batch": 16, "precision": "fp32", "max_steps": 2}


@pytest.fixture(scope="module")
def network(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedNetwork:
    run = tmp_path_factory.mktemp("runs") / "small"
    return load_network(hpcphotoz.train("standard", dataset, run, device="cpu", **SMALL))


@pytest.fixture
def file(network: TrainedNetwork, tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_network(network, path)
    return path


def rewritten(path: Path, **changed: object) -> Path:
    """The file with other entries in its JSON text."""
    tensors = load_file(path)
    with open(path, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    facts = {**json.loads(header["__metadata__"]["hpcphotoz"]), **changed}
    save_file(tensors, path, {"hpcphotoz": json.dumps(facts)})
    return path


def test_a_saved_network_is_the_same_again(network: TrainedNetwork, file: Path) -> None:
    again = hpcphotoz.load(file, device="cpu")
    stamps = make_stamps(9)
    images, ebv = torch.from_numpy(stamps.images), torch.from_numpy(stamps.ebv)
    assert torch.equal(again.pdf(images, ebv), network.pdf(images, ebv))
    for name in (
        "name",
        "bins",
        "bands",
        "stamp",
        "config",
        "step",
        "manifest_sha256",
        "datasets_sha256",
        "scale",
    ):
        assert getattr(again, name) == getattr(network, name)
    assert not again.module.training
    save_network(again, file.with_name("twice.safetensors"))
    assert file.with_name("twice.safetensors").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("key", "refused"), [("checkpoint_path", True), ("pretrained_cfg", True), ("pretrained", False)]
)
def test_a_file_cannot_make_timm_load_weights(
    key: str, refused: bool, network: TrainedNetwork, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, object]] = []

    def create_model(name: str, **options: object) -> nn.Module:
        made.append(options)
        return nn.Sequential(nn.Flatten(), nn.Linear(5 * 16 * 16, 20))

    fake: Any = types.ModuleType("timm")
    fake.create_model, fake.is_model, fake.get_pretrained_cfg = create_model, bool, lambda name: None
    monkeypatch.setitem(sys.modules, "timm", fake)
    tree = network.config.model_dump(mode="json")
    tree["model"] |= {"name": "timm:resnet18", "options": {key: "x"}, "width": 48}
    with pytest.raises(BadInput, match=f"'{key}' loads weights" if refused else "do not belong"):
        load_network(rewritten(file, config=tree))
    # Files of earlier versions may have asked for these weights, which those of the file replace.
    assert made == ([] if refused else [{"in_chans": 5, "num_classes": 20}])


def test_tensors_that_share_memory_are_saved(network: TrainedNetwork, file: Path) -> None:
    parameters = dict(network.module.named_parameters())
    tied = next(p for p in parameters.values() if p.ndim == 1)
    network.module.register_buffer("tied", tied.detach())
    try:
        save_network(network, file)
    finally:
        del network.module.tied
    assert "tied" in load_file(file)


def test_files_that_hold_no_network_are_refused(network: TrainedNetwork, file: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"net\.pt: a network is written as \.safetensors: name it net\.saf"):
        save_network(network, tmp_path / "net.pt")
    with pytest.raises(BadInput, match="cannot be written: No such file or directory"):
        save_network(network, tmp_path / "nowhere" / "net.safetensors")
    with pytest.raises(BadInput, match=r"absent\.safetensors: cannot be read as safetensors"):
        load_network(tmp_path / "absent.safetensors")
    raw = file.read_bytes()
    file.write_bytes(raw[:-1])
    with pytest.raises(BadInput, match="cannot be read as safetensors"):
        load_network(file)
    file.write_bytes(raw)
    with pytest.raises(BadInput, match="version 2, this release reads version 1"):
        load_network(rewritten(file, version=2))
    with pytest.raises(BadInput, match="the weights do not belong to the configuration: .*size mismatch"):
        load_network(rewritten(file, version=1, stamp=64))
    save_file({"w": torch.zeros(2)}, file)
    with pytest.raises(BadInput, match="holds weights, but no network that `save_network` wrote$"):
        load_network(file)
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_header_that_claims_other_sizes_is_refused_before_memory_is_taken(
    network: TrainedNetwork, file: Path
) -> None:
    tree = network.config.model_dump(mode="json")
    with pytest.raises(BadInput, match="2 bands and a scale of 5: want one a band"):
        load_network(rewritten(file, bands=["u", "g"]))
    few = {"bands": ["u", "g"], "scale": list(network.scale[:2])}
    says = "the weights do not belong to the configuration: size mismatch for "
    with pytest.raises(BadInput, match=says):
        load_network(rewritten(file, **few))
    bands, scale = list(network.bands), list(network.scale)
    huge = {**tree, "model": {**tree["model"], "bins": 10**9}}
    with pytest.raises(BadInput, match=says):
        load_network(rewritten(file, bands=bands, scale=scale, config=huge))
    with pytest.raises(BadInput, match=says):
        load_network(rewritten(file, config=tree, stamp=10**6))
    with safe_open(rewritten(file, config=huge, stamp=network.stamp), "pt") as opened:
        facts = opened.metadata()
    save_file({"w": torch.zeros(1)}, file, facts)  # none of the tensors whose sizes would tell
    with pytest.raises(BadInput, match="the weights do not belong to the configuration: .* is missing"):
        load_network(file)
