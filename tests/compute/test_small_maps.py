"""Convolutions over small maps in bfloat16: the gradients of their weights are right on CPUs."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcphotoz.compute.small_maps import keep_small_maps_right, meets_padding_alone
from hpcphotoz.config import Model
from hpcphotoz.models.build import build
from hpcphotoz.training.compute import compute_options
from tests.helpers.training.steps import CPU, configured


@pytest.mark.parametrize(
    ("size", "given", "meets"),
    [
        (1, (3, 1, 1, 1), True),
        (2, (3, 1, 1, 1), False),
        (2, (3, 2, 1, 1), True),  # one output: the first weight meets padding
        (4, (3, 2, 1, 1), False),
        (2, (5, 1, 2, 1), True),
        (3, (5, 1, 2, 1), False),
        (2, (7, 1, 3, 1), True),
        (5, (3, 1, 0, 2), False),
        (1, (1, 2, 0, 1), False),
        (2, (3, 1, 2, 2), True),
    ],
)
def test_which_kernels_meet_padding_alone(size: int, given: tuple[int, ...], meets: bool) -> None:
    """As the gradient says of ones: a weight that meets no pixel has none."""
    kernel, stride, padding, dilation = given
    assert meets_padding_alone(size, *given) == meets
    weight = torch.ones(1, 1, kernel, requires_grad=True)
    out = nn.functional.conv1d(torch.ones(1, 1, size), weight, None, stride, padding, dilation)
    (grad,) = torch.autograd.grad(out.sum(), weight)
    assert bool((grad == 0).any()) == meets


def gradients(module: nn.Module, *given: Tensor, low: bool) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        out = module(*given)
    return list(torch.autograd.grad(out.float().square().sum(), list(module.parameters())))


def spoil_memory() -> None:
    """What torch.empty gives next is NaN, as far as one can ask for it."""
    spoilt = [torch.full((2**power,), torch.nan) for power in range(8, 21, 2)]
    assert len(spoilt) == 7  # freed at the end of this function


def assert_like_float32(module: nn.Module, *given: Tensor) -> None:
    """Within roundings of bfloat16, 2^-9 each, over some layers; unwritten memory is NaN, or far beyond."""
    wanted = gradients(module, *given, low=False)
    for _ in range(5):
        spoil_memory()
        for found, right in zip(gradients(module, *given, low=True), wanted, strict=True):
            assert float((found - right).norm()) < 0.1 * float(right.norm()) + 1e-6


@pytest.mark.parametrize("options", [{"padding": 1, "stride": 2}, {"padding": "same"}, {"padding": 3}])
@pytest.mark.parametrize("of_a_user", [False, True])
def test_gradients_of_a_convolution_over_one_pixel(options: dict[str, Any], of_a_user: bool) -> None:
    torch.manual_seed(0)
    size = 7 if options["padding"] == 3 else 5 if options["padding"] == "same" else 3
    module: nn.Module = nn.Sequential(nn.Conv2d(32, 64, size, bias=not of_a_user, **options))
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = module.state_dict().keys()
    keep_small_maps_right(module)
    assert module.state_dict().keys() == before
    for each in (module, copy.deepcopy(module)):
        assert_like_float32(each, torch.randn(20, 32, 1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert module(torch.randn(2, 32, 1, 1)).dtype == torch.bfloat16
        assert module(torch.randn(2, 32, 16, 16)).dtype == torch.bfloat16


def test_a_copy_has_its_own_weights() -> None:
    module = nn.Conv2d(1, 1, 1)
    keep_small_maps_right(module)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.weight.zero_()
        assert other(torch.ones(1, 1, 1, 1)).item() == other.bias.item() == module.bias.item()  # type: ignore[union-attr]
        assert module(torch.ones(1, 1, 1, 1)).item() != module.bias.item()  # type: ignore[union-attr]


@pytest.mark.parametrize("crop", [16, 4])
def test_gradients_of_a_network_that_sees_little(crop: int) -> None:
    torch.manual_seed(0)
    network = build(Model(width=8, bins=20, crop=crop, binning=2), stamp=64, scale=(0.1,) * 5)
    network = compute_options(configured(precision="bf16").compute, CPU).placed(network, CPU)
    images = 0.1 * torch.randn(20, 5, crop // 2, crop // 2).contiguous(memory_format=torch.channels_last)
    assert_like_float32(network, images, torch.rand(20) / 10)
