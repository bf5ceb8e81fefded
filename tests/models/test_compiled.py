"""Merged and compiled networks give the results of the plain network with the same parameters."""

import copy
import os
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hpcphotoz import attacks
from hpcphotoz.compute.cost import flops
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.inception import merge_pointwise
from hpcphotoz.models.layers import pool
from tests.helpers.models.forms import assert_same, given, network

QUIET = pytest.mark.filterwarnings("ignore")  # the compiler's own


def merged(plain: nn.Module) -> nn.Module:
    other = copy.deepcopy(plain)
    merge_pointwise(other)
    return other


@pytest.mark.parametrize(("stamp", "channels_last"), [(16, True), (13, False)])
def test_merged_convolutions_give_the_same_results_and_gradients(stamp: int, channels_last: bool) -> None:
    """Float32 sums in another order: 1e-5 of the largest value is some 80 roundings."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    plain = network("inception", stamp, counts_padding=channels_last).to(memory_format=order)  # type: ignore[call-overload]
    images, ebv = given(stamp)
    images = images.contiguous(memory_format=order)
    other = merged(plain)
    assert_same(other, plain, images, ebv, 1e-5)
    assert flops(lambda: other(images, ebv)) == flops(lambda: plain(images, ebv))
    for (a, x), (b, y) in zip(other.state_dict().items(), plain.state_dict().items(), strict=True):
        assert a == b and torch.equal(x, y) and x.stride() == y.stride()


class Convolutions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts convolutions."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


def test_merging_leaves_half_of_the_convolutions() -> None:
    plain = network("inception")
    calls: list[int] = []
    for module in (plain, merged(plain)):
        with Convolutions() as seen:  # type: ignore[no-untyped-call]
            module(*given())
        calls.append(seen.calls)
    assert calls[0] - calls[1] == 4 * 3 + 2  # 3 of 6 in four modules, 2 of 4 in the last


def test_merged_in_bfloat16() -> None:
    """Each of about ten layers rounds to 2^-9: a few percent of the largest value, in the plain form too."""
    plain = network("inception")
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(merged(plain), plain, *given(), 0.05)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_merged_network_is_attacked(autocast: torch.dtype | None) -> None:
    """Attacks freeze a network and replace its weights by casts."""
    module = merged(network("inception"))
    images, ebv = given()
    eps, passes = torch.full((5,), 0.01), attacks.Passes(autocast=autocast)
    loss = attacks.cross_entropy(RedshiftBins(20, 0.0, 0.4))
    adv = attacks.pgd(module, images, ebv, torch.full((2,), 0.1), eps, loss=loss, steps=2, passes=passes)
    moved = (adv - images).abs()
    assert bool(adv.isfinite().all()) and 0 < moved.max() <= 0.01 * (1 + 1e-4)
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


@QUIET
@pytest.mark.parametrize("name", ["compact", "cnn", "inception"])
def test_traced_as_one_graph_and_again_once_merged(name: str) -> None:
    torch._dynamo.reset()
    graphs = []

    def kept(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    plain = network(name, 13)
    other = copy.deepcopy(plain)
    other.compile(fullgraph=True, backend=kept)
    assert_same(other, plain, *given(13), 1e-5)
    merge_pointwise(other)
    assert_same(other, plain, *given(13), 1e-5)
    assert len(graphs) == (2 if name == "inception" else 1)


COMPILER = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="torch.compile on a CPU needs a C++ compiler, and there is none",
)


@COMPILER
@QUIET
@pytest.mark.slow
@pytest.mark.parametrize("side", [4, 5])
def test_pool_compiled(side: int) -> None:
    x = torch.randn(2, 3, side, 7, requires_grad=True)
    (a,), (b,) = (torch.autograd.grad(f(x).square().sum(), x) for f in (pool, torch.compile(pool)))
    torch.testing.assert_close(a, b)


@COMPILER
@QUIET
@pytest.mark.slow
@pytest.mark.timeout(900)  # one or two minutes each on a busy core
@pytest.mark.parametrize(
    ("name", "stamp", "counts_padding", "merge"),
    [("inception", 16, True, False), ("inception", 16, False, True), ("cnn", 9, True, False)],
)
def test_compiled(name: str, stamp: int, counts_padding: bool, merge: bool) -> None:
    plain = network(name, stamp, counts_padding=counts_padding)
    other = merged(plain) if merge else copy.deepcopy(plain)
    other.compile()
    assert_same(other, plain, *given(stamp), 1e-5)
