"""Attacks as callable objects, as in torchattacks; `over` takes several epsilons at once, as in foolbox.

    attack = PGD(model, eps=0.1 * sky_sigma, steps=10, loss=cross_entropy(bins))
    adv = attack(images, z_spec, ebv)

Images need not lie in [0, 1], as those of these libraries must: `eps` is in the images' own units, per band
or per object and band, and bounds are given as `lo` and `hi`. The same call gives the same images; another
`epoch` gives other random starts.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hpcphotoz.attacks.apgd import EPS_OVER_FIRST_STEP, apgd_loop
from hpcphotoz.attacks.ball import AttackBatch, Ball, RandomStart, attack_batch, check_step
from hpcphotoz.attacks.losses import Condition, Loss, check_labels, cross_entropy
from hpcphotoz.attacks.passes.cuda_graph import AttackGraphs
from hpcphotoz.attacks.passes.gradient import AS_IS, Model, Passes, image_loss_of
from hpcphotoz.attacks.passes.runner import run_attack
from hpcphotoz.attacks.pgd import check_restarts, pgd_loop


class CallableAttack:
    """Base of `FGSM`, `PGD` and `APGD`: an attack that is made once and called on batches.

    Args:
        model: called as model(images, ebv), or as model(images) where no ebv is given.
        eps: a number, (B,) or (N, B), in the images' units: radius of the ball.
        loop: of `run_attack`; chosen by subclasses, with its first step `alpha`, or eps / `eps_over_step`.
        ball: "linf", "l2" or "flux".
        loss: what to raise; cross-entropy against class numbers by default.
        lo, hi, mask: as `Ball`.
        random_start: begin at a random point of the ball, keyed by (seed, object).
        seed: of the random starts.
        stop: as `pgd`; also what `over` calls success.
        passes: precision, compilation, objects at a time.
        graph: capture all steps in a CUDA graph at the first call of a shape, and replay it from then on.

    Raises:
        ValueError: an eps that is negative or not finite, or an alpha that is not finite.
    """

    def __init__(
        self,
        model: Model,
        eps: float | Tensor,
        loop: Callable[..., tuple[Tensor, ...]],
        *,
        ball: str = "linf",
        alpha: float | Tensor | None = None,
        eps_over_step: float = 1.0,
        loss: Loss | None = None,
        lo: Tensor | None = None,
        hi: Tensor | None = None,
        mask: Tensor | None = None,
        random_start: bool = True,
        seed: int = 0,
        stop: Condition | None = None,
        passes: Passes = AS_IS,
        graph: bool = False,
    ) -> None:
        check_step("alpha", alpha)
        self.model, self.eps = model, torch.as_tensor(eps)
        self.loss, self.stop = loss or cross_entropy(), stop
        self._ball = Ball(self.eps, ball, lo, hi, mask)
        self._alpha = None if alpha is None else torch.as_tensor(alpha)
        self._eps_over_step, self._start = eps_over_step, RandomStart(seed=seed) if random_start else None
        self._loop, self._graph = partial(loop, stop=stop), graph
        self._passes = replace(passes, replay=partial(AttackGraphs(), "")) if graph else passes

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        ebv: Tensor | None = None,
        object_id: Tensor | None = None,
        epoch: int = 0,
    ) -> Tensor:
        """Attacked images, (N, B, H, W) float32.

        Args:
            images: (N, B, H, W) float32, on the model's device.
            labels: (N,) what the loss takes: z_spec, or class numbers.
            ebv: (N,) float32, mag, for models that take it.
            object_id: (N,) int64, key of the random starts; the places in the batch by default.
            epoch: further key of the random starts.

        Raises:
            ValueError: shapes or types that do not belong together; redshifts that are NaN or outside the
                bins of the loss; a graph asked for on a CPU.
        """
        return self._attack(self._batch(1.0, images, labels, ebv, object_id), epoch)

    def over(
        self,
        images: Tensor,
        labels: Tensor,
        epsilons: Sequence[float],
        ebv: Tensor | None = None,
        object_id: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor | None]:
        """Attack with several multiples of `eps`; arguments otherwise as a call.

        Returns:
            The attacked images of each; and whether `stop` holds for them, (len(epsilons), N) bool, if there
            is a `stop`.
        """
        batches = [self._batch(e, images, labels, ebv, object_id) for e in epsilons]
        attacked = [self._attack(batch) for batch in batches]
        if self.stop is None:
            return attacked, None
        with image_loss_of(self.model, self.loss, images.device, self._passes) as image_loss:
            outputs = [image_loss.value(adv, batch)[0] for adv, batch in zip(attacked, batches, strict=True)]
        return attacked, torch.stack([self.stop(found, labels) for found in outputs])

    def _batch(
        self, factor: float, images: Tensor, labels: Tensor, ebv: Tensor | None, object_id: Tensor | None
    ) -> AttackBatch:
        ball = replace(self._ball, eps=factor * self.eps)
        step = None if self._alpha is None else factor * self._alpha
        batch = attack_batch(images, ebv, labels, ball, step, self._eps_over_step, object_id)
        check_labels(self.loss, batch.labels)
        return batch

    def _attack(self, batch: AttackBatch, epoch: int = 0) -> Tensor:
        if self._graph and not batch.images.is_cuda:
            raise ValueError(f"images on {batch.images.device}: a CUDA graph wants them on a GPU")
        start = None if self._start is None else replace(self._start, epoch=epoch)
        return run_attack(self.model, batch, self.loss, self._loop, start, self._passes)[0]


class FGSM(CallableAttack):
    """Fast gradient sign method (Goodfellow et al. 2015, arXiv:1412.6572).

    Args:
        model, eps, options: as `CallableAttack`; no random start by default.
    """

    def __init__(self, model: Model, eps: float | Tensor, **options: Any) -> None:
        super().__init__(model, eps, partial(pgd_loop, steps=1), **{"random_start": False, **options})


class PGD(CallableAttack):
    """Projected gradient ascent (Madry et al. 2018, arXiv:1706.06083).

    Args:
        model, eps, options: as `CallableAttack`.
        alpha: step size, like eps; 2.5 eps / steps by default.
        steps, restarts, best: as `pgd`.
    """

    def __init__(
        self,
        model: Model,
        eps: float | Tensor,
        alpha: float | Tensor | None = None,
        steps: int = 10,
        *,
        restarts: int = 1,
        best: bool = False,
        **options: Any,
    ) -> None:
        check_restarts(steps, restarts, options.get("random_start", True))
        loop = partial(pgd_loop, steps=steps, restarts=restarts, best=best)
        super().__init__(model, eps, loop, alpha=alpha, eps_over_step=steps / 2.5, **options)


class APGD(CallableAttack):
    """Auto-PGD (Croce & Hein 2020, arXiv:2003.01690).

    Args:
        model, eps, options: as `CallableAttack`.
        steps, restarts, rho: as `apgd`.
    """

    def __init__(
        self,
        model: Model,
        eps: float | Tensor,
        steps: int = 10,
        *,
        restarts: int = 1,
        rho: float = 0.75,
        **options: Any,
    ) -> None:
        check_restarts(steps, restarts, options.get("random_start", True))
        loop = partial(apgd_loop, steps=steps, restarts=restarts, rho=rho)
        super().__init__(model, eps, loop, eps_over_step=EPS_OVER_FIRST_STEP, **options)
