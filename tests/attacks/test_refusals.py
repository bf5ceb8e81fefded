"""Arguments that attacks refuse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hpcphotoz import attacks
from tests.helpers.attack_problems import batch_norm_problem
from tests.helpers.networks import BINS

LOSS = attacks.cross_entropy(BINS)


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
def test_arguments_that_contradict_each_other_are_refused(given: dict[str, Any], said: str) -> None:
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


@pytest.mark.parametrize("make", [attacks.cross_entropy, attacks.margin, attacks.crps, attacks.shift])
def test_redshifts_for_which_a_loss_means_nothing_are_refused(make: Callable[[Any], Any]) -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    loss, reach = make(BINS), attacks.outlier(BINS)
    unknown, outside = z.clone(), z + 10
    unknown[[2, 4]] = torch.nan
    for labels, said in (
        (unknown, "z of 2 of 6 objects, .* nan of object 2"),
        (outside, "z of 6 of 6 .* 10"),
    ):
        if make is attacks.shift and labels is outside:  # a distance has a meaning there
            continue
        for one in (loss, attacks.toward(loss)):
            with pytest.raises(ValueError, match=f"{said}.*: must be .*hpcphotoz.attack"):
                attacks.pgd(model, images, ebv, labels, eps, loss=one)
            with pytest.raises(ValueError, match=said):
                attacks.fgsm(model, images, ebv, labels, eps, loss=one)
            with pytest.raises(ValueError, match=said):
                attacks.apgd(model, images, ebv, labels, eps, loss=one)
            with pytest.raises(ValueError, match=said):
                attacks.minimal_eps(model, images, ebv, labels, eps, loss=one, reach=reach)
            with pytest.raises(ValueError, match=said):
                attacks.PGD(model, eps, loss=one)(images, labels, ebv)
    attacks.fgsm(model, images, ebv, unknown, eps, loss=attacks.higher(BINS))  # looks at no label


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (lambda logits: (logits, logits), r"a tuple of 2 \(Tensor, Tensor\)"),
        (lambda logits: {"logits": logits}, "a dict of 'logits'"),
        (lambda logits: None, "a NoneType"),
    ],
)
def test_a_model_that_returns_no_tensor_is_refused(
    outputs: Callable[[torch.Tensor], object], said: str
) -> None:
    model, images, ebv, z, eps = batch_norm_problem()
    with pytest.raises(TypeError, match=f"the model returned {said}: attacks want one tensor"):
        attacks.pgd(lambda x, e: outputs(model(x, e)), images, ebv, z, eps, loss=LOSS)  # type: ignore[arg-type,return-value]
