"""The other forms of a network compute what the plain one does, from the same parameters."""

import copy
import os
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hpcphotoz import attacks
from hpcphotoz.config import Model
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.build import build
from hpcphotoz.models.form import reform
from hpcphotoz.models.inception import InceptionModule
from hpcphotoz.models.layers import pool

SCALE = (0.05, 0.02, 0.03, 0.04, 0.2)
FORMS = {
    "merged": {"merged": True, "padded": False},
    "padded": {"merged": False, "padded": True},
    "both": {"merged": True, "padded": True},
}
PLAIN = {"merged": False, "padded": False}
QUIET = pytest.mark.filterwarnings("ignore")  # the compiler's own


class Multiplied(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The channels of all that is convolved or multiplied, and every name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []  # in, out

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.name())
        if func is torch.ops.aten.convolution.default:
            self.sizes.append((args[0].shape[1], args[1].shape[0]))
        elif func is torch.ops.aten.addmm.default:
            self.sizes.append((args[1].shape[1], args[2].shape[1]))
        return func(*args, **(kwargs or {}))


def network(name: str, stamp: int = 16, *, counts_padding: bool = True) -> nn.Module:
    torch.manual_seed(0)
    # Width 12 and 20 bins, so that the compact network has something to pad as well.
    model = Model(name=name, bins=20, width=12, pool_counts_padding=counts_padding)
    built = build(model, stamp=stamp, scale=SCALE)
    for parameter in built.parameters():  # slopes and biases that differ, or a wrong order would not show
        parameter.data += 0.05 * torch.randn_like(parameter) if parameter.dim() == 1 else 0
    return built


def given(stamp: int = 16, n: int = 2) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, stamp, stamp, generator=draw), torch.rand(n, generator=draw)


def results(module: nn.Module, images: Tensor, ebv: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Logits and the gradients of images, E(B-V) and all parameters."""
    images, ebv = images.clone().requires_grad_(), ebv.clone().requires_grad_()
    logits = module(images, ebv)
    names, parameters = zip(*module.named_parameters(), strict=True)
    loss = logits.float().logsumexp(1).sum() - logits[:, 3].float().sum()
    grads = torch.autograd.grad(loss, [images, ebv, *parameters])
    yield "logits", logits.detach()
    yield from zip(("images", "ebv", *names), grads, strict=True)


def assert_same(a: nn.Module, b: nn.Module, images: Tensor, ebv: Tensor, within: float) -> None:
    for (name, x), (_, y) in zip(results(a, images, ebv), results(b, images, ebv), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype and bool(x.isfinite().all()), name
        assert (x - y).abs().max() <= within * y.abs().max(), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["compact", "cnn", "inception"])
@pytest.mark.parametrize(("stamp", "channels_last"), [(16, True), (13, False)])
def test_results_and_gradients_are_those_of_the_plain_form(
    name: str, form: str, stamp: int, channels_last: bool
) -> None:
    """Float32 sums in another order: 1e-5 of the largest value is some 80 roundings."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    plain = network(name, stamp, counts_padding=channels_last).to(memory_format=order)  # type: ignore[call-overload]
    other = reform(copy.deepcopy(plain), **FORMS[form])
    images, ebv = given(stamp)
    assert_same(other, plain, images.contiguous(memory_format=order), ebv, 1e-5)


@pytest.mark.parametrize("name", ["compact", "cnn", "inception"])
def test_the_state_is_untouched_and_the_way_back_is_exact(name: str) -> None:
    plain, images = network(name), given()
    other = reform(copy.deepcopy(plain), merged=True, padded=True)
    for (a, x), (b, y) in zip(other.state_dict().items(), plain.state_dict().items(), strict=True):
        assert a == b and torch.equal(x, y) and x.stride() == y.stride()
    back = reform(other, **PLAIN)
    assert back is other
    for (a, x), (_, y) in zip(results(back, *images), results(plain, *images), strict=True):
        assert torch.equal(x, y), a


@pytest.mark.parametrize("name", ["compact", "cnn", "inception"])
@pytest.mark.parametrize("first", ["plain", "both"])
def test_a_checkpoint_goes_on_in_another_form(name: str, first: str) -> None:
    forms = {"plain": PLAIN, **FORMS}
    a, b = network(name), network(name)
    reform(a, **forms[first])
    reform(b, **forms["plain" if first == "both" else "both"])
    for parameter in b.parameters():
        parameter.data.zero_()
    optimisers = [torch.optim.Adam(module.parameters(), 1e-3) for module in (a, b)]
    images, ebv = given()
    a(images, ebv).logsumexp(1).sum().backward()
    optimisers[0].step()
    b.load_state_dict(a.state_dict())
    optimisers[1].load_state_dict(optimisers[0].state_dict())
    assert_same(b, a, images, ebv, 1e-5)
    moments = (state["exp_avg"] for state in optimisers[1].state.values())
    assert [m.shape for m in moments] == [p.shape for p in b.parameters()]


@pytest.mark.parametrize("name", ["compact", "cnn", "inception"])
def test_multiples_of_8_are_what_is_multiplied(name: str) -> None:
    def sizes(module: nn.Module) -> list[tuple[int, int]]:
        with Multiplied() as seen:
            module(*given())
        return list(seen.sizes)

    module = network(name)
    plain = sizes(module)
    assert any(size % 8 for pair in plain for size in pair), "nothing to pad"
    padded = sizes(reform(module, merged=False, padded=True))
    assert not [pair for pair in padded if pair[0] % 8 or pair[1] % 8]
    assert len(padded) == len(plain)
    both = sizes(reform(module, merged=True, padded=True))
    assert not [pair for pair in both if pair[0] % 8 or pair[1] % 8]
    if name == "inception":  # 3 of 6 convolutions in four modules, 2 of 4 in the last
        assert len(plain) - len(both) == 4 * 3 + 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["compact", "cnn", "inception"])
