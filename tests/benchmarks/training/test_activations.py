"""Steps with plain and with fused activations are timed where their gradients are equal, and only there."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness import Benchmark
from benchmarks.training import activations as module
from benchmarks.training.activations import APART, FORMS, add_activations, difference, measured
from benchmarks.training.passes import Passes
from benchmarks.training.steps import assembled
from hpcphotoz.kernels.network import reference
from hpcphotoz.models.layers import Conv
from tests.helpers.kernels.fused import fused_on_cpu
from tests.helpers.training.steps import CPU

pytest.importorskip("triton", reason="triton is not installed: nothing is fused")
SPREAD = {"median": 2.0, "p20": 1.0, "p80": 3.0, "n": 3}


def passes(network: str = "cnn") -> Passes:
    components, rank_batch = assembled(module.configured(network, "fp32", CPU), 2, CPU)[1:]
    return Passes(components, rank_batch, compiled=False)


def wrong(x: Tensor, bias: Tensor, slope: Tensor, pooling: str) -> Tensor:
    """The operator without the gradient of the slope."""
    return reference.prelu_pool(x, bias, slope.detach() + 0 * slope, pooling)


def test_both_forms_are_timed_in_turn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hpcphotoz.kernels.network.prelu_pool import prelu_pool

    taken, activate = Counter[str](), Conv.activate

    def fused(*given: Any) -> Tensor:
        taken["fused"] += 1
        found: Tensor = prelu_pool(*given)
        return found

    def plain(layer: Conv, y: Tensor) -> Tensor:
        taken["plain"] += 1
        return activate(layer, y)

    fused_on_cpu(monkeypatch, fused)
    monkeypatch.setattr(Conv, "activate", plain)
    found = measured("cnn", "fp32", 2, CPU, repeat=1)
    assert taken["plain"] == taken["fused"] > 0 and taken["plain"] % 3 == 0
    assert found["batch"] == 2 and found["speed"]["training"] == "fp32" and not found["speed"]["compiled"]
    assert 0 < found["off"]["fp32"] < 1e-4
    for name in ("attack", "step"):
        us = found[name]["us"]
        assert list(us) == list(FORMS) and all(us[form]["n"] == 1 for form in FORMS)
        ratio = us["plain"]["median"] / us["fused"]["median"]
        assert found[name]["ratio_plain"] == pytest.approx(ratio)
    module.show("cnn", "fp32", found)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["attack", "step"]


def test_forms_with_other_gradients_have_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused_on_cpu(monkeypatch, wrong)
    monkeypatch.setattr(module, "PRECISIONS", ("fp32",))
    monkeypatch.setattr(module, "BATCH", {"cpu": 2})
    benchmark = Benchmark("step", tmp_path / "step.json")
    add_activations(["cnn"], 1, CPU, benchmark)
    why = benchmark.failures["activations, cnn, fp32"]
    assert why.startswith("ValueError: the gradient of conv0.activ.weight is off by 1 of its norm; no ratio")
    assert "activations" not in benchmark.figures


@pytest.mark.parametrize("factor", [-1.0, 0.5, float("nan")])
def test_every_precision_refuses_a_wrong_gradient_of_the_images(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scaled(x: Tensor, *given: Any) -> Tensor:
        return reference.prelu_pool(factor * x + (1 - factor) * x.detach(), *given)

    fused_on_cpu(monkeypatch, scaled)
    made = passes()
    for largest in APART.values():
        with pytest.raises(ValueError, match="gradient of images is off by"):
            difference(made, largest)


def test_a_network_without_such_layers_and_figures_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, done = tmp_path / "step.json", list[tuple[str, str]]()

    def measured(network: str, precision: str, size: int, device: torch.device, repeat: int) -> Any:
        assert size == 256 and device.type == "cuda"
        done.append((network, precision))
        one = {"us": dict.fromkeys(FORMS, SPREAD), "ratio_plain": 1.5}
        return {"attack": one, "step": one}

    monkeypatch.setattr(module, "measured", measured)
    for networks in (["cnn"], ["compact", "inception", "cnn"]):
        add_activations(networks, 1, torch.device("cuda"), Benchmark("step", path, minutes=9))
    assert done == [(network, how) for network in ("cnn", "inception") for how in ("tf32", "bf16")]
    found = json.loads(path.read_text())["figures"]["activations"]
    assert set(found) == {"cnn", "inception"} and set(found["cnn"]) == {"tf32", "bf16"}
