"""Networks with fused activations give the results of plain ones; only eager passes on a GPU use them."""

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcphotoz import attacks
from hpcphotoz.attacks.ball import attack_batch
from hpcphotoz.attacks.passes.gradient import image_loss_of
from hpcphotoz.config import Model
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.build import build
from hpcphotoz.models.inception import merge_pointwise
from hpcphotoz.models.layers import Conv, FluxNetwork, fuse_activations
from tests.helpers.kernels.capture import Watch, fake_gpu
from tests.helpers.kernels.fused import fused_on_cpu, launched
from tests.helpers.kernels.interpreter import compiled, interpret, interpreted, passed_under_the_interpreter
from tests.helpers.models.forms import SCALE, assert_same, given, network, results
from tests.helpers.training.steps import CPU, Recorded

triton = pytest.importorskip("triton", reason="triton is not installed: nothing is fused")
from hpcphotoz.kernels.network import backward, forward

interpret(forward)
interpret(backward)
LAYERS = {"inception": 29, "cnn": 3}
QUIET = pytest.mark.filterwarnings("ignore")  # the compiler's own


def fused(plain: nn.Module) -> nn.Module:
    other = copy.deepcopy(plain)
    fuse_activations(other)
    return other


def calls(module: nn.Module, images: Tensor, ebv: Tensor) -> Counter[str]:
    """How often each operator of the kernels runs, forwards and backwards."""
    with Recorded("prelu_pool") as seen:
        module(images, ebv).sum().backward()
    module.zero_grad()
    return Counter(name.split(".")[1] for name in seen.found)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_fused_activations_give_the_same_results_and_gradients(
    name: str, odd: bool, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 sums in another order: 1e-5 of the largest value is some 80 roundings."""
    fused_on_cpu(monkeypatch)
    stamp = 13 if odd else 16
    plain = network(name, stamp, counts_padding=not odd).to(memory_format=layout)  # type: ignore[call-overload]
    images, ebv = given(stamp)
    other = fused(plain)
    assert_same(other, plain, images.contiguous(memory_format=layout), ebv, 1e-5)
    n = LAYERS[name]
    assert calls(other, images, ebv) == {"prelu_pool": n, "prelu_pool_gradients": n}
    merge_pointwise(other)
    assert_same(other, plain, images.contiguous(memory_format=layout), ebv, 1e-5)
    fuse_activations(other, on=False)
    assert not calls(other, images, ebv)
    assert_same(other, plain, images.contiguous(memory_format=layout), ebv, 1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_in_bfloat16_both_forms_are_as_near_to_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some ten layers round to 2^-9, forwards and backwards; E(B-V) is one number an object."""
    fused_on_cpu(monkeypatch)
    plain = network(name)
    wanted = dict(results(plain, *given(n=16)))
    for module in (plain, fused(plain)):
        with torch.autocast("cpu", torch.bfloat16):
            found = dict(results(module, *given(n=16)))
        for part, exact in wanted.items():
            largest = {"logits": 0.01, "ebv": 0.4}.get(part, 0.2)
            assert (found[part] - exact).norm() <= largest * exact.norm(), part


@pytest.mark.parametrize("name", LAYERS)
def test_images_of_more_channels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks in half precision give the network normalised images with channels of zeros beside its own."""
    fused_on_cpu(monkeypatch)
    plain, (images, ebv) = network(name), given()
    other, padded = fused(plain), functional.pad(images, (0, 0, 0, 0, 0, 3))
    assert isinstance(plain, FluxNetwork) and isinstance(other, FluxNetwork)
    wanted, found = plain.of_normalised(images, ebv), other.of_normalised(padded, ebv)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    with pytest.raises(RuntimeError, match="channels"):
        other.get_submodule("conv0")(padded)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_an_attack_takes_the_pass_for_the_input_alone(
    name: str, autocast: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attacks freeze a network, and in bfloat16 replace its weights and biases by casts."""
    fused_on_cpu(monkeypatch)
    plain, (images, ebv) = network(name), given()
    loss = attacks.cross_entropy(RedshiftBins(20, 0.0, 0.4))
    batch = attack_batch(images, ebv, torch.full((2,), 0.1), torch.ones(5), None, 1, None)
    grads = []
    with Recorded("prelu_pool") as seen:
        for module in (plain, fused(plain)):
            with image_loss_of(module, loss, CPU, attacks.Passes(autocast)) as image_loss:
                grads.append(image_loss.gradient(images, batch).grad)
    wanted, found = grads
    assert found.shape == images.shape and found.dtype == wanted.dtype
    assert (found - wanted).abs().max() <= (1e-5 if autocast is None else 0.05) * wanted.abs().max() > 0
    each = LAYERS[name]
    ran = Counter(target.split(".")[1] for target in seen.found)
    assert ran == {"prelu_pool": each, "prelu_pool_input_gradient": each}


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_by_the_kernels_themselves(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their gradients come as autograd gives them: of concatenations as slices of channels."""
    fused_on_cpu(monkeypatch, launched)
    plain = network(name, 9).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, ebv = given(9)
    images = images.contiguous(memory_format=torch.channels_last)
    other = fused(plain)
    assert_same(other, plain, images, ebv, 1e-5)
    for module in (plain, other):
        module.requires_grad_(False)
    x, y = images.clone().requires_grad_(), images.clone().requires_grad_()
    (ours,), (wanted,) = (torch.autograd.grad(m(z, ebv).sum(), z) for m, z in ((other, x), (plain, y)))
    assert (ours - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@compiled
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_under_the_interpreter() -> None:
    assert passed_under_the_interpreter(__file__, "by_the_kernels", slow=True) == 2


@QUIET
@pytest.mark.parametrize("name", LAYERS)
def test_a_cpu_and_the_compiler_never_use_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    plain, (images, ebv) = network(name, 13), given(13)
    other = fused(plain)
    assert torch.equal(other(images, ebv), plain(images, ebv)) and not calls(other, images, ebv)
    traced: list[str] = []

    def kept(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        traced.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    fused_on_cpu(monkeypatch)  # as if the tensors were on a GPU
    torch.compile(other, backend=kept, fullgraph=True)(images, ebv)
    assert traced and not [target for target in traced if "prelu_pool" in target]


@pytest.mark.skipif(
    torch.version.cuda is None, reason="fake CUDA tensors want a torch with CUDA: `make test-torch211`"
)
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_gpu_uses_them_and_can_capture_them(name: str, low: bool, monkeypatch: pytest.MonkeyPatch) -> None:
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
        with Watch() as seen, torch.autocast("cuda", torch.bfloat16, enabled=low):
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


def test_networks_are_plain_until_they_are_switched() -> None:
    for name in (*LAYERS, "compact"):
        module = network(name)
        convolutions = [part for part in module.modules() if isinstance(part, Conv)]
        assert len(convolutions) == LAYERS.get(name, 0) and not any(part.fused for part in convolutions)