def test_bfloat16(name: str, form: str) -> None:
    """Each of some ten layers rounds to 2^-9: a few percent of the largest, as the plain form's own error."""
    plain = network(name)
    other = reform(copy.deepcopy(plain), **FORMS[form])
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(other, plain, *given(), 0.05)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["compact", "cnn", "inception"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_attacked(name: str, form: str, autocast: torch.dtype | None) -> None:
    """Frozen, with weights replaced by their casts; PReLU as the quick function of frozen slopes."""
    module = reform(network(name), **FORMS[form])
    images, ebv = given()
    eps, passes = torch.full((5,), 0.01), attacks.Passes(autocast=autocast)
    loss = attacks.cross_entropy(RedshiftBins(20, 0.0, 0.4))
    with Multiplied() as seen:
        adv = attacks.pgd(module, images, ebv, torch.full((2,), 0.1), eps, loss=loss, steps=2, passes=passes)
    moved = (adv - images).abs()
    assert bool(adv.isfinite().all()) and 0 < moved.max() <= 0.01 * (1 + 1e-4)
    assert "aten::_prelu_kernel_backward" not in seen.names
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_a_wrapped_network_is_found_and_another_refused() -> None:
    inner = network("inception")
    reform(nn.Sequential(inner), merged=True, padded=False)
    assert all(part.merged for part in inner.modules() if isinstance(part, InceptionModule))
    for form in FORMS.values():
        with pytest.raises(ValueError, match=r"^Linear holds no network"):
            reform(nn.Linear(2, 2), **form)
    theirs = nn.Linear(2, 2)
    assert reform(theirs, **PLAIN) is theirs


@QUIET
@pytest.mark.parametrize("name", ["compact", "cnn", "inception"])
def test_traced_whole_and_again_after_a_change(name: str) -> None:
    torch._dynamo.reset()
    graphs = []

    def kept(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    plain = network(name, 13)
    other = copy.deepcopy(plain)
    other.compile(fullgraph=True, backend=kept)
    for number, form in enumerate((FORMS["both"], PLAIN), 1):
        reform(other, **form)
        assert_same(other, plain, *given(13), 1e-5)
        assert len(graphs) == number
        pads = sum("pad" in str(node.target) for node in graphs[-1].graph.nodes if node.op == "call_function")
        assert pads > 5 if form["padded"] else pads == 0


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
@pytest.mark.timeout(900)  # a minute or two each, on a core that has other work
@pytest.mark.parametrize(
    ("name", "stamp", "counts_padding", "form"),
    [("inception", 16, True, "plain"), ("inception", 16, False, "both"), ("cnn", 9, True, "both")],
)
def test_compiled(name: str, stamp: int, counts_padding: bool, form: str) -> None:
    plain = network(name, stamp, counts_padding=counts_padding)
    other = reform(copy.deepcopy(plain), **{"plain": PLAIN, **FORMS}[form])
    other.compile()
    assert_same(other, plain, *given(stamp), 1e-5)
