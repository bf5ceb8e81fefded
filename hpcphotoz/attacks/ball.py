"""Balls of allowed perturbations, random starts, and the batch under attack."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hpcphotoz.kernels.backend import Kernels, kernels_on

BALLS = ("linf", "l2", "flux")


@dataclass(frozen=True)
class Ball:
    """The set of allowed perturbations.

    Attributes:
        eps: (B,) or (N, B) float32, nMgy. "linf": largest change of a pixel. "flux": the same, and the
            change adds up to 0 over the pixels of an object and band, so that photometry does not notice.
            "l2": semi-axes of the ellipsoid |delta / eps|_2 <= 1 over all pixels and bands of an object.
        kind: "linf", "l2" or "flux"; definitions in `kernels.attack.reference`.
        lo, hi: (B,) or (N, B) float32, nMgy, lowest and highest flux of a pixel; no limits by default. They
            win over the ball where an image lies outside them ("flux": such a pixel moves no further out).
        mask: (N, B, H, W) bool, or broadcastable to it: which pixels may change; all by default.

    Raises:
        ValueError: an eps that is negative or not finite as float32, a lo that is NaN or infinity, or a hi
            that is NaN or minus infinity. Only tensors on the CPU are checked: the host would wait for a GPU.
    """

    eps: Tensor
    kind: str = "linf"
    lo: Tensor | None = None
    hi: Tensor | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        _refuse("eps", self.eps, lambda eps: ~(eps.isfinite() & (eps >= 0)), "finite and not negative")
        _refuse("lo", self.lo, lambda lo: lo.isnan() | lo.isposinf(), "a number below infinity")
        _refuse("hi", self.hi, lambda hi: hi.isnan() | hi.isneginf(), "a number above minus infinity")


@dataclass(frozen=True)
class RandomStart:
    """A random point of the ball, keyed by (seed, epoch, object): the same in any batch, on any rank.

    Attributes:
        object_id: (N,) int64; positions in the batch by default.
        seed: of the run.
        epoch: number of the epoch, below 2^20: a galaxy has another start in each. Where a CUDA graph is
            captured, a tensor () int64 on the device: a number would become part of the graph.
    """

    object_id: Tensor | None = None
    seed: int = 0
    epoch: int | Tensor = 0


@dataclass(frozen=True)
class AttackBatch:
    """Tensors of an attack with one row per object, checked and in one memory layout."""

    images: Tensor  # (N, B, H, W) float32, nMgy, contiguous or channels_last
    ebv: Tensor | None  # (N,) float32, mag; None: the model takes images only
    labels: Tensor  # (N, ...) labels as the loss expects them
    eps: Tensor  # (N, B)
    step: Tensor  # (N, B), nMgy
    lo: Tensor  # (N, B)
    hi: Tensor  # (N, B)
    mask: Tensor | None  # (N, B, H, W) bool, in the images' memory layout
    object_id: Tensor  # (N,) int64
    ball: str  # its kind: "linf", "l2" or "flux"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | Tensor) -> "AttackBatch":
        return self.map_tensors(lambda tensor: in_layout_of(tensor[rows], self.images))

    def tensors(self) -> dict[str, Tensor | None]:
        """The tensors by name."""
        return {name: value for name, value in vars(self).items() if name != "ball"}

    def map_tensors(self, of: Callable[[Tensor], Tensor]) -> "AttackBatch":
        """Apply a function to every tensor that is not None."""
        found: dict[str, Any] = {k: of(v) for k, v in self.tensors().items() if v is not None}
        return replace(self, **found)

    def scaled(self, factor: Tensor) -> "AttackBatch":
        """The same batch with radius and step of each object times `factor` (N,)."""
        return replace(self, eps=factor[:, None] * self.eps, step=factor[:, None] * self.step)

    @property
    def kernels(self) -> Kernels:
        """Kernels for the images' device."""
        return kernels_on(self.images.device.type)

    def begin(self, key: Tensor | None, restart: int) -> Tensor:
        """First images of a restart: the clean images, or a random point of the ball.

        Args:
            key: (2,) int64, (seed, epoch); None: start at the clean images.
            restart: number of the restart, below 2^12; each has random numbers of its own.
        """
        if key is None:
            return self.images
        # Made from tensors on the device: a CUDA graph may not contain a copy from the host.
        key = torch.stack([key[0], key[1] + (restart << 20)])
        start = self.kernels.start(self.images, self.object_id, self.eps, self.lo, self.hi, key, self.mask)
        # In 20,000 dimensions nearly all of an L2 ball is near its surface, and the directions to points of a
        # cube are nearly uniform.
        return start if self.ball == "linf" else self.advance(start, None, overwrite=True)

    def advance(
        self, adv: Tensor, grad: Tensor | None, active: Tensor | None = None, *, overwrite: bool = False
    ) -> Tensor:
        """One step and the projection.

        Args:
            adv: (N, B, H, W), the attacked images.
            grad: (N, B, H, W); None: only the projection.
            active: (N,) bool: objects that may change; None: all.
            overwrite: nothing else needs `adv`. On a GPU the step is then taken in its memory, and an object
                that is not active costs nothing.
        """
        kernels = self.kernels
        limits = self.images, grad, self.eps, self.step, self.lo, self.hi, self.mask, active
        if overwrite and self.ball in kernels.in_place:
            kernels.in_place[self.ball](adv, *limits)
            return adv
        return kernels.step(self.ball)(adv, *limits)


