"""Attacks on any model: they climb, stay in the ball, and leave no trace in the model."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hpcphotoz import attacks
from hpcphotoz.config import Attack, Model
from hpcphotoz.kernels import reference
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.build import build

BINS = RedshiftBins(20, 0.0, 0.4)


class Linear(nn.Module):
    """A user's own network, with batch normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(3 * 64), nn.Dropout(0.5), nn.Linear(3 * 64 + 1, 20)

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([self.drop(self.norm(images.flatten(1))), ebv[:, None]], 1))
        return out


def problem(n: int = 6) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    images, ebv, z = torch.randn(n, 3, 8, 8), 0.05 * torch.rand(n), 0.39 * torch.rand(n)
    return Linear(), images, ebv, z, torch.tensor([0.01, 0.05, 0.2])


@pytest.mark.parametrize("name", ["cross_entropy", "shift"])
def test_attacks_raise_the_loss_of_every_object_and_stay_in_the_ball(name: str) -> None:
    model, images, ebv, z, eps = problem()
    loss = attacks.loss_of(name, BINS)
    model.eval()
    before = loss(model(images, ebv), z)
    for adv in (
        attacks.fgsm(model, images, ebv, z, eps, loss=loss),
        attacks.pgd(model, images, ebv, z, eps, loss=loss, steps=5),
    ):
        assert (loss(model(adv, ebv), z) > before).all()
        # One rounding of x0 + eps: 2^-23 (|x0| + eps) covers it and that of the difference.
        assert (
            (adv - images).abs() <= eps[:, None, None] + 2.0**-23 * (images.abs() + eps[:, None, None])
        ).all()


def test_fgsm_of_a_linear_loss_is_the_analytic_optimum() -> None:
    _, images, ebv, z, eps = problem()
    weight = torch.randn(3, 8, 8)

    def model(x: Tensor, _: Tensor) -> Tensor:
        return (x * weight).sum((1, 2, 3))[:, None]

    class Wrapped(nn.Module):
        def forward(self, x: Tensor, e: Tensor) -> Tensor:
            return model(x, e)

    for steps in (1, 4):
        adv = attacks.pgd(Wrapped(), images, ebv, z, eps, loss=lambda logits, _: logits[:, 0], steps=steps)
        gain = model(adv, ebv)[:, 0] - model(images, ebv)[:, 0]
        best = (eps[:, None, None] * weight.abs()).sum()  # the maximum of a linear function over the ball
        torch.testing.assert_close(gain, best.expand(6), rtol=1e-4, atol=1e-5)


def test_a_model_is_left_as_it_was() -> None:
    model, images, ebv, z, eps = problem()
    model.train()
    model.head.weight.requires_grad_(False)  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = [p.requires_grad for p in model.parameters()]
    attacks.pgd(model, images, ebv, z, eps, loss=attacks.cross_entropy(BINS), steps=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(module.training for module in model.modules())


def test_a_failing_model_is_left_as_it_was_too() -> None:
    model, images, ebv, z, eps = problem()
    with pytest.raises(RuntimeError):
        attacks.pgd(model, images[:, :2].contiguous(), ebv, z, eps[:2], loss=attacks.cross_entropy(BINS))
    assert model.training and all(p.requires_grad for p in model.parameters())


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.backward_of_weights = self.convolutions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.convolution_backward.default:
            self.convolutions += 1
            self.backward_of_weights += int(args[-1][1])
        return func(*args, **(kwargs or {}))


def test_no_weight_gradient_is_computed() -> None:
    model = build(Model(bins=20, width=8), stamp=16, scale=(0.1,) * 5)
    with _Count() as count:
        attacks.pgd(
            model,
            torch.randn(2, 5, 16, 16),
            torch.zeros(2),
            torch.full((2,), 0.1),
            torch.full((5,), 0.01),
            loss=attacks.cross_entropy(BINS),
            steps=3,
        )
    assert count.convolutions == 3 * 4 and count.backward_of_weights == 0


def test_perturb_speaks_in_sky_sigmas_and_keys_starts_by_object() -> None:
    model, images, ebv, z, _ = problem()
    sky, ids = torch.rand(6, 3) + 0.1, torch.arange(100, 106)
    attack = Attack(eps=0.2, steps=3)
    run = dict(attack=attack, bins=BINS, seed=7, epoch=2)
    adv = attacks.perturb(model, images, ebv, z, sky, ids, **run)  # type: ignore[arg-type]
    assert ((adv - images).abs().amax((2, 3)) <= 0.2 * sky + 1e-6).all()
    order = torch.tensor([4, 1, 5])
    some = attacks.perturb(model, images[order], ebv[order], z[order], sky[order], ids[order], **run)  # type: ignore[arg-type]
    # Matrix products of other batch sizes round differently: a pixel's sign may flip only where its gradient
    # is ~0.
    assert (some == adv[order]).float().mean() > 0.999
    last = attacks.perturb(model, images, ebv, z, sky, ids, **{**run, "epoch": 3})  # type: ignore[arg-type]
    assert not torch.equal(last, adv)


def test_random_start_lies_in_the_ball_and_bounds_hold() -> None:
    model, images, ebv, z, eps = problem()
    start = reference.uniform(images.shape, torch.arange(6), 0, 0)
    hi = torch.full((3,), 1.0)
    adv = attacks.pgd(model, images, ebv, z, eps, loss=attacks.shift(BINS), steps=2, start=start, hi=hi)
    assert (adv <= 1).all()
    inside = images.abs() < 1
    assert ((adv - images).abs() <= eps[:, None, None] + 1e-6)[inside].all()


def test_channels_last_and_contiguous_images_give_the_same_attack() -> None:
    model, images, ebv, z, eps = problem()
    loss = attacks.cross_entropy(BINS)
    plain = attacks.pgd(model, images, ebv, z, eps, loss=loss, steps=3)
    last = attacks.pgd(
        model, images.contiguous(memory_format=torch.channels_last), ebv, z, eps, loss=loss, steps=3
    )
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_a_nan_gradient_does_not_become_a_nan_image() -> None:
    _, images, ebv, z, eps = problem()

    class Broken(nn.Module):
        def forward(self, x: Tensor, e: Tensor) -> Tensor:
            return (x * torch.where(x > 0, torch.nan, 1.0)).flatten(1).sum(1, keepdim=True)

    adv = attacks.pgd(Broken(), images, ebv, z, eps, loss=lambda logits, _: logits[:, 0], steps=2)
    assert adv.isfinite().all()


def test_a_plain_function_can_be_attacked() -> None:
    _, images, ebv, z, eps = problem()

    def model(x: Tensor, e: Tensor) -> Tensor:
        return x.flatten(1)[:, :20] + e[:, None]

    loss = attacks.cross_entropy(BINS)
    adv = attacks.fgsm(model, images, ebv, z, eps, loss=loss)
    assert (loss(model(adv, ebv), z) > loss(model(images, ebv), z)).all()
