"""The minimal epsilon has the analytic value for a linear model, zero and infinity included."""

import torch
from torch import Tensor

from hpcphotoz import attacks
from tests.helpers.attack_problems import conv_problem
from tests.helpers.networks import BINS


def test_minimal_eps_of_a_linear_model_is_the_analytic_one() -> None:
    g = torch.Generator().manual_seed(2)
    weight, images = torch.randn(3, 8, 8, generator=g), torch.randn(40, 3, 8, 8, generator=g)
    unit = torch.tensor([0.5, 1.0, 2.0])

    def model(x: Tensor) -> Tensor:
        return (x * weight).sum((1, 2, 3))[:, None]

    before, gain = model(images)[:, 0], (unit[:, None, None] * weight.abs()).sum()
    threshold = before + gain * torch.linspace(-0.1, 1.1, 40)
    multiple, adv = attacks.minimal_eps(
        model,
        images,
        None,
        threshold,
        unit,
        loss=lambda outputs, _: outputs[:, 0],
        reach=lambda outputs, wanted: outputs[:, 0] > wanted,
    )
    true = (threshold - before) / gain
    assert (multiple[true < 0] == 0).all() and torch.isinf(multiple[true > 1]).all()
    between = (true > 0.01) & (true < 0.99)
    # Eight bisections of a factor of 1024: 2.7 %, always from above.
    ratio = multiple[between] / true[between]
    assert (ratio > 0.999).all() and (ratio < 1.028).all()
    reaching = torch.isfinite(multiple)
    assert (model(adv)[reaching, 0] > threshold[reaching]).all()
    radius = (multiple[:, None] * unit)[reaching][:, :, None, None]
    assert ((adv - images)[reaching].abs() <= radius * (1 + 1e-5) + 1e-6).all()
    assert torch.equal(adv[~reaching], images[~reaching])


def test_another_loss_may_reach_what_the_first_does_not() -> None:
    """A galaxy near the lower end of the bins becomes an outlier only when its redshift is raised."""
    g = torch.Generator().manual_seed(3)
    weight, images, unit = torch.randn(3, 8, 8, generator=g), torch.zeros(8, 3, 8, 8), torch.ones(3)

    def model(x: Tensor) -> Tensor:  # falls at first, to a floor, and rises far on the other side
        slope = (x * weight).sum((1, 2, 3))[:, None] / weight.abs().sum()
        return torch.where(slope < 0, 0.1 * slope, slope)

    def up(outputs: Tensor, _: Tensor) -> Tensor:
        return outputs[:, 0]

    def down(outputs: Tensor, _: Tensor) -> Tensor:
        return -outputs[:, 0]

    def reach(outputs: Tensor, _: Tensor) -> Tensor:
        return outputs[:, 0].abs() > 0.5

    given = (model, images, None, torch.zeros(8), unit)
    alone, _ = attacks.minimal_eps(*given, loss=down, reach=reach)
    assert torch.isinf(alone).all()
    both, adv = attacks.minimal_eps(*given, loss=down, reach=reach, others=(up,))
    # The other loss reaches it in the largest ball; smaller balls start from that image, projected.
    assert (both > 0.499).all() and (both < 0.515).all() and reach(model(adv), images).all()


def test_the_images_found_on_a_nonlinear_model_reach_the_condition() -> None:
    model, images, z = conv_problem(20)
    reach = attacks.outlier(BINS)
    multiple, adv = attacks.minimal_eps(
        model, images, None, z, torch.ones(3), loss=attacks.shift(BINS), reach=reach, steps=10
    )
    found = torch.isfinite(multiple)
    assert found.any() and reach(model(adv), z)[found].all()
    size = (adv - images).abs().amax((1, 2, 3))
    assert (size[found] <= multiple[found] * (1 + 1e-5) + 1e-6).all()
