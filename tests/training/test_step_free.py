"""Free adversarial training takes K updates per batch."""

import pytest
import torch
from torch.nn import functional

from hpcphotoz.attacks import Ball, RandomStart, cross_entropy, pgd
from hpcphotoz.training.adversaries import start_seed
from hpcphotoz.training.compute import compute_options
from hpcphotoz.training.rank_batch import make_rank_batch
from hpcphotoz.training.step_free import FreeStep
from tests.helpers.networks import ConvNetwork
from tests.helpers.training.steps import BINS, CPU, SIZE, batch, configured


def test_free_training_takes_k_updates_and_moves_images_by_the_gradients_of_training() -> None:
    config, module, reference = configured("free"), ConvNetwork(), ConvNetwork()
    compute = compute_options(config.compute, CPU)
    free = FreeStep(module, torch.optim.SGD(module.parameters(), lr=0.1), config, BINS, compute)
    rank_batch = make_rank_batch(batch(), config, 2, 0)
    loss_sums = free(rank_batch).losses.sums
    optimiser, rows, label = (
        torch.optim.SGD(reference.parameters(), lr=0.1),
        rank_batch.attacked,
        BINS.index(rank_batch.z_spec),
    )
    eps = 0.2 * rank_batch.sky_sigma[rows][:, :, None, None]
    # The start of pgd alone: its step has size 0.
    start = RandomStart(rank_batch.object_id[rows], start_seed(config), 2)
    radius = 0.2 * rank_batch.sky_sigma[rows]
    adv = pgd(
        reference, rank_batch.images[rows], rank_batch.ebv[rows], rank_batch.z_spec[rows], Ball(radius),
        loss=cross_entropy(BINS), steps=1, step_size=0 * radius, start=start,
    )  # fmt: skip
    for _ in range(3):
        adv = adv.detach().requires_grad_()
        logits = reference(rank_batch.images.index_copy(0, rows, adv), rank_batch.ebv)
        each = functional.cross_entropy(logits, label, reduction="none")
        optimiser.zero_grad()
        (each.sum() / SIZE).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        assert adv.grad is not None
        moved = adv.detach() + 2.5 / 3 * eps * adv.grad.sign()
        adv = rank_batch.images[rows] + (moved - rank_batch.images[rows]).clamp(-eps, eps)
    for a, b in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert loss_sums[3] == 4 and loss_sums[1] == 7
    assert float(loss_sums[2]) == pytest.approx(float(each[rows].sum().detach()), rel=1e-4)
