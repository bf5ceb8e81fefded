"""Messages between learners and attackers: images stay in their ball, weights in their memory order."""

import pytest
import torch

from hpcphotoz.training.overlap.messages import ImageMessages, WeightMessages, header


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
    # Errors of the change: bfloat16 truncates to 8 bits; int8 has 1/254 of the largest. Of x0 + change: one
    # rounding, 2^-24 of a pixel of at most 4000.
    error = {"fp32": 0.0, "bf16": 2**-7, "int8": 0.5 / 127}[kind] * eps + 4000 * 2**-24 * (kind != "fp32")
    assert ((found - adv).abs() <= error).all()
    assert ((found - clean).abs() <= eps * (1 + 1e-6) + 4000 * 2**-24).all()
    assert codec.read(message, torch.tensor([1, 4]), clean[:2]).isnan().all(), (
        "the rest of the message is no image"
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
