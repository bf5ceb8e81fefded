"""Spikes of the loss are found, once each, and the noise of training is not taken for one."""

import random

import pytest

from hpcphotoz.training.optimisation.loss_spikes import FEWEST, LossSpikes


def noisy(n: int, level: float = 1.0, noise: float = 0.1) -> list[float]:
    g = random.Random(3)
    return [level + noise * g.gauss(0, 1) for _ in range(n)]


def test_training_has_no_spikes() -> None:
    """A falling loss with the noise of small batches, and a steady one without noise."""
    spikes = LossSpikes()
    falling = [3 / (1 + step / 100) + noise for step, noise in enumerate(noisy(2000, 0.0))]
    assert not any(spikes.limit_passed(loss) for loss in falling)
    spikes = LossSpikes()
    assert not any(spikes.limit_passed(loss) for loss in [0.5] * 50 + [0.9])


def test_a_spike_is_reported_with_median_and_limit_and_only_once() -> None:
    spikes = LossSpikes()
    for loss in noisy(200):
        assert spikes.limit_passed(loss) is None
    found = spikes.limit_passed(5.0)
    assert found is not None
    middle, limit = found
    assert middle == pytest.approx(1.0, abs=0.05) and limit == 2 * middle, "6 sigma are 0.6 or so"
    assert spikes.limit_passed(6.0) is None, "of the same spike"
    assert spikes.limit_passed(1.0) is None and spikes.limit_passed(5.0) is not None


def test_a_wide_scatter_raises_the_limit() -> None:
    for loss, found in ((3.9, False), (4.1, True)):  # 1.3 + 6 x 1.4826 x 0.3 = 3.97, above 2 x 1.3
        spikes = LossSpikes()
        for usual in [1.0, 1.6] * 50:
            spikes.limit_passed(usual)
        assert (spikes.limit_passed(loss) is not None) == found


def test_nothing_is_compared_with_few_steps() -> None:
    spikes = LossSpikes()
    for loss in [1.0] * (FEWEST - 1):
        spikes.limit_passed(loss)
    assert spikes.limit_passed(50.0) is None
    assert spikes.limit_passed(1.0) is None and spikes.limit_passed(50.0) is not None
