"""Winograd convolutions: against direct ones in float64, for every shape of tile and padding."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcphotoz.compute import winograd
from hpcphotoz.config import Model
from hpcphotoz.models.build import build
from hpcphotoz.models.layers import Conv


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize(("height", "width", "padding"), [(16, 16, 2), (17, 21, 1), (18, 16, 0), (9, 8, 2)])
@pytest.mark.parametrize("with_bias", [True, False])
@torch.no_grad()
def test_it_is_the_convolution(
    monkeypatch: pytest.MonkeyPatch, size: int, height: int, width: int, padding: int, with_bias: bool
) -> None:
    monkeypatch.setattr(winograd, "_FLOATS", 9000)  # several groups of images, the last one smaller
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, height, width, generator=generator)
    weight = torch.randn(6, 7, size, size, generator=generator) / (7 * size**2) ** 0.5
    bias = torch.randn(6, generator=generator) if with_bias else None
    found = winograd.convolve(x, winograd.transformed_kernel(weight), bias, size, (padding, padding))
    double = None if bias is None else bias.double()
    expected = functional.conv2d(x.double(), weight.double(), double, padding=padding)
    # Outputs have variance 1. float32 has 6e-8; the transforms magnify it by some hundreds.
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last) or found.shape[2] % 4 or found.shape[3] % 4


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, True),
        ({"padding": "same"}, False),
        ({"stride": 2}, False),
        ({"dilation": 2}, False),
        ({"groups": 2}, False),
        ({"padding_mode": "reflect"}, False),
        ({"kernel_size": 1}, False),
        ({"in_channels": 16}, False),
    ],
)
def test_only_plain_convolutions_of_many_channels_qualify(options: dict[str, object], wanted: bool) -> None:
    given = {"in_channels": 32, "out_channels": 32, "kernel_size": 3, "padding": 1, **options}
    assert winograd.qualifies(nn.Conv2d(**given)) == wanted  # type: ignore[arg-type]


@torch.no_grad()
def test_a_network_computes_the_same_and_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = build(Model(name="inception", bins=20), stamp=32, scale=(1.0,) * 5).eval()
    images, ebv = torch.randn(3, 5, 32, 32), torch.rand(3)
    expected, calls = network(images, ebv), []
    convolve = winograd.convolve

    def counted(x: Tensor, *rest: object) -> Tensor:
        calls.append(x.shape)
        return convolve(x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(winograd, "convolve", counted)
    found = winograd.with_winograd(network)
    torch.testing.assert_close(found(images, ebv), expected, atol=1e-4 * float(expected.std()), rtol=1e-4)
    assert len(calls) == 4, "both kernels of the two modules on maps of 16 pixels"
    torch.testing.assert_close(network(images, ebv), expected, atol=0, rtol=0)
    assert len(calls) == 4
    ours, theirs = dict(network.named_parameters()), dict(found.named_parameters())
    assert all(ours[name] is theirs[name] for name in ours), "weights are shared"


@torch.no_grad()
def test_a_convolution_that_was_changed_already_stays_so() -> None:
    layer = Conv(32, 32, 3, 1)
    assert winograd.qualifies(layer.conv)
    layer.conv._conv_forward = lambda *given: given[0]  # type: ignore[method-assign]
    assert not winograd.qualifies(layer.conv)
