"""The attack of a step grows over its warm-ups."""

import pytest

from hpcphotoz.training.adversaries import attack_at
from hpcphotoz.training.rank_batch import make_rank_batch
from tests.helpers.networks import ConvNetwork
from tests.helpers.training.steps import batch, configured, stepper


def test_eps_and_steps_grow_over_their_warm_ups() -> None:
    config = configured(eps_warmup_steps=4, k_warmup_steps=6)
    given = [attack_at(step, config.attack, config.adversarial) for step in range(8)]
    assert [round(a.eps, 6) for a in given] == [0.04, 0.08, 0.12, 0.16, 0.2, 0.2, 0.2, 0.2]
    assert [a.steps for a in given] == [1, 1, 1, 2, 2, 2, 3, 3]
    assert attack_at(0, config.attack, configured().adversarial) is config.attack


def test_a_warm_up_reaches_the_images() -> None:
    config, module = configured(eps_warmup_steps=9), ConvNetwork()
    _, generate = stepper(config, module)
    moved = []
    for step in (0, 4, 20):
        rank_batch = make_rank_batch(batch(), config, 0, step)
        change = (generate(rank_batch) - rank_batch.images[rank_batch.attacked]) / rank_batch.sky_sigma[
            rank_batch.attacked
        ][:, :, None, None]
        moved.append(float(change.abs().max()))
    # Images of order 1 change by 0.02: one rounding is 1e-7 / 0.02 of that.
    assert moved == pytest.approx([0.02, 0.1, 0.2], rel=2e-5)
