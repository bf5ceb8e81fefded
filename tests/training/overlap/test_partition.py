"""Who attacks for whom: every attacked position travels once, at any split, in milliseconds."""

import numpy as np
import pytest
import torch

from hpcphotoz.data.order import attacked_mask
from hpcphotoz.errors import BadInput
from hpcphotoz.training.overlap.messages import ImageMessages, WeightMessages, header
from hpcphotoz.training.overlap.partition import RankSplit, attackers_for_costs


@pytest.mark.parametrize("size", [0, 1, 7, 64, 1000])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(("ranks", "attackers"), [(2, 1), (4, 1), (4, 3), (7, 3), (96, 41)])
def test_every_attacked_position_travels_once(ranks: int, attackers: int, fraction: float, size: int) -> None:
    split = RankSplit(ranks, attackers)
    assert len(split.attacker_ranks) == attackers and not split.is_attacker(0)
    assert sorted(split.attacker_ranks + split.learner_ranks) == list(range(ranks))
    sent, received = (
        {
            (share.rank, rank) if split.is_attacker(rank) else (rank, share.rank): split.attacked_positions(
                rank, size, fraction
            )[share.start : share.stop].tolist()
            for rank in kind
            for share in split.message_slices(rank, size, fraction)
        }
        for kind in (split.attacker_ranks, split.learner_ranks)
    )
    assert sent == received, "both ends mean the same images, in the same order"
    pairs = {pair for rank in range(ranks) for pair in split.pairs(rank)}
    assert {(attacker, learner) for learner, attacker in sent} <= pairs, "greeted before"
    wanted = np.flatnonzero(attacked_mask(np.arange(size), fraction)).tolist()
    assert sorted(position for share in sent.values() for position in share) == wanted
    counts = [len(split.attacked_positions(rank, size, fraction)) for rank in split.attacker_ranks]
    assert max(counts) - min(counts) <= 2, "attackers have equal work"


@pytest.mark.parametrize(
    ("ranks", "attack", "train", "want"),
    # 2 K f / 3 : 1 for K = 3 and f = 0.5 is 1 : 1; for K = 10, 10 : 3.
    [(2, 1, 1, 1), (8, 1, 1, 4), (13, 10, 3, 10), (8, 1e-9, 1, 1), (8, 1e9, 1, 7)],
)
def test_the_split_nearest_the_costs(ranks: int, attack: float, train: float, want: int) -> None:
    assert attackers_for_costs(ranks, attack, train) == want


def test_splits_without_an_attacker_or_a_learner() -> None:
    for size, attackers in ((2, 0), (2, 2), (1, 1)):
        with pytest.raises(BadInput, match="at least one must attack and one learn"):
            RankSplit(size, attackers)
    with pytest.raises(BadInput, match="on 1 rank"):
        attackers_for_costs(1, 1, 1)


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_images_travel_within_their_ball(kind: str) -> None:
    g = torch.Generator().manual_seed(1)
    clean = 1000 * torch.randn(4, 3, 5, 7, generator=g)
    eps = torch.rand(4, 3, 1, 1, generator=g)
    eps[2, 1] = 0  # a band that must not move
    adv = clean + eps * torch.rand(clean.shape, generator=g).mul(4).sub(2).clamp(-1, 1)  # half of it at +-eps
    codec, rows = ImageMessages(kind, (3, 5, 7), torch.device("cpu")), torch.tensor([5, 0, 3, 2])
    message = codec.empty(6)
    header(message)[:2] = torch.tensor([77, 1])
    codec.write(message, rows, adv, clean)
    assert header(message)[:2].tolist() == [77, 1]
    found = codec.read(message, rows, clean)
    # Of the change: bfloat16 keeps 8 bits, cut off; int8 half of 1/127 of the greatest. Of x0 + change: one
    # rounding, 2^-24 of a pixel of at most 4000.
    error = {"fp32": 0.0, "bf16": 2**-7, "int8": 0.5 / 127}[kind] * eps + 4000 * 2**-24 * (kind != "fp32")
    assert ((found - adv).abs() <= error).all()
    assert ((found - clean).abs() <= eps * (1 + 1e-6) + 4000 * 2**-24).all()
    assert codec.read(message, torch.tensor([1, 4]), clean[:2]).isnan().all(), (
        "what was not written is not an image"
    )
    assert {"fp32": 4, "bf16": 2, "int8": 1}[kind] * clean[0].numel() * 6 <= message.numel()


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_weights_arrive_where_they_belong_in_any_memory_order(kind: str) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last) for _ in range(2)]  # type: ignore[call-overload]
    ours, theirs = (WeightMessages(list(layer.parameters()), kind) for layer in layers)
    message = ours.empty()
    ours.write(message)
    header(message)[0] = 5
    theirs.read(message)
    for a, b in zip(*(layer.parameters() for layer in layers), strict=True):
        assert torch.equal(b, a if kind == "fp32" else a.bfloat16().float())
    assert layers[1].weight.is_contiguous(memory_format=torch.channels_last)
