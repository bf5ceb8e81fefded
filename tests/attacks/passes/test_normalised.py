"""Between two passes of the network one kernel does everything: the same attack as with the parts one by one.

As on a GPU, with the plain torch forms of the kernels in their place.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpcphotoz import attacks
from hpcphotoz.attacks import ball
from hpcphotoz.attacks.passes import gradient
from hpcphotoz.attacks.passes.gradient import image_loss_of
from hpcphotoz.attacks.pgd import ALL_ROWS, BestSoFar
from hpcphotoz.config import Model
from hpcphotoz.kernels.attack import pgd_normalised_reference as reference
from hpcphotoz.kernels.backend import kernels_on
from hpcphotoz.models.build import build
from hpcphotoz.models.cnn import CompactCNN
from hpcphotoz.models.layers import Conv, Normalise, fuse_activations
from tests.helpers.attack_problems import batch_norm_problem
from tests.helpers.kernels.fused import fused_on_cpu
from tests.helpers.networks import BINS
from tests.helpers.training.steps import Recorded

pytest.importorskip("triton", reason="triton is not installed: a GPU would run no kernel")
from hpcphotoz.kernels.attack import flux, l2, pgd, pgd_normalised

N, SIDE, SCALE = 4, 16, (0.1, 0.2, 0.05, 1.0, 3.0)
HALF = attacks.Passes(autocast=torch.bfloat16)
LOSS = attacks.cross_entropy(BINS)
CUDA = torch.device("cuda")


def network(name: str = "compact", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    width = {"width": 8} if name == "compact" else {}
    found = build(
        Model(name=name, bins=BINS.n, z_max=BINS.z_max, **width, **options), stamp=SIDE, scale=SCALE
    )
    return found.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def attacked(model: nn.Module, steps: int = 3, device: str = "cpu", **options: Any) -> tuple[Tensor, Tensor]:
    """Clean and attacked images."""
    torch.manual_seed(1)
    images, ebv, z = torch.randn(N, 5, SIDE, SIDE), 0.05 * torch.rand(N), 0.39 * torch.rand(N)
    images, ebv, z, eps = (t.to(device) for t in (images, ebv, z, 0.1 * torch.tensor(SCALE)))
    before = images.clone()
    given: dict[str, Any] = {"loss": LOSS, "steps": steps, "passes": HALF} | options
    adv = attacks.pgd(model, images, ebv, z, attacks.Ball(eps, hi=torch.full_like(eps, 2.0)), **given)
    assert torch.equal(images, before), "the attack has changed the clean images"
    return images, adv


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Call it with the number of which channels are a multiple."""

    def switch(channels: int) -> None:
        in_place = {"linf": pgd.pgd_, "l2": l2.l2_, "flux": flux.flux_}
        fused = replace(kernels_on("cpu"), in_place=in_place, pgd_normalised=pgd_normalised.pgd_normalised)
        monkeypatch.setattr(ball, "kernels_on", lambda device: fused)
        monkeypatch.setattr(gradient, "_CHANNELS", channels)
        monkeypatch.setattr(gradient, "_writes_normalised", lambda network, device: True)

    return switch


@pytest.mark.parametrize(
    ("name", "normalisation", "start"),
    [
        ("compact", "asinh", None),
        ("compact", "sqrt", attacks.RandomStart(seed=3)),
        ("cnn", "asinh", attacks.RandomStart(seed=3)),
        ("inception", "asinh", None),
    ],
)
def test_the_attack_is_the_same_bit_for_bit(
    as_on_a_gpu: Callable[[int], None], name: str, normalisation: str, start: attacks.RandomStart | None
) -> None:
    model = network(name, normalisation=normalisation)
    images, plain = attacked(model, start=start)
    as_on_a_gpu(1)
    assert torch.equal(attacked(model, start=start)[1], plain)
    # Sums over eight channels have another order: a sign may flip where the gradient is lost in rounding.
    as_on_a_gpu(8)
    assert (attacked(model, start=start)[1] == plain).float().mean() > 0.98
    assert (plain != images).float().mean() > 0.9


