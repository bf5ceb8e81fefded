"""A network of the library with uneven parameters, and the comparison of two forms of it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hpcphotoz.config import Model
from hpcphotoz.models.build import build

SCALE = (0.05, 0.02, 0.03, 0.04, 0.2)


def network(name: str, stamp: int = 16, *, counts_padding: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = Model(name=name, bins=20, width=12, pool_counts_padding=counts_padding)
    built = build(model, stamp=stamp, scale=SCALE)
    for parameter in built.parameters():  # with equal slopes and biases, a wrong order would not show
        parameter.data += 0.05 * torch.randn_like(parameter) if parameter.dim() == 1 else 0
    return built


def given(stamp: int = 16, n: int = 2) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, stamp, stamp, generator=draw), torch.rand(n, generator=draw)


def results(module: nn.Module, images: Tensor, ebv: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Logits and the gradients of images, E(B-V) and all parameters."""
    images, ebv = images.clone().requires_grad_(), ebv.clone().requires_grad_()
    logits = module(images, ebv)
    names, parameters = zip(*module.named_parameters(), strict=True)
    loss = logits.float().logsumexp(1).sum() - logits[:, 3].float().sum()
    grads = torch.autograd.grad(loss, [images, ebv, *parameters])
    yield "logits", logits.detach()
    yield from zip(("images", "ebv", *names), grads, strict=True)


def assert_same(a: nn.Module, b: nn.Module, images: Tensor, ebv: Tensor, within: float) -> None:
    for (name, x), (_, y) in zip(results(a, images, ebv), results(b, images, ebv), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype and bool(x.isfinite().all()), name
        assert (x - y).abs().max() <= within * y.abs().max(), name