def attack_batch(
    images: Tensor,
    ebv: Tensor | None,
    labels: Tensor,
    ball: Ball | Tensor,
    step_size: Tensor | None,
    eps_over_step: float,
    object_id: Tensor | None,
) -> AttackBatch:
    """Check the arguments of an attack and bring them into one memory layout.

    Args:
        images, ebv, labels: see `AttackBatch`.
        ball: the allowed perturbations; a tensor is the `eps` of an L-infinity ball.
        step_size: like eps; None: eps / eps_over_step.
        object_id: (N,) int64; positions in the batch by default.

    Raises:
        ValueError: shapes or types that do not belong together.
    """
    ball = ball if isinstance(ball, Ball) else Ball(torch.as_tensor(ball))
    if ball.kind not in BALLS:
        raise ValueError(f"ball '{ball.kind}': want one of {', '.join(BALLS)}")
    images = images.detach()
    if images.ndim != 4 or images.dtype != torch.float32:
        raise ValueError(f"images {tuple(images.shape)} {images.dtype}: want (N, B, H, W) of float32, nMgy")
    n = len(images)
    for name, tensor in (("ebv", ebv), ("labels", labels), ("object_id", object_id)):
        if tensor is not None and (tensor.ndim == 0 or len(tensor) != n):
            raise ValueError(f"{name} {tuple(tensor.shape)}: want {n} rows, one an image")
    if ball.mask is not None and ball.mask.ndim != 4:
        raise ValueError(f"mask {tuple(ball.mask.shape)}: want (N, B, H, W), or 1 instead of N or B")
    infinity = torch.full((), torch.inf, device=images.device)
    eps = _per_object(ball.eps, images, "eps")
    check_step("step_size", step_size)
    step = eps / eps_over_step if step_size is None else _per_object(step_size, images, "step_size")
    check_step("step of the attack", step)  # eps / eps_over_step can exceed float32
    if object_id is None:
        object_id = torch.arange(n, device=images.device)
    images = in_layout_of(images, images)
    return AttackBatch(
        images=images,
        ebv=ebv,
        labels=labels,
        eps=eps,
        step=step,
        lo=_per_object(-infinity if ball.lo is None else ball.lo, images, "lo"),
        hi=_per_object(infinity if ball.hi is None else ball.hi, images, "hi"),
        mask=None if ball.mask is None else in_layout_of(ball.mask.bool().expand(images.shape), images),
        object_id=object_id.to(images.device),
        ball=ball.kind,
    )


def layout(images: Tensor) -> torch.memory_format:
    """channels_last for images that are so and not contiguous too; contiguous for all others."""
    if not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def in_layout_of(tensor: Tensor, images: Tensor) -> Tensor:
    """Bring a 4-d tensor into the memory layout of `images`; any other becomes contiguous."""
    return tensor.contiguous(memory_format=layout(images)) if tensor.ndim == 4 else tensor.contiguous()


def replace_rows(images: Tensor, rows: Tensor, adv: Tensor) -> Tensor:
    """The images (n, B, H, W) with `rows` (m,) replaced by `adv` (m, B, H, W), in the same memory layout."""
    # The out-of-place index_copy returns contiguous images, which the next convolution would convert back.
    return images.clone(memory_format=torch.preserve_format).index_copy_(0, rows, adv)


def check_step(name: str, values: Tensor | float | None) -> None:
    """Raise ValueError for a step size on the CPU that is not finite as float32; names it, and the value."""
    _refuse(name, values, lambda step: ~step.isfinite(), "finite")


def _refuse(name: str, values: Tensor | float | None, bad: Callable[[Tensor], Tensor], want: str) -> None:
    if values is None:
        return
    values = torch.as_tensor(values)
    if values.device.type != "cpu":  # the host would wait for the device
        return
    # Float32 is what attacks compute in: 1e39 is finite as float64 and infinite there.
    if (found := bad(values.float())).any():
        raise ValueError(f"{name} {float(values[found][0]):g}: must be {want} in float32")


def _per_object(values: Tensor | float, images: Tensor, name: str) -> Tensor:
    values = torch.as_tensor(values)
    n, bands = images.shape[:2]
    if values.shape not in ((), (bands,), (n, bands)):
        raise ValueError(f"{name} {tuple(values.shape)}: want (B,) = ({bands},) or (N, B) = ({n}, {bands})")
    return values.to(images).expand(n, bands).contiguous()
