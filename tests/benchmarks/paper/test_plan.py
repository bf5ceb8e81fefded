"""The plan: every training can be started, and the surface varies one axis at a time."""

from dataclasses import replace

import pytest
import torch

from benchmarks.paper.networks import narrow_inception
from benchmarks.paper.plan import ADVERSARIAL, FULL, QUICK, RELU, STANDARD, Adversaries, Plan
from hpcphotoz.config import Model
from hpcphotoz.models.build import build


@pytest.mark.parametrize("plan", [FULL, QUICK], ids=["full", "quick"])
def test_every_training_can_be_started(plan: Plan) -> None:
    names = [one.name for one in plan.trainings]
    assert len(set(names)) == len(names)
    for one in plan.trainings:
        config = one.config(plan.seeds[-1])
        assert config.run.seed == plan.seeds[-1] and one.data in plan.sets
        assert (config.adversarial.fraction > 0) == (one.adversaries is not None)
        assert config.model.relu_logits == (one.name == RELU)
    first, second = plan.trainings[:2]
    assert (first.name, second.name) == (STANDARD, ADVERSARIAL)
    changed = {key for key, value in second.settings(0).items() if first.settings(0).get(key) != value}
    assert changed == {"fraction", "method", "eps", "steps"}, "nothing else tells the two apart"


def test_the_full_plan_holds_what_the_claims_want() -> None:
    held = FULL.sets["train"].objects * FULL.validation
    assert FULL.sets["train"].objects - held >= 30_000 and FULL.sets["test"].objects >= 10_000
    assert len(FULL.seeds) >= 3 and FULL.headline in FULL.eps
    assert len({one.seed for one in FULL.sets.values()}) == len(FULL.sets), "no galaxy is in two sets"


def test_one_axis_at_a_time_or_the_grid() -> None:
    centre = FULL.centre
    for point in FULL.points:
        differs = [a != b for a, b in zip(vars(point).values(), vars(centre).values(), strict=True)]
        assert sum(differs) <= 1
    assert FULL.points[0] == centre and len(FULL.points) == 1 + sum(len(axis) - 1 for axis in FULL.axes)
    grid = replace(FULL, grid=True).points
    sizes = [len(axis) for axis in FULL.axes]
    assert len(grid) == sizes[0] * sizes[1] * sizes[2] and set(FULL.points) <= set(grid)


def test_one_step_is_fgsm() -> None:
    assert Adversaries(0.5, 0.1, 1).options["method"] == "fgsm"
    assert Adversaries(0.5, 0.1, 2).options["method"] == "pgd"


def test_the_narrow_inception_is_the_inception_with_fewer_channels() -> None:
    """With a divisor of 1 it has the parameters of the Inception, and computes the same."""
    scale = (1.0, 1.0, 1.0, 1.0, 1.0)
    theirs = build(Model(name="inception", crop=24, binning=2), stamp=32, scale=scale).eval()
    ours = narrow_inception(5, 32, 180, scale, divisor=1, crop=24, binning=2).eval()
    weights = {
        name if not name.startswith("inception.") else f"i{name.removeprefix('inception.')}": value
        for name, value in ours.state_dict().items()
    }
    theirs.load_state_dict(weights)
    images, ebv = torch.randn(2, 5, 32, 32), torch.rand(2)
    with torch.no_grad():
        torch.testing.assert_close(ours(images, ebv), theirs(images, ebv))
    narrow = narrow_inception(5, 32, 180, scale, divisor=4, crop=24, binning=2)
    counts = [sum(p.numel() for p in one.parameters()) for one in (narrow, ours)]
    assert counts[0] < counts[1] / 12 and narrow(images, ebv).shape == (2, 180)
