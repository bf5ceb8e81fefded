"""Losses over the logits of redshift bins, and their gradients, in one pass over the logits.

Definition: `redshift_loss_reference`. The kernel reads each logit once and writes its gradient; eager torch
passes over (N, n) once or more for each operation of the definition. The operators run the kernel on CUDA
tensors and the reference elsewhere; the kernel itself runs on CPU tensors under TRITON_INTERPRET=1.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from hpcphotoz.kernels import checks
from hpcphotoz.kernels import redshift_loss_reference as reference
from hpcphotoz.kernels.checks import GRADIENTS

BLOCK = 1024  # logits a program: some objects, all bins of each
_CROSS_ENTROPY, _MEAN, _SHIFT, _CRPS = (tl.constexpr(k) for k in range(len(reference.KINDS)))
_FAR = tl.constexpr(reference.FAR)


@triton.jit
def _square(a, b):  # type: ignore[no-untyped-def]
    return (a * a + a * b + b * b) / 3.0


@triton.jit  # type: ignore[untyped-decorator]
def _loss_kernel(  # type: ignore[no-untyped-def]
    loss,
    grad,
    logits,
    z,
    weight,
    objects,
    weight_stride,
    KIND: tl.constexpr,
    BINS: tl.constexpr,
    Z_MIN: tl.constexpr,
    WIDTH: tl.constexpr,
    LABEL_WIDTH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    GRADIENT: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # N n may pass 2^31
    row = n < objects
    k = tl.arange(0, PADDED)[None, :]
    bin_ = k < BINS
    inside = row[:, None] & bin_
    at = n[:, None] * BINS + k
    logit = tl.load(logits + at, inside, 0.0).to(tl.float32)
    if KIND != _MEAN:
        redshift = tl.load(z + n, row, 0.0)
        logit = tl.where((redshift == redshift)[:, None], logit, float("nan"))  # the object is NaN if z is
    shifted = tl.where(bin_, logit, -float("inf"))
    shifted = shifted - tl.max(shifted, 1)[:, None]  # a NaN or an infinite logit: all p are NaN
    p = tl.exp(shifted)
    total = tl.sum(p, 1)
    p = p / total[:, None]

    # Bins are found in float64, as the definition does: in float32 an edge would lie elsewhere.
    first, step = tl.full((), Z_MIN, tl.float64), tl.full((), WIDTH, tl.float64)
    centre = (first + (k.to(tl.float64) + 0.5) * step).to(tl.float32)
    wide = tl.full((), WIDTH, tl.float32)
    if KIND != _MEAN:
        place = (redshift.to(tl.float64) - first) / step
        place = tl.where(place == place, place, 0.0)  # some bin: the logits are NaN
        own = tl.minimum(tl.maximum(tl.floor(place), 0.0), BINS - 1.0)
        t = tl.minimum(tl.maximum(place - own, 0.0), 1.0).to(tl.float32)[:, None]
        own = own.to(tl.int32)[:, None]
        redshift = redshift.to(tl.float32)

    # The loss, and d: its derivative by p, up to a number that is the same for all bins of an object.
    if KIND == _CROSS_ENTROPY:
        if LABEL_WIDTH > 0:
            far: tl.constexpr = _FAR * WIDTH * (1.0 + LABEL_WIDTH * LABEL_WIDTH)
            nearest, furthest = Z_MIN - far, Z_MIN + BINS * WIDTH + far
            redshift = tl.minimum(tl.maximum(redshift, nearest), furthest)
            distance = (centre - redshift[:, None]) / tl.full((), LABEL_WIDTH * WIDTH, tl.float32)
            wanted = tl.where(bin_, -0.5 * distance * distance, -float("inf"))
            wanted = tl.exp(wanted - tl.max(wanted, 1)[:, None])
            wanted = wanted / tl.sum(wanted, 1)[:, None]
        else:
            wanted = tl.where(k == own, 1.0, 0.0)
        apart = tl.where(wanted > 0, tl.log(total)[:, None] - shifted, 0.0)  # in the padding: infinite
        value = tl.sum(wanted * apart, 1)
    elif KIND == _CRPS:
        right = tl.cumsum(p, 1)
        left = right - p
        middle = left + t * p
        whole = tl.where(k < own, _square(left, right), _square(1 - left, 1 - right))
        split = t * _square(left, middle) + (1 - t) * _square(1 - middle, 1 - right)
        whole = tl.where(k == own, split, whole)
        value = wide * tl.sum(tl.where(bin_, whole, 0.0), 1)
        if GRADIENT:
            after = tl.where(k > own, 1.0, 0.0)
            by_middle = (t * (left + 2 * middle) - (1 - t) * (2 * (1 - middle) + (1 - right))) / 3.0
            by_left = t * (2 * left + middle) / 3.0 + (1 - t) * by_middle
            by_right = t * by_middle - (1 - t) * ((1 - middle) + 2 * (1 - right)) / 3.0
            by_left = tl.where(k == own, by_left, (2 * left + right) / 3.0 - after)
            by_right = tl.where(k == own, by_right, (left + 2 * right) / 3.0 - after)
            d = wide * (by_right - tl.cumsum(by_left + by_right, 1))
    else:
        value = tl.sum(p * centre, 1)
        d = centre + tl.zeros_like(p)
        if KIND == _SHIFT:
            distance = value - redshift
            d *= tl.where(distance > 0, 1.0, tl.where(distance < 0, -1.0, distance))[:, None]
            value = tl.abs(distance)
    tl.store(loss + n, value, row)

    if GRADIENT:
        if KIND == _CROSS_ENTROPY:
            g = p - wanted
        else:
            g = p * (d - tl.sum(p * d, 1)[:, None])
        if WEIGHTED:
            g *= tl.load(weight + n * weight_stride, row, 0.0)[:, None]
        tl.store(grad + at, g, inside)


def launch(
    logits: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    kind: str,
    z_min: float,
    width: float,
    label_width: float = 0.0,
    gradient: bool = True,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """Run the kernel itself, on any device; as `reference.redshift_loss_and_gradient`.

    Without `gradient` the second tensor returned is the logits.
    """
    n, bins = logits.shape
    loss = torch.empty(n, dtype=torch.float32, device=logits.device)
    grad = torch.empty_like(logits) if gradient else logits
    if n == 0:
        return loss, grad
    padded = triton.next_power_of_2(bins)
    rows = max(1, block // padded)
    with checks.on_device(logits):
        wrap_triton(_loss_kernel)[(triton.cdiv(n, rows),)](
            loss,
            grad,
            logits,
            logits if z is None else z,
            logits if weight is None else weight,
            n,
            0 if weight is None else weight.stride(0),
            KIND=reference.KINDS.index(kind),
            BINS=int(bins),
            Z_MIN=float(z_min),
            WIDTH=float(width),
            LABEL_WIDTH=float(label_width),
            WEIGHTED=weight is not None,
            GRADIENT=gradient,
            PADDED=padded,
            ROWS=rows,
        )
    return loss, grad


@triton_op("hpcphotoz::redshift_loss_and_gradient", mutates_args={})
def redshift_loss_and_gradient(
    logits: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    kind: str,
    z_min: float,
    width: float,
    label_width: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The torch operator: the kernel on CUDA, the reference elsewhere; ValueError as `redshift_loss`."""
    _check(logits, z, weight, kind, width, label_width)
    if logits.is_cuda:
        return launch(logits, z, weight, kind, z_min, width, label_width)
    return reference.redshift_loss_and_gradient(logits, z, weight, kind, z_min, width, label_width)


