"""Logits and redshifts for the losses over redshift bins, and an oracle in float64 by other formulas."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcphotoz.kernels import redshift_loss_reference as reference

# Objects and bins against programs of 1024 logits: several objects a program, the last program not full; bins
# no power of two, exactly one, two, more than a program has; no objects.
SHAPES = [(9, 180), (11, 7), (5, 256), (300, 2), (2, 1500), (0, 180)]
KINDS = [*((kind, 0.0) for kind in reference.KINDS), ("cross_entropy", 2.5)]
UNIT = 2.0**-24  # the relative error of one rounding
FAR = 1e6  # from here on float64 cannot tell a Gaussian label from the nearest bin; its square is finite


@dataclass(frozen=True)
class Bins:
    """Uniform redshift bins as the kernels take them."""

    n: int
    z_min: float = 0.02

    @property
    def width(self) -> float:
        return 0.4 / self.n

    @property
    def z_max(self) -> float:
        return self.z_min + 0.4


def problem(
    shape: tuple[int, int], dtype: torch.dtype = torch.float32, spread: float = 3.0, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Bins]:
    """Logits, redshifts, weights of the gradients, and the bins; some redshifts on edges and outside."""
    n, bins = shape[0], Bins(shape[1])
    g = torch.Generator().manual_seed(sum(shape))
    logits = (spread * torch.randn(shape, generator=g)).to(dtype)
    z = bins.z_min + 0.4 * torch.rand(n, generator=g)
    edges = torch.tensor([bins.z_min, bins.z_max, bins.z_min + bins.width, -1.0, 2.0])[: max(n - 1, 0)]
    z[: len(edges)] = edges
    weight = torch.randn(n, generator=g)
    return logits.to(device), z.to(device), weight.to(device), bins


def oracle(
    logits: Tensor, z: Tensor, weight: Tensor | None, kind: tuple[str, float], bins: Bins
) -> tuple[Tensor, Tensor]:
    """Losses (N,), and their gradients times the weights (N, n), in float64 on the CPU."""
    x = logits.detach().cpu().double().requires_grad_()
    loss = _loss(x, z.cpu().double(), *kind, bins)
    (grad,) = torch.autograd.grad(loss, x, torch.ones_like(loss) if weight is None else weight.cpu().double())
    return loss.detach(), grad


def _loss(x: Tensor, z: Tensor, kind: str, label_width: float, bins: Bins) -> Tensor:
    number = torch.arange(bins.n, dtype=torch.float64)
    centre, p = bins.z_min + (number + 0.5) * bins.width, x.softmax(1)
    if kind == "cross_entropy":
        z = z.clamp(-FAR, FAR)
        if label_width:
            t = (-0.5 * ((centre - z[:, None]) / (label_width * bins.width)) ** 2).softmax(1)
        else:
            own = torch.searchsorted(bins.z_min + number * bins.width, z, right=True) - 1
            t = torch.eye(bins.n, dtype=torch.float64)[own.clamp(0, bins.n - 1)]
        entropy: Tensor = -(t * x.log_softmax(1)).sum(1)
        return entropy
    if kind == "mean":
        return p @ centre
    if kind == "shift":
        return (p @ centre - z).abs()
    # CRPS = E|X - z| - E|X - X'| / 2 (Gneiting & Raftery 2007, eq. 21), X uniform in each bin.
    z = z.clamp(bins.z_min, bins.z_max)[:, None]
    left, right = centre - bins.width / 2, centre + bins.width / 2
    within = ((z - left) ** 2 + (right - z) ** 2) / (2 * bins.width)
    to_z = torch.where((z > left) & (z < right), within, (centre - z).abs())
    apart = (centre[:, None] - centre).abs() + torch.eye(bins.n, dtype=torch.float64) * bins.width / 3
    return (p * to_z).sum(1) - 0.5 * ((p @ apart) * p).sum(1)


def tolerances(
    kind: str, label_width: float, loss: Tensor, bins: Bins, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Largest error of a loss (N,), and of its gradient beside the last place of its type (N, 1).

    A sum over the bins is rounded at most 16 times on the way of one term, where it is taken in pairs or in
    blocks; a running sum is not, but its errors average out: 3 units were seen. Numbers that are summed are
    at most 1 for the gradient of the cross-entropy, its value and the logit's distance from the largest for
    the cross-entropy itself, and the largest redshift for the others. Float32 holds centres of bins to half a
    unit of the redshift, which counts in label widths, times the distance from z in label widths (below 8).
    """
    gauss = 8 * UNIT * bins.z_max / (label_width * bins.width) if label_width else 0.0
    largest = gauss + 16 * UNIT * (1.0 if kind == "cross_entropy" else bins.z_max)
    of_loss = (
        (gauss + 16 * UNIT) * (1 + loss.abs()) if kind == "cross_entropy" else torch.full_like(loss, largest)
    )
    of_grad = torch.full_like(loss, 2 * largest) * (1 if weight is None else weight.cpu().abs())
    return of_loss, of_grad[:, None]


def last_place(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """One unit in the last place of bfloat16 or float16 numbers; 0 for float32, which `tolerances` has."""
    if dtype == torch.float32:
        return torch.zeros_like(grad)
    info = torch.finfo(dtype)
    return info.eps * grad.abs() + info.smallest_normal * info.eps


def assert_close(
    found: tuple[Tensor, Tensor],
    wanted: tuple[Tensor, Tensor],
    kind: tuple[str, float],
    bins: Bins,
    weight: Tensor | None = None,
    units: float = 1.0,
) -> None:
    """Asserts that loss and gradient are within the `tolerances`, times `units`, of the oracle's."""
    loss, grad = (t.cpu() for t in found)
    of_loss, of_grad = tolerances(*kind, wanted[0], bins, weight)
    assert loss.dtype == torch.float32 and loss.shape == wanted[0].shape and grad.shape == wanted[1].shape
    assert ((loss.double() - wanted[0]).abs() <= units * of_loss).all(), "loss"
    assert ((grad.double() - wanted[1]).abs() <= units * of_grad + last_place(wanted[1], grad.dtype)).all(), (
        "gradient"
    )
