"""Losses over the logits of redshift bins in plain torch: the definition of `redshift_loss`, the CPU path.

Shared arguments:

    logits          (N, n) float32, bfloat16 or float16, of n uniform bins; p = softmax(logits) is the PDF
    z               (N,) float32 or float64: redshifts; None for the kind "mean"
    kind            which loss, one of `KINDS`
    z_min, width    where the bins begin, and the width of one
    label_width     of "cross_entropy": 0 for the bin that holds z, or the standard deviation, in bins, of a
                    Gaussian over the bins

A redshift outside the bins, also an infinite one, counts to the nearest bin; one that is NaN makes the loss
and the gradient of its object NaN.
"""

import torch
from torch import Tensor
from torch.nn import functional

KINDS = ("cross_entropy", "mean", "shift", "crps")
# Times width (1 + label_width^2): the distance from the bins at which a Gaussian label is one bin in float32,
# as all others get less than exp(-128). Redshifts further away count as there: their squares may overflow.
FAR = 128.0


def redshift_loss(
    logits: Tensor, z: Tensor | None, kind: str, z_min: float, width: float, label_width: float = 0.0
) -> Tensor:
    """The loss of each object, (N,) float32, differentiable by autograd.

    cross_entropy
        -sum(t log p), t the label (`label`)
    mean
        <z> = sum(p c), c the centres of the bins
    shift
        |<z> - z|
    crps
        integral (CDF(z') - H(z' - z))^2 dz', the probability of a bin spread evenly over it
        (Gneiting & Raftery 2007, doi:10.1198/016214506000001437)

    Raises:
        ValueError: a negative label_width.
    """
    check_label_width(label_width)
    if kind == "mean":
        return mean(logits, z_min, width)
    assert z is not None
    if kind == "cross_entropy":
        t = label(z, logits.shape[1], z_min, width, label_width)
        loss = functional.cross_entropy(logits.float(), t, reduction="none")
    elif kind == "shift":
        loss = (mean(logits, z_min, width) - z).abs()
    else:
        loss = _crps(logits, z, z_min, width)
    return loss * _one_or_nan(z)


