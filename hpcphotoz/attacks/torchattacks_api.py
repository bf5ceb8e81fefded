"""Attacks as callable objects, as in torchattacks; `over` takes several epsilons at once, as in foolbox.

    attack = PGD(model, eps=0.1 * sky_sigma, steps=10, loss=cross_entropy(bins))
    adv = attack(images, z_spec, ebv)

Unlike those libraries' they know no pixel range: `eps` is in the images' own units, per band or per object
and band, and bounds are given as `lo` and `hi`. The same call gives the same images; `epoch` draws other
random starts.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hpcphotoz.attacks.apgd import EPS_OVER_FIRST_STEP, apgd_loop
from hpcphotoz.attacks.ball import AttackBatch, Ball, RandomStart, attack_batch, check_step
from hpcphotoz.attacks.cuda_graph import AttackGraphs
from hpcphotoz.attacks.gradient import AS_IS, Model, Passes, image_loss_of
from hpcphotoz.attacks.losses import Condition, Loss, cross_entropy
from hpcphotoz.attacks.pgd import check_restarts, pgd_loop
from hpcphotoz.attacks.runner import AttackLoop, run_attack, start_key


class CallableAttack:
    """Base of `FGSM`, `PGD` and `APGD`: an attack made once and called on batches.

    Args:
        model: called as model(images, ebv), or as model(images) where no ebv is given.
        eps: a number, (B,) or (N, B), in the images' units: radius of the ball.
        loop, alpha, eps_over_step: chosen by subclasses: the loop; its step size, or eps over it.
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
        loop: AttackLoop,
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
        self.model, self.eps = model, torch.as_tensor(eps)
        self.loss, self.stop = loss or cross_entropy(), stop
        self._alpha = None if alpha is None else torch.as_tensor(alpha)
        self._ball = Ball(self.eps, ball, lo, hi, mask)
        check_step("alpha", self._alpha)
        self._loop, self._eps_over_step, self._passes = loop, eps_over_step, passes
        self._start = RandomStart(seed=seed) if random_start else None
        self._graphs = AttackGraphs() if graph else None

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
            epoch: further key of the random starts: another number is another start.

        Raises:
            ValueError: shapes or types that do not belong together; a graph asked for on a CPU.
        """
        return self._attack(self._attack_batch(1.0, images, labels, ebv, object_id), epoch)

    def over(
        self,
        images: Tensor,
        labels: Tensor,
        epsilons: Sequence[float],
        ebv: Tensor | None = None,
        object_id: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor | None]:
        """Attack with several multiples of `eps`.

        Returns:
            The attacked images of each; and whether `stop` holds for them, (len(epsilons), N) bool, if there
            is a `stop`.
        """
        batches = [self._attack_batch(e, images, labels, ebv, object_id) for e in epsilons]
        attacked = [self._attack(one) for one in batches]
        if self.stop is None:
            return attacked, None
        with image_loss_of(self.model, self.loss, images.device, self._passes) as image_loss:
            outputs = [image_loss.value(adv, one)[0] for adv, one in zip(attacked, batches, strict=True)]
        return attacked, torch.stack([self.stop(found, labels) for found in outputs])

    def _attack_batch(
        self, factor: float, images: Tensor, labels: Tensor, ebv: Tensor | None, object_id: Tensor | None
    ) -> AttackBatch:
        ball = replace(self._ball, eps=factor * self.eps)
        step = None if self._alpha is None else factor * self._alpha
        return attack_batch(images, ebv, labels, ball, step, self._eps_over_step, object_id)

    def _attack(self, given: AttackBatch, epoch: int = 0) -> Tensor:
        start = None if self._start is None else replace(self._start, epoch=epoch)
        if self._graphs is None:
            return run_attack(self.model, given, self.loss, self._loop, start, self._passes)[0]
        key = start_key(start, given.images.device)
        return self._graphs("", self.model, given, self.loss, self._loop, key, self._passes)[0]


class FGSM(CallableAttack):
    """Fast gradient sign method (Goodfellow et al. 2015, arXiv:1412.6572).

    Args:
        model, eps, shared: as `CallableAttack`.
        ball: "linf", "l2" or "flux".
    """

    def __init__(self, model: Model, eps: float | Tensor, *, ball: str = "linf", **shared: Any) -> None:
        loop = pgd_loop(ball, 1, stop=shared.get("stop"))
        super().__init__(model, eps, loop, ball=ball, **{"random_start": False, **shared})


class PGD(CallableAttack):
    """Projected gradient ascent (Madry et al. 2018, arXiv:1706.06083).

    Args:
        model, eps, shared: as `CallableAttack`.
        alpha: step size, like eps; 2.5 eps / steps by default.
        steps, restarts, best: as `pgd`.
        ball: "linf", "l2" or "flux".
    """

    def __init__(
        self,
        model: Model,
        eps: float | Tensor,
        alpha: float | Tensor | None = None,
        steps: int = 10,
        *,
        ball: str = "linf",
        restarts: int = 1,
        best: bool = False,
        **shared: Any,
    ) -> None:
        check_restarts(steps, restarts, shared.get("random_start", True))
        loop = pgd_loop(ball, steps, restarts, best, shared.get("stop"))
        super().__init__(model, eps, loop, ball=ball, alpha=alpha, eps_over_step=steps / 2.5, **shared)


class APGD(CallableAttack):
    """Auto-PGD (Croce & Hein 2020, arXiv:2003.01690).

    Args:
        model, eps, shared: as `CallableAttack`.
        steps, restarts, rho: as `apgd`.
        ball: "linf", "l2" or "flux".
    """

    def __init__(
        self,
        model: Model,
        eps: float | Tensor,
        steps: int = 10,
        *,
        ball: str = "linf",
        restarts: int = 1,
        rho: float = 0.75,
        **shared: Any,
    ) -> None:
        check_restarts(steps, restarts, shared.get("random_start", True))
        loop = apgd_loop(ball, steps, restarts, rho, shared.get("stop"))
        super().__init__(model, eps, loop, ball=ball, eps_over_step=EPS_OVER_FIRST_STEP, **shared)
