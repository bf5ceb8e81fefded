"""Attacks compute no parameter gradient, call no collective and never make the host wait."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from hpcphotoz import attacks
from hpcphotoz.attacks import losses
from hpcphotoz.attacks.apgd import apgd_loop
from hpcphotoz.attacks.ball import attack_batch
from hpcphotoz.attacks.minimal_eps import minimal_eps_loop
from hpcphotoz.attacks.passes import gradient
from hpcphotoz.attacks.passes.gradient import image_loss_of
from hpcphotoz.attacks.pgd import pgd_loop
from hpcphotoz.config import Model
from hpcphotoz.models.build import build
from tests.helpers.attack_problems import batch_norm_problem
from tests.helpers.networks import BINS

SCALE = (0.1,) * 5


class Dispatched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the names of all operators, and how many convolutions compute a gradient of their weights."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.weight_gradients = self.convolutions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.name())
        if func is torch.ops.aten.convolution_backward.default:
            self.convolutions += 1
            self.weight_gradients += int(args[-1][1])
        return func(*args, **(kwargs or {}))


def five_bands(n: int = 2, side: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(n, 5, side, side), torch.zeros(n), torch.full((n,), 0.1), torch.full((5,), 0.01)


Attack = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Tensor]
LOSS = attacks.cross_entropy(BINS)
START = attacks.RandomStart(seed=1)
EVERY: dict[str, Attack] = {
    "fgsm": lambda m, x, e, z, eps: attacks.fgsm(m, x, e, z, eps, loss=LOSS),
    "pgd": lambda m, x, e, z, eps: attacks.pgd(m, x, e, z, eps, loss=LOSS, steps=3, start=START),
    "l2": lambda m, x, e, z, eps: attacks.pgd(m, x, e, z, attacks.Ball(eps, "l2"), loss=LOSS, steps=3),
    "flux": lambda m, x, e, z, eps: attacks.pgd(m, x, e, z, attacks.Ball(eps, "flux"), loss=LOSS, steps=3),
    "apgd": lambda m, x, e, z, eps: attacks.apgd(m, x, e, z, eps, loss=LOSS, steps=3, start=START),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("network", ["compact", "cnn"])
def test_no_parameter_gradient_is_computed(name: str, network: str) -> None:
    model = build(Model(name=network, bins=20, width=8), stamp=16, scale=SCALE)
    with Dispatched() as seen:
        EVERY[name](model, *five_bands())
    layers = 4 if network == "compact" else 3
    assert seen.convolutions == layers * (1 if name == "fgsm" else 3) and seen.weight_gradients == 0
    assert (
        "aten::_prelu_kernel_backward" not in seen.names
    )  # it would also compute the gradient of the slopes
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_an_attack_on_a_ddp_model_calls_no_collective(name: str, tmp_path: Path) -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        with Dispatched() as plain:
            wrapped(images, ebv).sum().backward()
        assert any("c10d" in name for name in plain.names), "the mode does not see collectives"
        with Dispatched() as seen:
            EVERY[name](wrapped, images, ebv, z, eps)
        assert not [name for name in seen.names if "c10d" in name]
    finally:
        del wrapped
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("stop", [None, attacks.outlier(BINS)])
@pytest.mark.parametrize("name", ["pgd", "l2", "flux", "apgd", "minimal"])
def test_the_host_never_waits_for_a_gpu(name: str, stop: attacks.Condition | None) -> None:
    """Runs on meta tensors, which have shapes but no data: reading a value raises an error."""
    loop: Callable[..., tuple[Tensor, ...]] = partial(pgd_loop, steps=3, restarts=2, best=True, stop=stop)
    if name == "apgd":
        loop = partial(apgd_loop, steps=4, restarts=2, stop=stop)
    if name == "minimal":
        loop = partial(minimal_eps_loop, steps=3, bisections=2, reach=attacks.outlier(BINS))
    with torch.device("meta"):
        model = build(Model(bins=20, width=8), stamp=16, scale=SCALE)
        images, ids = torch.empty(4, 5, 16, 16), torch.empty(4, dtype=torch.int64)
        ebv, z, eps, key = torch.empty(4), torch.empty(4), torch.empty(5), torch.empty(2, dtype=torch.int64)
    ball = attacks.Ball(eps, name if name in ("l2", "flux") else "linf")
    given = attack_batch(images, ebv, z, ball, None, 1.0, ids)
    with Dispatched() as seen, image_loss_of(model, LOSS, images.device, attacks.AS_IS) as image_loss:
        out = loop(image_loss, given, key)
    assert out[-1].device.type == "meta" and out[-1].shape == images.shape
    waits = ("_local_scalar_dense", "aten::item", "nonzero", "is_nonzero", "_to_cpu", "masked_select")
    assert not [name for name in seen.names if any(word in name for word in waits)]


def test_bfloat16_weights_are_cast_once_and_the_model_keeps_its_own() -> None:
    model = build(Model(name="cnn", bins=20), stamp=16, scale=SCALE)
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    images, ebv, z, eps = five_bands()
    passes = attacks.Passes(autocast=torch.bfloat16)
    with Dispatched() as seen:
        adv = attacks.pgd(model, images, ebv, z, eps, loss=LOSS, steps=4, passes=passes)
    assert adv.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert value.data_ptr() == before[name][0] and torch.equal(value, before[name][1])
    full = attacks.pgd(model, images, ebv, z, eps, loss=LOSS, steps=4)
    # Few signs differ where the gradient is lost in rounding; the attack is as strong to a few per cent.
    model.eval()
    loss = [LOSS(model(x, ebv), z) for x in (images, adv, full)]
    assert ((loss[1] - loss[0]) > 0.9 * (loss[2] - loss[0])).all()
    # Weights are cast once, not at every step; the largest are the last dense layer's, 20 x 1024.
    casts = sum(name == "aten::_to_copy" for name in seen.names)
    with Dispatched() as more:
        attacks.pgd(model, images, ebv, z, eps, loss=LOSS, steps=8, passes=passes)
    per_step = (sum(name == "aten::_to_copy" for name in more.names) - casts) / 4
    assert casts - 4 * per_step == 10  # weights and biases of three convolutions and two dense layers


def test_float32_passes_are_so_under_the_callers_autocast() -> None:
    model = build(Model(bins=20, width=8), stamp=16, scale=SCALE)
    images, ebv, z, eps = five_bands()
    exact = attacks.Passes(autocast=torch.float32)
    plain = attacks.pgd(model, images, ebv, z, eps, loss=LOSS, steps=4)
    with torch.autocast("cpu", torch.bfloat16):
        callers = attacks.pgd(model, images, ebv, z, eps, loss=LOSS, steps=4)
        own = attacks.pgd(model, images, ebv, z, eps, loss=LOSS, steps=4, passes=exact)
    assert torch.equal(own, plain) and not torch.equal(callers, plain)


def test_a_compiled_model_gives_the_same_attack() -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    plain = attacks.pgd(model, images, ebv, z, eps, loss=LOSS, steps=3)
    compiled = attacks.pgd(
        model, images, ebv, z, eps, loss=LOSS, steps=3, passes=attacks.Passes(compiled=True)
    )
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    attacks.pgd(model, images, ebv, z, eps, loss=LOSS, steps=2, passes=attacks.Passes(compiled=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "compiled twice"
    # Compiled sums have another order: a sign may flip where the gradient is ~0.
    assert (plain == compiled).float().mean() > 0.999


@pytest.mark.parametrize(
    "loss",
    [
        *(named(BINS) for name, named in losses.redshift_losses.items() if "margin" not in name),
        losses.higher(BINS),
        losses.lower(BINS),
        losses.toward(losses.shift(BINS)),
        losses.shift(BINS).unchecked,
    ],
)
def test_loss_and_gradient_of_one_kernel_are_those_of_autograd(
    loss: losses.Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, with the kernel's definition in its place."""
    images, ebv, z, eps = five_bands()
    model = build(Model(bins=BINS.n, z_max=BINS.z_max, width=8), stamp=16, scale=SCALE)
    batch = attack_batch(images, ebv, z, eps, None, 1.0, None)
    found = []
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(
            gradient,
            "fused_loss",
            lambda loss, _, device=device: losses.fused_loss(loss, torch.device(device)),
        )
        with image_loss_of(model, loss, images.device, attacks.Passes()) as image_loss:
            found.append(image_loss.gradient(images, batch))
    plain, fused = found
    assert losses.fused_loss(loss, torch.device("cuda")) and not losses.fused_loss(loss, images.device)
    assert plain.grad.abs().max() > 0 and torch.equal(plain.outputs, fused.outputs)
    torch.testing.assert_close(fused.loss, plain.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(fused.grad, plain.grad, rtol=1e-4, atol=1e-5 * float(plain.grad.abs().max()))


def test_losses_without_a_kernel_stay_as_they_are() -> None:
    for loss in (losses.margin(BINS), losses.cross_entropy(), lambda outputs, z: outputs.sum(1)):
        assert losses.fused_loss(loss, torch.device("cuda")) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("loss", [name for name in losses.redshift_losses])
def test_an_attack_on_a_gpu_finds_the_gradient_of_the_cpu(loss: str) -> None:
    images, ebv, z, eps = five_bands()
    model = build(Model(bins=BINS.n, z_max=BINS.z_max, width=8), stamp=16, scale=SCALE)
    found = []
    for device in ("cpu", "cuda"):
        x, e, labels, ball = (t.to(device) for t in (images, ebv, z, eps))
        batch = attack_batch(x, e, labels, ball, None, 1.0, None)
        named = losses.redshift_losses[loss](BINS)
        with image_loss_of(model.to(device), named, batch.images.device, attacks.Passes(tf32=False)) as of:
            found.append([t.cpu() for t in of.gradient(batch.images, batch)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["linf", "l2", "flux"])
def test_a_graph_replays_the_attack_on_new_images(kind: str) -> None:
    model = build(Model(bins=20, width=8), stamp=16, scale=SCALE).cuda()
    rows = [tuple(t.cuda() for t in five_bands(8)), tuple(t.cuda() for t in five_bands(8))]
    rows[1][0].add_(0.1)
    eager = attacks.PGD(model, rows[0][3], steps=3, ball=kind, loss=LOSS)
    graph = attacks.PGD(model, rows[0][3], steps=3, ball=kind, loss=LOSS, graph=True)
    for images, ebv, z, _ in (*rows, rows[0]):
        torch.testing.assert_close(graph(images, z, ebv), eager(images, z, ebv), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_graph_uses_updated_weights() -> None:
    model = build(Model(bins=20, width=8), stamp=16, scale=SCALE).cuda()
    images, ebv, z, eps = (t.cuda() for t in five_bands(8))
    passes = attacks.Passes(autocast=torch.bfloat16)
    graph = attacks.PGD(model, eps, steps=3, loss=LOSS, graph=True, passes=passes)
    first = graph(images, z, ebv)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.0)
    again = graph(images, z, ebv)
    assert not torch.equal(first, again)
    eager = attacks.PGD(model, eps, steps=3, loss=LOSS, passes=passes)
    assert (again == eager(images, z, ebv)).float().mean() > 0.99