def redshift_loss_and_gradient(
    logits: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    kind: str,
    z_min: float,
    width: float,
    label_width: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The loss of each object, and its gradient with respect to the logits times a weight.

    The gradient is p (d - sum(p d)), with d the derivative of the loss by p; for the cross-entropy, p - t.

    Args:
        logits, z, kind, z_min, width, label_width: see above.
        weight: (N,) float32; None: one.

    Returns:
        (N,) float32, and (N, n) of the logits' type.

    Raises:
        ValueError: a negative label_width.
    """
    loss = redshift_loss(logits, z, kind, z_min, width, label_width).float()
    p, n = torch.softmax(logits.float(), dim=1), logits.shape[1]
    if kind == "cross_entropy":
        assert z is not None
        t = label(z, n, z_min, width, label_width)
        grad = p - (t if label_width else functional.one_hot(t, n))
    else:
        d = _derivative(p, z, kind, z_min, width)
        grad = p * (d - (p * d).sum(dim=1, keepdim=True))
    if z is not None:
        grad = grad * _one_or_nan(z)[:, None]
    return loss, (grad if weight is None else grad * weight[:, None]).to(logits.dtype)


def check_label_width(label_width: float) -> None:
    """Raise ValueError if a width of labels is negative or NaN."""
    if not label_width >= 0:
        raise ValueError(f"label_width {label_width}: want 0 or a positive number of bins")


def centres(n: int, z_min: float, width: float, device: torch.device | str) -> Tensor:
    """Bin centres, (n,) float32."""
    # Created on the device: a copy from the host would synchronise in every step of an attack.
    numbers = torch.arange(n, dtype=torch.float64, device=device)
    return (z_min + (numbers + 0.5) * width).float()


def bin_index(z: Tensor, n: int, z_min: float, width: float) -> Tensor:
    """Number of the bin that holds each redshift, int64; outside the nearest one, the first for NaN."""
    # Clamped before the conversion: that of a number beyond 2^63 is not defined.
    return ((z.double() - z_min) / width).floor().clamp(0, n - 1).nan_to_num(0.0).long()


def label(z: Tensor, n: int, z_min: float, width: float, label_width: float) -> Tensor:
    """Labels of the cross-entropy: bin numbers (N,), or with `label_width` Gaussians over bins (N, n)."""
    if not label_width:
        return bin_index(z, n, z_min, width)
    far = FAR * width * (1 + label_width * label_width)
    z = z.clamp(z_min - far, z_min + n * width + far)
    distance = (centres(n, z_min, width, z.device) - z[:, None]) / (label_width * width)
    return torch.softmax(-0.5 * distance**2, dim=1)


def mean(logits: Tensor, z_min: float, width: float) -> Tensor:
    """<z>, (N,) float32."""
    return integral(torch.softmax(logits.float(), dim=1), z_min, width)


def integral(pdf: Tensor, z_min: float, width: float) -> Tensor:
    """Sum of z times probability (N, n) over the bins, (N,) float32."""
    # No matrix product: under autocast its result is bfloat16, in steps of 0.001 to 0.002 for z of 0.13 to
    # 0.4.
    return (pdf.float() * centres(pdf.shape[1], z_min, width, pdf.device)).sum(dim=1)


def _crps(logits: Tensor, z: Tensor, z_min: float, width: float) -> Tensor:
    pdf, n = torch.softmax(logits.float(), dim=1), logits.shape[1]
    own = bin_index(z, n, z_min, width)[:, None]
    right = pdf.cumsum(dim=1)
    left, bin_ = right - pdf, torch.arange(n, device=z.device)
    t = ((z[:, None] - z_min) / width - own).clamp(0, 1)  # where in its bin the redshift lies
    at = left.gather(1, own) + t * pdf.gather(1, own)
    whole = torch.where(bin_ < own, _square(left, right), _square(1 - left, 1 - right))
    split = t * _square(left.gather(1, own), at) + (1 - t) * _square(1 - at, 1 - right.gather(1, own))
    total: Tensor = whole.scatter(1, own, 0.0).sum(dim=1) + split[:, 0]
    return width * total


def _one_or_nan(z: Tensor) -> Tensor:
    return torch.where(z.isnan(), torch.nan, 1.0)  # (N,) float32


def _square(a: Tensor, b: Tensor) -> Tensor:
    # Mean of the square of a linear function from a to b.
    return (a * a + a * b + b * b) / 3


def _derivative(p: Tensor, z: Tensor | None, kind: str, z_min: float, width: float) -> Tensor:
    # Of the loss by each probability, up to a number that is the same for all bins of an object.
    n = p.shape[1]
    centre = centres(n, z_min, width, p.device)
    if kind == "mean":
        return centre.expand_as(p)
    assert z is not None
    if kind == "shift":
        return centre * (integral(p, z_min, width) - z).sign()[:, None]
    # CRPS is a sum over bins of squares of the CDF at their edges, left and right; both edges are sums of p.
    own, bin_ = bin_index(z, n, z_min, width)[:, None], torch.arange(n, device=z.device)
    right = p.cumsum(dim=1)
    left, t = right - p, ((z[:, None] - z_min) / width - own).clamp(0, 1)
    at = left + t * p
    by_at = (t * (left + 2 * at) - (1 - t) * (2 * (1 - at) + (1 - right))) / 3
    after = bin_ > own
    by_left = (2 * left + right) / 3 - after.float()
    by_right = (left + 2 * right) / 3 - after.float()
    by_left = torch.where(bin_ == own, t * (2 * left + at) / 3 + (1 - t) * by_at, by_left)
    by_right = torch.where(bin_ == own, t * by_at - (1 - t) * ((1 - at) + 2 * (1 - right)) / 3, by_right)
    return width * (by_right - (by_left + by_right).cumsum(dim=1))
