"""Networks with fused activations give the results of plain ones; only eager passes on a GPU use them."""

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from hpcphotoz import attacks
from hpcphotoz.config import Model
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.build import build
from hpcphotoz.models.layers import Conv, fuse_activations, has_fused_activations
from tests.helpers.kernels.capture import Watch, fake_gpu
from tests.helpers.kernels.fused import fused_on_cpu
from tests.helpers.models.forms import SCALE, assert_same, given, network
from tests.helpers.training.steps import Recorded

triton = pytest.importorskip("triton", reason="triton is not installed: nothing is fused")


def fused(plain: nn.Module) -> nn.Module:
    other = copy.deepcopy(plain)
    assert fuse_activations(other)
    return other


def calls(module: nn.Module, images: Tensor, ebv: Tensor) -> Counter[str]:
    """How often each operator of the kernels ran, forwards and backwards."""
    with Recorded("prelu_pool") as seen:
        module(images, ebv).sum().backward()
    module.zero_grad()
    return Counter(name.split(".")[1] for name in seen.found)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("name", "stamp", "counts_padding"), [("inception", 16, True), ("cnn", 9, True)])
@pytest.mark.parametrize("odd", [False, True])
def test_fused_activations_give_the_same_results_and_gradients(
    name: str,
    stamp: int,
    counts_padding: bool,
    odd: bool,
    layout: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Float32 sums in another order: 1e-5 of the largest value is some 80 roundings."""
    fused_on_cpu(monkeypatch)
    plain = network(name, stamp - 3 * odd, counts_padding=not odd).to(memory_format=layout)  # type: ignore[call-overload]
    images, ebv = given(stamp - 3 * odd)
    other = fused(plain)
    assert_same(other, plain, images.contiguous(memory_format=layout), ebv, 1e-5)
    layers = sum(isinstance(module, Conv) for module in plain.modules())
    assert calls(other, images, ebv) == {"prelu_pool": layers, "prelu_pool_gradients": layers}
    fuse_activations(other, on=False)
    assert not calls(other, images, ebv)


def test_an_attack_takes_the_pass_for_the_input_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks freeze a network, and in bfloat16 replace its weights and biases by casts."""
    fused_on_cpu(monkeypatch)
    module, (images, ebv) = fused(network("inception")), given()
    eps, loss = torch.full((5,), 0.01), attacks.cross_entropy(RedshiftBins(20, 0.0, 0.4))
    for autocast in (None, torch.bfloat16):
        with Recorded("prelu_pool") as seen:
            adv = attacks.fgsm(
                module, images, ebv, torch.full((2,), 0.1), eps, loss=loss, passes=attacks.Passes(autocast)
            )
        assert 0 < (adv - images).abs().max() <= 0.01 * (1 + 1e-4)
        assert seen.found.count("hpcphotoz.prelu_pool_input_gradient.default") == 29
        assert "hpcphotoz.prelu_pool_gradients.default" not in seen.found


@pytest.mark.parametrize("name", ["inception", "cnn"])
def test_a_cpu_and_the_compiler_never_use_them(name: str) -> None:
    torch._dynamo.reset()
    plain, (images, ebv) = network(name, 13), given(13)
    other = fused(plain)
    assert torch.equal(other(images, ebv), plain(images, ebv)) and not calls(other, images, ebv)
    traced: list[str] = []

    def kept(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        traced.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    with pytest.MonkeyPatch.context() as patch:
        # As if the tensors were on a GPU.
        patch.setattr(Conv, "fuses", lambda self, x: self.fused and not torch.compiler.is_compiling())
        torch.compile(other, backend=kept, fullgraph=True)(images, ebv)
    assert traced and not [target for target in traced if "prelu_pool" in target]


@pytest.mark.parametrize("name", ["inception", "cnn"])
def test_a_gpu_uses_them_and_can_capture_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forwards; torch runs backward passes of CUDA tensors on a thread of the device, so they are called."""
    from hpcphotoz.kernels.network import prelu_pool as operators

    with fake_gpu(monkeypatch):
        with torch.device("cuda"):
            module = build(Model(name=name, bins=20), stamp=16, scale=SCALE)
        for parameter in module.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        fuse_activations(module)
        images = torch.randn(2, 5, 16, 16, device="cuda").contiguous(memory_format=torch.channels_last)
        with Watch() as seen:
            logits = module(images, torch.zeros(2, device="cuda"))
        x, values = images.bfloat16(), torch.zeros(5, device="cuda")
        with Watch() as backwards:
            grad = operators.prelu_pool(x, values, values, "halve")
            found = operators.prelu_pool_gradients(grad, x, values, values, "halve")
            alone = operators.prelu_pool_input_gradient(grad, x, values, values, "halve")
    assert logits.shape == (2, 20) and not seen.found
    assert "hpcphotoz.prelu_pool.default" in seen.names and "aten._prelu_kernel.default" not in seen.names
    assert not backwards.found and [t.shape for t in (*found, alone)] == [x.shape, (5,), (5,), x.shape]
    assert found[0].stride() == alone.stride() == x.stride() and alone.dtype == torch.bfloat16


def test_networks_without_such_layers_are_told_apart() -> None:
    for name, can in (("compact", False), ("cnn", True)):
        module = network(name)
        assert not has_fused_activations(module)
        assert fuse_activations(module) == has_fused_activations(module) == can
        assert fuse_activations(module, on=False) == can and not has_fused_activations(module)
