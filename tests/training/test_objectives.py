"""Gradients are those of the formulas in the papers, in any number of passes and on any number of ranks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcphotoz.attacks.ball import replace_rows
from hpcphotoz.training.objectives import TrainingObjective
from hpcphotoz.training.overlap.streams import NoOverlap, SerialOverlap
from hpcphotoz.training.rank_batch import RankBatch, make_rank_batch
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.networks import ConvNetwork
from tests.helpers.training.runs import SAME, arguments, assert_same_curve, config
from tests.helpers.training.steps import BINS, SIZE, batch, configured, gradients, stepper


def same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    # Sums over 15 objects in another order: a few roundings of the largest term.
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))


def by_hand(kind: str, module: nn.Module, rank_batch: RankBatch, adv: Tensor, weight: float) -> Tensor:
    """The objective of the papers, on all objects at once."""
    label, x = BINS.index(rank_batch.z_spec), rank_batch.images
    mixed = x.index_copy(0, rank_batch.attacked, adv)
    if kind == "replace":
        return functional.cross_entropy(module(mixed, rank_batch.ebv), label, reduction="sum") / SIZE
    clean = functional.cross_entropy(module(x, rank_batch.ebv), label, reduction="sum")
    logits = module(adv, rank_batch.ebv[rank_batch.attacked])
    if kind == "append":  # positions 2, 4, 7, 9, 12 of 0 to 12
        return (clean + functional.cross_entropy(logits, label[rank_batch.attacked], reduction="sum")) / (
            SIZE + 5
        )
    p = torch.softmax(module(x[rank_batch.attacked], rank_batch.ebv[rank_batch.attacked]), 1)
    return (clean + weight * (p * (p.log() - torch.log_softmax(logits, 1))).sum()) / SIZE


@pytest.mark.parametrize("kind", ["replace", "append", "consistency"])
@pytest.mark.parametrize("source", [NoOverlap, SerialOverlap])
@pytest.mark.parametrize("micro_batch", [3, 100])
def test_gradients_are_those_of_the_formula(kind: str, source: type[NoOverlap], micro_batch: int) -> None:
    config, module = configured(kind, micro_batch=micro_batch, consistency_weight=2.5), ConvNetwork()
    take, generate = stepper(config, module, source)
    rank_batch = make_rank_batch(batch(), config, epoch=1, step=0)
    assert rank_batch.attacked.tolist() == [1, 3, 6, 8], "positions 2, 4, 7, 9"
    sums = take(rank_batch).losses.sums
    ours = gradients(module)
    module.zero_grad()
    adv = generate(rank_batch)
    by_hand(kind, module, rank_batch, adv, 2.5).backward()  # type: ignore[no-untyped-call]
    same(ours, gradients(module))
    label = BINS.index(rank_batch.z_spec)
    seen = functional.cross_entropy(
        module(adv, rank_batch.ebv[rank_batch.attacked]), label[rank_batch.attacked], reduction="sum"
    )
    assert sums[1:].tolist() == pytest.approx(
        [7 if kind == "replace" else 11, float(seen.detach()), 4], rel=1e-5
    )


def test_attacked_fractions_of_zero_and_one() -> None:
    for fraction, counts in ((0.0, [11, 0]), (1.0, [0, 11])):
        for source in (NoOverlap, SerialOverlap):
            take, _ = stepper(configured(fraction=fraction), ConvNetwork(), source)
            sums = take(make_rank_batch(batch(), configured(fraction=fraction), 0, 0)).losses.sums
            assert [sums[1], sums[3]] == counts and sums.isfinite().all()


@pytest.mark.parametrize("kind", ["replace", "append", "consistency"])
@pytest.mark.parametrize("source", [NoOverlap, SerialOverlap])
def test_a_rank_with_no_object_has_gradients_of_zero(kind: str, source: type[NoOverlap]) -> None:
    """Its collectives must take place: the others wait for them."""
    module = ConvNetwork()
    take, _ = stepper(configured(kind), module, source)
    taken = take(make_rank_batch(batch(0), configured(kind), 0, 0))
    assert taken.losses.sums.tolist() == [0, 0, 0, 0]
    assert len(gradients(module)) == len(list(module.parameters()))
    assert all(not g.any() for g in gradients(module))


def test_attacked_images_are_put_in_the_layout_of_the_batch() -> None:
    images = torch.zeros(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    for adv in (torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)):
        found = replace_rows(images, torch.tensor([1, 3]), adv)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert found.mean((1, 2, 3)).tolist() == [0, 1, 0, 1] and not images.any()
    objective, rank_batch = (
        TrainingObjective(configured(), BINS),
        make_rank_batch(batch(), configured(), 0, 0),
    )
    rank_batch = replace(rank_batch, images=rank_batch.images.contiguous(memory_format=torch.channels_last))
    (part,) = objective.together(rank_batch, rank_batch.images[rank_batch.attacked])
    assert part.images.is_contiguous(memory_format=torch.channels_last)
    assert part.attacked.nonzero()[:, 0].tolist() == rank_batch.attacked.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"objective": "append", "eps_warmup_steps": 5},
        {"objective": "consistency", "k_warmup_steps": 5},
        pytest.param({"objective": "free", "learning_rate": 1e-3}, marks=pytest.mark.slow),
        pytest.param({"objective": "consistency", "mode": "ranks", "attackers": 1}, marks=pytest.mark.slow),
        pytest.param({"objective": "append", "mode": "ranks", "attackers": 1}, marks=pytest.mark.slow),
        pytest.param({"label_width": 2.0, "mode": "streams"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_other_objectives_do_not_depend_on_ranks_either(
    how: dict[str, object], alone: Path, dataset: Path, tmp_path: Path
) -> None:
    off = {key: value for key, value in how.items() if key not in ("mode", "attackers")}
    train(config(**off, max_steps=10), dataset, tmp_path / "one")
    for status, _, error in ranks.run(2, arguments(dataset, tmp_path / "two", tmp_path, **how, max_steps=10)):
        assert status == 0, error
    assert_same_curve(tmp_path / "two", tmp_path / "one", SAME)
    apart = [
        abs(a - b) for (_, a), (_, b) in zip(ranks.curve(tmp_path / "one"), ranks.curve(alone), strict=False)
    ]
    assert max(apart) > 1e-3, "another objective"