@pytest.mark.parametrize("name", ["inception", "cnn"])
def test_fused_activations_are_attacked_in_the_same_way(
    as_on_a_gpu: Callable[[int], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps after the first one read the normalised images; all compute the input's gradient alone."""
    fused_on_cpu(monkeypatch)
    as_on_a_gpu(8)
    model = network(name)
    images, plain = attacked(model, 2)
    fuse_activations(model)
    with Recorded("prelu_pool") as seen:
        fused = attacked(model, 2)[1]
    layers = sum(isinstance(part, Conv) for part in model.modules())
    ran = Counter(target.split(".")[1] for target in seen.found)
    assert ran == {"prelu_pool": 2 * layers, "prelu_pool_input_gradient": 2 * layers}
    # Rounding in bfloat16 turns the sign of a gradient near zero.
    assert (fused == plain).float().mean() > 0.9
    assert (plain != images).float().mean() > 0.9


class Written(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators that give a tensor of the size of all images, or more."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        images = any(t.shape[:1] == (N,) and t.shape[2:] == (SIDE, SIDE) for t in made)
        if images or func.name() == "hpcphotoz::pgd_normalised":
            self.names.append(func.name())
        return out


def test_between_two_passes_nothing_else_touches_an_image(as_on_a_gpu: Callable[[int], None]) -> None:
    model = network()  # its first convolution halves the side: nothing behind it is of the images' size
    with Written() as plain:
        attacked(model, 2)
    as_on_a_gpu(8)
    found = []
    for steps in (2, 3):
        with Written() as seen:
            attacked(model, steps)
        found.append(seen.names)
    more = list(found[1])
    for name in found[0]:
        more.remove(name)
    views = [name for name in more if name in ("aten::detach", "aten::alias")]
    assert sorted(set(more) - set(views)) == ["aten::convolution_backward", "hpcphotoz::pgd_normalised"]
    assert more.count("hpcphotoz::pgd_normalised") == 1
    assert "aten::log_" in plain.names and "aten::_to_copy" in plain.names, "the recorder misses passes"


@pytest.mark.parametrize("kind", ["asinh", "sqrt"])
def test_the_definition_is_what_the_network_makes_of_images(kind: str) -> None:
    images = torch.randn(2, 5, 7, 9)
    images[0, 0, 0] = 0.0
    found = reference.normalised(images, torch.tensor(SCALE), kind, torch.bfloat16, 8)
    wanted = Normalise(kind, SCALE)(images).bfloat16()
    assert torch.equal(found[:, :5], wanted) and not found[:, 5:].any()
    assert found.is_contiguous(memory_format=torch.channels_last)


class Changed(CompactCNN):
    """A user's network, which does something before the normalisation."""

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        return super().forward(images.flip(-1), ebv)


def test_only_our_networks_on_a_gpu_in_half_precision_are_entered_behind_their_normalisation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writes = gradient._writes_normalised
    ours, hooked, below = network(), network(), network()
    assert writes(ours, CUDA) and not writes(ours, torch.device("cpu"))  # type: ignore[arg-type]
    assert not writes(network(binning=2), CUDA)  # type: ignore[arg-type]
    assert not writes(Changed(Normalise("asinh", SCALE), 5, SIDE, BINS.n, width=8), CUDA)
    hooked.register_forward_hook(lambda *given: None)
    below.normalise.register_forward_pre_hook(lambda *given: None)  # type: ignore[union-attr]
    assert not writes(hooked, CUDA) and not writes(below, CUDA)  # type: ignore[arg-type]
    monkeypatch.setattr(gradient, "_writes_normalised", lambda *given: True)
    for passes, entered in ((HALF, True), (attacks.AS_IS, False), (attacks.Passes(torch.float32), False)):
        with image_loss_of(ours, LOSS, torch.device("cpu"), passes) as of:
            assert (of.normalised is not None) == entered
    with image_loss_of(batch_norm_problem()[0], LOSS, torch.device("cpu"), HALF) as of:
        assert of.normalised is None


def test_contiguous_images_take_the_parts_one_by_one(as_on_a_gpu: Callable[[int], None]) -> None:
    model = build(Model(bins=BINS.n, z_max=BINS.z_max, width=8), stamp=SIDE, scale=SCALE)
    plain = attacked(model)[1]
    as_on_a_gpu(8)
    assert torch.equal(attacked(model)[1], plain)


@pytest.mark.parametrize("kind", ["linf", "l2", "flux"])
def test_steps_in_place_give_the_same_attacks(
    as_on_a_gpu: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(BestSoFar, "unfinished_rows", lambda self: ALL_ROWS)  # a CPU leaves out the finished
    model, images, ebv, z, eps = batch_norm_problem(12)
    stop, start = attacks.outlier(BINS), attacks.RandomStart(seed=1)
    allowed = attacks.Ball(10 * eps, kind)
    shared: dict[str, Any] = {"loss": LOSS, "steps": 4}
    every: list[Callable[[], Tensor]] = [
        lambda: attacks.pgd(model, images, ebv, z, allowed, **shared),
        lambda: attacks.pgd(model, images, ebv, z, allowed, **shared, start=start, restarts=2, best=True),
        lambda: attacks.pgd(model, images, ebv, z, allowed, **shared, start=start, stop=stop),
        lambda: attacks.apgd(model, images, ebv, z, allowed, **shared, start=start, stop=stop),
        lambda: attacks.minimal_eps(
            model, images, ebv, z, allowed, **shared, reach=stop, others=[attacks.higher(BINS)]
        )[1],
    ]
    before, plain = images.clone(), [attack() for attack in every]
    as_on_a_gpu(8)
    for attack, wanted in zip(every, plain, strict=True):
        assert torch.equal(attack(), wanted) and torch.equal(images, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("passes", [HALF, replace(HALF, compiled=True)])
@pytest.mark.parametrize("name", ["compact", "cnn", "inception"])
def test_the_kernel_on_a_gpu_gives_the_attack_of_the_parts(
    monkeypatch: pytest.MonkeyPatch, name: str, passes: attacks.Passes
) -> None:
    model = network(name).cuda()
    given: dict[str, Any] = {"device": "cuda", "start": attacks.RandomStart(), "passes": passes}
    fused = attacked(model, **given)[1]
    monkeypatch.setattr(gradient, "_writes_normalised", lambda network, device: False)
    images, parts = attacked(model, **given)
    # Another logarithm and sums over eight channels: signs flip where the gradient is lost in rounding.
    assert (fused == parts).float().mean() > 0.95 and (parts != images).float().mean() > 0.9
