"""Attacks on any model: they climb, stay in the ball, and leave no trace in the model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcphotoz import attacks
from hpcphotoz.attacks.losses import redshift_losses
from hpcphotoz.config import Attack
from hpcphotoz.config.load import parse
from hpcphotoz.errors import BadInput
from tests.helpers.attack_problems import batch_norm_problem, conv_problem, rounding
from tests.helpers.networks import BINS

LOSS = attacks.cross_entropy(BINS)


def inside(adv: Tensor, images: Tensor, eps: Tensor, kind: str = "linf") -> bool:
    """Whether the change lies in the ball, up to rounding."""
    radius, change = eps[:, None, None], adv - images
    if kind == "l2":
        return bool((torch.linalg.vector_norm(change / radius, dim=(1, 2, 3)) < 1 + 1e-5).all())
    within = bool((change.abs() <= radius + rounding(images, radius)).all())
    # Each pixel of x0 + delta is rounded by half an ulp of at most 4, and 64 of them are added up.
    balanced = bool((change.sum((2, 3)).abs() < 64 * 2.0**-22).all())
    return within and (kind == "linf" or balanced)


@pytest.mark.parametrize("name", redshift_losses)
@pytest.mark.parametrize("kind", ["linf", "l2", "flux"])
def test_attacks_raise_the_loss_and_stay_in_the_ball(name: str, kind: str) -> None:
    model, images, ebv, z, eps = batch_norm_problem(16)
    loss, ball = redshift_losses[name](BINS), attacks.Ball(eps, kind)
    model.eval()
    before = loss(model(images, ebv), z)
    for attack, adv in (
        ("fgsm", attacks.fgsm(model, images, ebv, z, ball, loss=loss)),
        ("pgd", attacks.pgd(model, images, ebv, z, ball, loss=loss, steps=5, best=True)),
        ("apgd", attacks.apgd(model, images, ebv, z, ball, loss=loss, steps=5)),
    ):
        after = loss(model(adv, ebv), z)
        # |<z> - z| and the margin have kinks, behind which a first step may fall; those that keep their best
        # do not. The margin is flat where the bin of z is the third.
        if attack != "fgsm":
            assert (after >= before - 1e-6).all()
        if (attack, name) != ("fgsm", "margin"):
            assert after.mean() > before.mean() and (after > before).float().mean() > 0.7
        assert name != "cross_entropy" or (after > before).all()
        assert inside(adv, images, eps, kind)


def test_pgd_of_a_linear_loss_is_the_analytic_optimum_in_every_ball() -> None:
    _, images, ebv, z, eps = batch_norm_problem()
    weight = torch.randn(3, 8, 8)

    def model(x: Tensor) -> Tensor:
        return (x * weight).sum((1, 2, 3))[:, None]

    # The maximum of a linear function: at the corner; along the gradient; half of the pixels up, half down.
    centred = weight - weight.flatten(1).median(1).values[:, None, None]
    best = {
        "linf": (eps[:, None, None] * weight.abs()).sum(),
        "l2": torch.linalg.vector_norm(eps[:, None, None] * weight),
        "flux": (eps[:, None, None] * centred.abs()).sum(),
    }
    for kind, gain in best.items():
        for steps in (1, 4):
            ball = attacks.Ball(eps, kind)
            adv = attacks.pgd(
                model, images, None, z, ball, loss=lambda outputs, _: outputs[:, 0], steps=steps
            )
            got = model(adv)[:, 0] - model(images)[:, 0]
            # The median of 64 pixels is one of them, which stays where it is: the flux ball's own optimum
            # moves it, for less than 1/64 of the whole.
            tolerance = 0.02 if kind == "flux" else 1e-4
            torch.testing.assert_close(got, gain.expand(6), rtol=tolerance, atol=1e-5)


def test_a_model_is_left_as_it_was() -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    model.train()
    model.head.weight.requires_grad_(False)  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = [p.requires_grad for p in model.parameters()]
    attacks.pgd(model, images, ebv, z, eps, loss=LOSS, steps=2)
    attacks.apgd(model, images, ebv, z, eps, loss=LOSS, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(module.training for module in model.modules())


def test_a_failing_model_is_left_as_it_was_too() -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    with pytest.raises(RuntimeError):
        attacks.pgd(model, images[:, :2].contiguous(), ebv, z, eps[:2], loss=LOSS)
    assert model.training and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "change", [{}, {"ball": "flux"}, {"ball": "l2"}, {"method": "apgd"}, {"restarts": 2}]
)
def test_perturb_speaks_in_sky_sigmas_and_keys_starts_by_object(change: dict[str, Any]) -> None:
    model, images, ebv, z, _ = batch_norm_problem()
    sky, ids = torch.rand(6, 3) + 0.1, torch.arange(100, 106)
    run: dict[str, Any] = dict(attack=Attack(eps=0.2, steps=3, **change), bins=BINS, seed=7, epoch=2)
    adv = attacks.perturb(model, images, ebv, z, sky, ids, **run)
    scaled = (adv - images) / sky[:, :, None, None]
    if change.get("ball") == "l2":  # eps is the root mean square over the stamp
        assert (scaled.square().mean((1, 2, 3)).sqrt() <= 0.2 * (1 + 1e-5)).all()
    else:
        assert (scaled.abs().amax((2, 3)) <= 0.2 + 1e-5).all()
    order = torch.tensor([4, 1, 5])
    some = attacks.perturb(model, images[order], ebv[order], z[order], sky[order], ids[order], **run)
    # Matrix products of other batch sizes round differently: a pixel's sign may flip only where its gradient
    # is ~0.
    assert ((some - adv[order]).abs() < 1e-5).float().mean() > 0.999
    other = attacks.perturb(model, images, ebv, z, sky, ids, **{**run, "epoch": 3})
    assert not torch.equal(other, adv)


def test_a_target_draws_the_redshift_to_it() -> None:
    model, images, ebv, z, _ = batch_norm_problem(24)
    sky, ids = torch.full((24, 3), 0.3), torch.arange(24)
    model.eval()
    clean = BINS.mean(model(images, ebv))

    def after(**change: Any) -> Tensor:
        attack = Attack(eps=1.0, steps=10, loss="shift", **change)
        return BINS.mean(
            model(attacks.perturb(model, images, ebv, z, sky, ids, attack=attack, bins=BINS), ebv)
        )

    near = after(target="redshift", target_value=0.05)
    assert ((near - 0.05).abs() < (clean - 0.05).abs()).all()
    shifted = after(target="shift", target_value=-0.08)
    wanted = attacks.moved_by(z, -0.08, BINS)
    assert ((shifted - wanted).abs().mean()) < 0.5 * (clean - wanted).abs().mean()


def test_random_starts_lie_in_the_ball_and_bounds_hold() -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    start = attacks.RandomStart(torch.arange(6))
    ball = attacks.Ball(eps, hi=torch.full((3,), 1.0))
    adv = attacks.pgd(model, images, ebv, z, ball, loss=attacks.shift(BINS), steps=2, start=start)
    assert (adv <= 1).all()
    below = images.abs() < 1
    assert ((adv - images).abs() <= eps[:, None, None] + 1e-6)[below].all()


@pytest.mark.parametrize("kind", ["linf", "l2", "flux"])
def test_pixels_outside_the_mask_stay(kind: str) -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:6, 1:7] = True
    ball = attacks.Ball(eps, kind, mask=mask)
    for adv in (
        attacks.pgd(model, images, ebv, z, ball, loss=LOSS, start=attacks.RandomStart()),
        attacks.apgd(model, images, ebv, z, ball, loss=LOSS, steps=5),
    ):
        changed = adv != images
        assert not changed[~mask.expand_as(changed)].any() and changed.any((1, 2, 3)).all()
        assert inside(adv, images, eps, kind)


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("kind", ["linf", "l2", "flux"])
def test_channels_last_and_contiguous_images_give_the_same_attack(kind: str, n: int) -> None:
    model, images, ebv, z, eps = batch_norm_problem(n)
    ball, start, stop = attacks.Ball(eps, kind), attacks.RandomStart(), attacks.outlier(BINS)
    shared: dict[str, Any] = {"loss": LOSS, "steps": 6, "start": start}
    every: list[Callable[[Tensor], Tensor]] = [
        lambda x: attacks.pgd(model, x, ebv, z, ball, **shared),
        lambda x: attacks.pgd(model, x, ebv, z, ball, **shared, restarts=2, stop=stop),
        lambda x: attacks.apgd(model, x, ebv, z, ball, **shared, restarts=2, stop=stop),
        lambda x: attacks.minimal_eps(model, x, ebv, z, ball, reach=stop, **shared)[1],
    ]
    for attack in every:
        plain = attack(images)
        last = attack(images.contiguous(memory_format=torch.channels_last))
        # The L2 norm and the flux add up in another order.
        torch.testing.assert_close(plain, last, rtol=0, atol=0 if kind == "linf" else 1e-5)
        assert last.is_contiguous(memory_format=torch.channels_last)


def test_images_come_back_in_the_layout_they_were_given_in() -> None:
    model, images, z = conv_problem()
    eps, loss = torch.full((3,), 0.1), LOSS
    plain = attacks.pgd(model, images, None, z, eps, loss=loss, steps=3)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seen = []
    model.register_forward_pre_hook(lambda module, given: seen.append(given[0].is_contiguous()))
    last = attacks.pgd(model, images, None, z, eps, loss=loss, steps=3)
    assert last.is_contiguous() and not any(seen)
    # Convolutions of another layout add up in another order: a sign may flip where the gradient is ~0.
    assert (plain == last).float().mean() > 0.99


def test_a_nan_gradient_does_not_become_a_nan_image() -> None:
    _, images, ebv, z, eps = batch_norm_problem()

    class Broken(nn.Module):
        def forward(self, x: Tensor, e: Tensor) -> Tensor:
            return (x * torch.where(x > 0, torch.nan, 1.0)).flatten(1).sum(1, keepdim=True)

    for kind in ("linf", "l2", "flux"):
        ball = attacks.Ball(eps, kind)
        adv = attacks.pgd(Broken(), images, ebv, z, ball, loss=lambda logits, _: logits[:, 0], steps=2)
        assert adv.isfinite().all()


def test_a_plain_function_can_be_attacked() -> None:
    _, images, ebv, z, eps = batch_norm_problem()

    def model(x: Tensor, e: Tensor) -> Tensor:
        return x.flatten(1)[:, :20] + e[:, None]

    adv = attacks.fgsm(model, images, ebv, z, eps, loss=LOSS)
    assert (LOSS(model(adv, ebv), z) > LOSS(model(images, ebv), z)).all()


def test_some_objects_at_a_time_are_the_same_attack() -> None:
    model, images, z = conv_problem(11)
    eps = torch.full((3,), 0.2)
    whole, parts = (
        attacks.pgd(
            model,
            images,
            None,
            z,
            eps,
            loss=LOSS,
            start=attacks.RandomStart(),
            passes=attacks.Passes(rows=rows),
        )
        for rows in (11, 4)
    )
    assert (whole == parts).float().mean() > 0.99  # as above: products of other sizes round differently


def test_the_best_image_on_the_way_is_never_worse_than_the_last() -> None:
    model, images, z = conv_problem(16)
    eps = torch.full((3,), 0.5)
    coarse: dict[str, Any] = dict(loss=LOSS, steps=6, step_size=eps)
    last, best = (
        LOSS(model(attacks.pgd(model, images, None, z, eps, best=b, **coarse)), z) for b in (False, True)
    )
    assert (best >= last - 1e-6).all() and (best > last + 1e-4).any()


def test_more_restarts_are_never_worse() -> None:
    model, images, z = conv_problem(16)
    eps, start = torch.full((3,), 0.5), attacks.RandomStart(seed=2)
    one, five = (
        LOSS(
            model(attacks.pgd(model, images, None, z, eps, loss=LOSS, start=start, best=True, restarts=n)), z
        )
        for n in (1, 5)
    )
    assert (five >= one - 1e-6).all() and (five > one + 1e-4).any()


def test_an_object_at_its_end_stays_as_it_is_and_costs_nothing_more() -> None:
    model, images, z = conv_problem(16)
    rows = []
    model.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    stop, eps = attacks.outlier(BINS), torch.full((3,), 0.5)
    adv = attacks.pgd(model, images, None, z, eps, loss=LOSS, steps=12, stop=stop)
    assert rows[0] == 16 and rows == sorted(rows, reverse=True) and rows[-1] < 16
    clean = stop(model(images), z)
    assert clean.any() and torch.equal(adv[clean], images[clean])
    # Those that became outliers on the way left the attack at once: they moved less than the rest.
    done = stop(model(adv), z) & ~clean
    moved = (adv - images).abs().mean((1, 2, 3))
    assert done.any() and (~(done | clean)).any()
    assert moved[done].max() <= moved[~(done | clean)].max() + 1e-6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"eps": torch.ones(2)}, r"eps \(2,\): want \(B,\)"),
        ({"images": torch.ones(6, 3, 8, 8).double()}, "want .* float32"),
        ({"images": torch.ones(3, 8, 8)}, r"want \(N, B, H, W\)"),
        ({"z": torch.ones(5)}, r"labels \(5,\): want 6 rows"),
        ({"ebv": torch.ones(7)}, r"ebv \(7,\): want 6 rows"),
        ({"steps": 0}, "at least 1"),
        ({"restarts": 3}, "give a random start"),
        ({"eps": attacks.Ball(torch.ones(3), "cube")}, "want one of linf, l2, flux"),
        ({"start": attacks.RandomStart(epoch=2**20)}, "epoch"),
        ({"eps": torch.tensor([0.1, torch.inf, 0.1])}, "eps inf: must be finite and not negative"),
        ({"eps": torch.tensor([0.1, torch.nan, 0.1])}, "eps nan: must be finite"),
        ({"eps": torch.tensor(-0.1)}, "eps -0.1: must be finite and not negative"),
        ({"step_size": torch.tensor(torch.inf)}, "step_size inf: must be finite"),
        ({"eps": torch.tensor(1e39, dtype=torch.float64)}, r"eps 1e\+39: must be finite .* in float32"),
        ({"step_size": torch.tensor(1e39, dtype=torch.float64)}, "step_size .*: must be finite in float32"),
        ({"eps": torch.tensor(3e38), "steps": 1}, "step of the attack inf: must be finite"),
    ],
)
def test_what_does_not_belong_together_is_refused(given: dict[str, Any], said: str) -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    whole: dict[str, Any] = {"model": model, "images": images, "ebv": ebv, "z": z, "eps": eps, "loss": LOSS}
    with pytest.raises(ValueError, match=said):
        attacks.pgd(**{**whole, **given})


@pytest.mark.parametrize("eps", [float("inf"), float("nan"), -1.0])
def test_every_attack_refuses_a_ball_without_a_radius(eps: float) -> None:
    model, images, ebv, z, radius = batch_norm_problem()
    for name in (attacks.FGSM, attacks.PGD, attacks.APGD):
        with pytest.raises(ValueError, match="eps .*: must be finite and not negative"):
            name(model, eps)
    with pytest.raises(ValueError, match="eps .*: must be finite and not negative"):
        attacks.PGD(model, 0.1, loss=LOSS).over(images, z, [1.0, eps], ebv)
    with pytest.raises(ValueError, match="eps .*: must be finite and not negative"):
        reach = attacks.outlier(BINS)
        attacks.minimal_eps(model, images, ebv, z, eps * radius, loss=LOSS, reach=reach)
    with pytest.raises(ValueError, match="alpha inf: must be finite"):
        attacks.PGD(model, 0.1, alpha=float("inf"))
    with pytest.raises(ValueError, match="hi nan: must be a number"):
        attacks.Ball(radius, hi=torch.tensor(float("nan")))
    with pytest.raises(ValueError, match=r"lo 1e\+39: must be a number below infinity in float32"):
        attacks.Ball(radius, lo=torch.tensor(1e39, dtype=torch.float64))


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (lambda logits: (logits, logits), r"a tuple of 2 \(Tensor, Tensor\)"),
        (lambda logits: {"logits": logits}, "a dict of 'logits'"),
        (lambda logits: None, "a NoneType"),
    ],
)
def test_a_model_that_returns_no_tensor_is_told_so(
    outputs: Callable[[torch.Tensor], object], said: str
) -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    with pytest.raises(TypeError, match=f"the model returned {said}: attacks want one tensor"):
        attacks.pgd(lambda x, e: outputs(model(x, e)), images, ebv, z, eps, loss=LOSS)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ({"restarts": 2, "random_start": False}, "attack: restarts 2 without random_start are one$"),
        ({"method": "fgsm", "restarts": 2}, "fgsm has no random start"),
        ({"method": "apgd", "step_size": 0.1}, "apgd has its own"),
        ({"target": "redshift", "target_value": 0.5}, r"outside the bins \[0, 0.4\)"),
        ({"target_value": 0.1}, "without a target"),
        ({"ball": "cube"}, "linf"),
        ({"stop": -1}, "greater"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(attack: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse({"attack": attack}, "test")
