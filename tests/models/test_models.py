"""The published networks have their published sizes, names and quirks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcphotoz.config import Model
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.build import build
from hpcphotoz.models.inception import InceptionModule
from hpcphotoz.models.layers import Normalise, asinh, pool, prelu

SCALE = (0.05, 0.02, 0.03, 0.04, 0.2)


@pytest.mark.parametrize(("name", "parameters"), [("inception", 27_596_372), ("cnn", 13_461_292)])
def test_parameter_counts_are_the_published_ones(name: str, parameters: int) -> None:
    network = build(Model(name=name), stamp=64, scale=SCALE)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_parameter_names_are_those_of_the_public_code() -> None:
    names = set(build(Model(name="inception"), stamp=64, scale=SCALE).state_dict())
    branches = {f"i{k}.{b}" for k in range(5) for b in ("s1_0", "s2_0", "s1_1", "s2_1", "s1_2", "s2_2")}
    convolutions = {"conv0"} | branches - {"i4.s1_1", "i4.s2_1"}
    expected = {f"{c}.{p}" for c in convolutions for p in ("conv.weight", "conv.bias", "activ.weight")}
    expected |= {f"fc{k}.linear.{p}" for k in range(3) for p in ("weight", "bias")}
    assert names == expected | {"normalise.scale"}


@pytest.mark.parametrize("name", ["compact", "cnn", "inception"])
@pytest.mark.parametrize(("stamp", "bands"), [(64, 5), (33, 3)])
def test_any_stamp_and_any_bands(name: str, stamp: int, bands: int) -> None:
    network = build(Model(name=name, bins=30), stamp=stamp, scale=SCALE[:bands])
    images, ebv = torch.randn(2, bands, stamp, stamp, requires_grad=True), torch.rand(2)
    logits = network(images, ebv)
    assert logits.shape == (2, 30)
    logits.logsumexp(1).sum().backward()
    assert images.grad is not None and images.grad.abs().amax((2, 3)).min() > 0, (
        "every band reaches the output"
    )
    assert not torch.equal(network(images, ebv + 1), logits), "E(B-V) reaches the output"


@pytest.mark.parametrize("name", ["cnn", "inception"])
def test_relu_on_the_logits_is_an_option(name: str) -> None:
    torch.manual_seed(0)
    images, ebv = torch.randn(8, 5, 32, 32), torch.rand(8)
    torch.manual_seed(1)
    plain = build(Model(name=name), stamp=32, scale=SCALE)
    clamped = build(Model(name=name, relu_logits=True), stamp=32, scale=SCALE)
    clamped.load_state_dict(plain.state_dict())
    assert plain(images, ebv).min() < 0
    torch.testing.assert_close(clamped(images, ebv), plain(images, ebv).relu())


def test_padded_zeros_count_or_not_at_the_right_and_lower_edge_only() -> None:
    torch.manual_seed(0)
    x = torch.ones(1, 4, 6, 6)
    torch_like = InceptionModule(4, 3, 2, counts_padding=True)
    tf_like = InceptionModule(4, 3, 2, counts_padding=False)
    tf_like.load_state_dict(torch_like.state_dict())
    a, b = torch_like(x)[:, -3:], tf_like(x)[:, -3:]
    torch.testing.assert_close(a[..., :-1, :-1], b[..., :-1, :-1])
    # A constant input: SAME pooling keeps it constant, counting zeros halves the edge and quarters the
    # corner.
    torch.testing.assert_close(b, b[..., :1, :1].expand_as(b))
    torch.testing.assert_close(a[..., -1, :-1], b[..., -1, :-1] / 2)
    torch.testing.assert_close(a[..., -1, -1], b[..., -1, -1] / 4)


def test_initialisation_is_the_published_one() -> None:
    network = build(Model(name="cnn"), stamp=64, scale=SCALE)
    for name, value in network.named_parameters():
        if name.endswith("bias"):
            assert (value == 0.1).all()
        if name.endswith("activ.weight"):
            assert (value == 0.25).all()
    weight = network.fc0.linear.weight  # type: ignore[union-attr]
    bound = (6 / sum(weight.shape)) ** 0.5  # type: ignore[arg-type]
    assert weight.abs().max() <= bound and weight.abs().max() > 0.99 * bound  # type: ignore[operator]


def test_normalisations() -> None:
    flux = torch.tensor([-3.0, 0.0, 8.0]).reshape(1, 1, 1, 3).requires_grad_()
    root = Normalise("sqrt", (1.0,))(flux)
    torch.testing.assert_close(root.flatten(), torch.tensor([-1.0, 0.0, 2.0]))
    (grad,) = torch.autograd.grad(root.sum(), flux)
    torch.testing.assert_close(grad.flatten()[1], torch.tensor(0.5))
    torch.testing.assert_close(Normalise("asinh", (2.0,))(flux), torch.asinh(flux / 2))


def test_no_layer_depends_on_the_batch() -> None:
    # Batch normalisation would make the loss curve depend on how many ranks share a batch.
    for name in ("compact", "cnn", "inception"):
        network = build(Model(name=name), stamp=16, scale=SCALE)
        assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


def test_bins() -> None:
    bins = RedshiftBins(4, 0.0, 0.4)
    torch.testing.assert_close(bins.centres(), torch.tensor([0.05, 0.15, 0.25, 0.35]))
    assert bins.index(torch.tensor([0.0, 0.0999, 0.11, 0.399])).tolist() == [0, 0, 1, 3]
    spike = torch.full((1, 4), -1e9)
    spike[0, 2] = 0
    torch.testing.assert_close(bins.mean(spike), torch.tensor([0.25]))


def test_asinh_is_asinh_with_its_gradient() -> None:
    x = torch.cat([torch.zeros(1), torch.logspace(-6, 4, 200), -torch.logspace(-6, 4, 200)]).requires_grad_()
    ours, theirs = asinh(x), torch.asinh(x)
    # The formula loses an ulp of 1 (1.2e-7) near 0, and an ulp of the result elsewhere.
    torch.testing.assert_close(ours, theirs, rtol=3e-7, atol=2.4e-7)
    (mine,), (right,) = torch.autograd.grad(ours.sum(), x), torch.autograd.grad(theirs.sum(), x)
    torch.testing.assert_close(mine, right, rtol=1e-6, atol=0)
    assert mine[0] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_prelu_and_its_gradient_are_those_of_torch(
    dtype: torch.dtype, frozen: bool, order: torch.memory_format
) -> None:
    torch.manual_seed(0)
    slope = torch.tensor([0.25, -0.5, 1.0, 0.75, 1.5], requires_grad=not frozen)
    x = torch.randn(3, 5, 5, 6).to(dtype, memory_format=order).requires_grad_()
    x.data[0, :, 0, 0] = 0
    upstream = torch.randn(3, 5, 5, 6).to(dtype)
    wanted = [x] if frozen else [x, slope]
    plain = torch.nn.functional.prelu(x, slope.to(dtype))
    ours = prelu(x, slope.to(dtype) if not frozen else slope)
    assert torch.equal(ours, plain) and ours.is_contiguous(memory_format=order)
    with torch.no_grad():
        assert torch.equal(prelu(x, slope), plain)
    for a, b in zip(
        torch.autograd.grad(ours, wanted, upstream),
        torch.autograd.grad(plain, wanted, upstream),
        strict=True,
    ):
        # g + w (g - g) and w g are exact up to one rounding of g (1 - w) where w > 1/2.
        torch.testing.assert_close(a, b, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("side", [8, 7])
def test_pool_and_its_gradient_are_those_of_torch(side: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, side, 8, requires_grad=True)
    ours, plain = pool(x), torch.nn.functional.avg_pool2d(x, 2, 2, ceil_mode=True)
    assert torch.equal(ours, plain)
    upstream = torch.randn_like(plain)
    (a,), (b,) = (torch.autograd.grad(y, x, upstream) for y in (ours, plain))
    assert torch.equal(a, b)


def _frozen_prelu(x: Tensor) -> Tensor:
    return prelu(x, torch.full((3,), 0.25))


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("layer", [asinh, _frozen_prelu, pool, Normalise("asinh", (0.3, 0.1, 0.2))])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_gradient_of_a_compiled_layer_is_that_of_the_plain_one(
    layer: Callable[[Tensor], Tensor], backend: str
) -> None:
    """No function with a hand-written gradient is traced: torch 2.11 made that of asinh exactly 0."""
    torch._dynamo.reset()
    traced: list[str] = []

    def kept(graph: torch.fx.GraphModule, given: list[Tensor]) -> Callable[..., Any]:
        traced.extend(str(node.target) for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend(backend)(graph, given)

    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (plain,), (compiled,) = (
        torch.autograd.grad(f(x).square().sum(), x)
        for f in (layer, torch.compile(layer, backend=kept, fullgraph=True))
    )
    assert plain.abs().max() > 0.1
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)
    assert traced and not [name for name in traced if "autograd" in name]
