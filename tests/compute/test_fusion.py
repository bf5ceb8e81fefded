"""Fused activations are tried: they must be right where they run, and quicker."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcphotoz.compute import fusion
from hpcphotoz.compute.fusion import gradients, quicker_activations, try_fused_activations
from hpcphotoz.config import Model
from hpcphotoz.kernels.network import reference
from hpcphotoz.models.build import build
from hpcphotoz.models.layers import fuse_activations, has_fused_activations
from tests.helpers.kernels.fused import fused_on_cpu
from tests.helpers.training.steps import CPU

triton = pytest.importorskip("triton", reason="triton is not installed: nothing is fused")
SHAPE = (4, 5, 16, 16)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build(Model(name="inception", bins=20), stamp=16, scale=(1.0,) * 5)


def trial(module: nn.Module) -> tuple[dict[str, float], str]:
    found = try_fused_activations(module, CPU, SHAPE, "fp32", graph=False)
    assert not has_fused_activations(module)
    assert all(parameter.grad is None for parameter in module.parameters())
    return found


def test_a_trial_times_both_forms_and_leaves_the_network_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    fused_on_cpu(monkeypatch)
    seconds, failed = trial(network())
    assert failed == "" and list(seconds) == ["plain", "fused"]
    assert all(0 < took < 60 for took in seconds.values())


def test_an_error_or_a_wrong_gradient_is_the_reason_not_to_fuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Tensor:
        raise RuntimeError("out of resources\nshared memory")

    def wrong(x: Tensor, bias: Tensor, slope: Tensor, pooling: str) -> Tensor:
        return reference.prelu_pool(x, bias, slope.detach() + 0 * slope, pooling)

    fused_on_cpu(monkeypatch, fails)
    seconds, failed = trial(network())
    assert failed == "RuntimeError: out of resources" and list(seconds) == ["plain"]
    fused_on_cpu(monkeypatch, wrong)
    seconds, failed = trial(network())
    assert failed.startswith("ValueError: gradients differ by ") and list(seconds) == ["plain"]
    monkeypatch.setattr(fusion, "_APART", 2.0)
    assert trial(network())[1] == ""


@pytest.mark.parametrize(("precision", "apart"), [("fp32", 1e-5), ("bf16", 0.05)])
def test_two_forms_differ_by_rounding_less_than_the_trial_allows(
    precision: str, apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused_on_cpu(monkeypatch)
    module = network()
    plain = gradients(module, CPU, SHAPE, precision)
    fuse_activations(module)
    for ours, wanted in zip(gradients(module, CPU, SHAPE, precision), plain, strict=True):
        assert wanted.norm() > 0 and (ours - wanted).norm() <= apart * wanted.norm()
    assert apart <= fusion._APART / 2


def test_the_ranks_decide_together() -> None:
    took = [({"plain": 0.010, "fused": 0.008}, ""), ({"plain": 0.010, "fused": 0.011}, "")]
    measured = "(measured: a pass over 64 images takes 10 ms without, 9.5 ms with)"
    assert quicker_activations(took, 64) == (True, f"activations fused {measured}")
    assert quicker_activations(took[1:], 64)[0] is False
    assert quicker_activations([({"plain": 1.0, "fused": 0.98}, "")], 64)[0] is False, "noise of the trial"
    found = quicker_activations([took[0], ({"plain": 0.010}, "RuntimeError: no")], 64)
    assert found == (False, "activations not fused (RuntimeError: no)")