@triton_op("hpcphotoz::redshift_loss", mutates_args={})
def redshift_loss(
    logits: Tensor, z: Tensor | None, kind: str, z_min: float, width: float, label_width: float = 0.0
) -> Tensor:
    """`reference.redshift_loss` as a torch operator: the kernel on CUDA, the reference elsewhere.

    Autograd differentiates it once, with respect to the logits; a second derivative is refused.

    Raises:
        ValueError: shapes, types or devices that do not belong together, logits that are not contiguous, an
            unknown kind, or one that needs redshifts without them, a negative label_width.
    """
    _check(logits, z, None, kind, width, label_width)
    if logits.is_cuda:
        return launch(logits, z, None, kind, z_min, width, label_width, gradient=False)[0]
    return reference.redshift_loss(logits, z, kind, z_min, width, label_width).float()


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, z, *ctx.options = inputs
    ctx.save_for_backward(logits, z)


def _backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
    logits, z = ctx.saved_tensors
    return redshift_loss_and_gradient(logits, z, weight, *ctx.options)[1], None, None, None, None, None


redshift_loss.register_autograd(_backward, setup_context=_save)


def _check(
    logits: Tensor, z: Tensor | None, weight: Tensor | None, kind: str, width: float, label_width: float
) -> None:
    reference.check_label_width(label_width)
    if kind not in reference.KINDS or not width > 0:
        raise ValueError(f"kind {kind!r}, width {width}: want one of {reference.KINDS}, and a positive width")
    if logits.ndim != 2 or logits.dtype not in GRADIENTS or not logits.is_contiguous():
        wanted = " or ".join(str(dtype) for dtype in GRADIENTS)
        raise ValueError(
            f"logits {tuple(logits.shape)} {logits.dtype} of strides {logits.stride()}: "
            f"want contiguous (N, bins) {wanted}"
        )
    if z is None and kind != "mean":
        raise ValueError(f"no z: the kind {kind!r} needs redshifts (N,)")
    if z is not None:
        checks.check_vector("z", z, logits, torch.float64 if z.dtype == torch.float64 else torch.float32)
    if weight is not None:
        checks.check_vector("weight", weight, logits, torch.float32, strided=True)
