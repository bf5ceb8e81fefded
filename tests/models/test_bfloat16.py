"""Forward passes in bfloat16: close to float32, and the network stays as it was."""

import pytest
import torch

from hpcphotoz.config import Model
from hpcphotoz.models.bfloat16 import Bfloat16Forward
from hpcphotoz.models.build import build
from tests.helpers.networks import ConvNetwork

SCALE = (0.05, 0.02, 0.03, 0.04, 0.2)


@pytest.mark.parametrize("options", [{"name": "cnn"}, {"name": "compact", "width": 8}, {"name": "inception"}])
@torch.no_grad()
def test_logits_are_close_to_those_of_float32(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    network = build(Model.model_validate({"bins": 20, **options}), stamp=16, scale=SCALE).eval()
    images, ebv = torch.randn(6, 5, 16, 16), torch.rand(6)
    before = [parameter.clone() for parameter in network.parameters()]
    expected, found = network(images, ebv), Bfloat16Forward(network)(images, ebv)
    assert found.dtype == torch.float32
    # bfloat16 has 8 bits: an error of 2^-8 a layer, of values of the size of the logits' spread.
    error = (found - expected).abs().max() / expected.std()
    assert 0 < error < 0.1
    for parameter, value in zip(network.parameters(), before, strict=True):
        assert parameter.dtype == torch.float32 and torch.equal(parameter, value)


@torch.no_grad()
def test_another_module_computes_under_autocast() -> None:
    network, images = ConvNetwork().eval(), torch.randn(4, 3, 8, 8)
    found = Bfloat16Forward(network)(images, torch.zeros(4))
    assert found.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(found, network(images, torch.zeros(4)).float(), atol=0, rtol=0)
