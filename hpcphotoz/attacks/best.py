"""Keeps the best image of each object so far, and knows which objects have reached their stop condition.

On a GPU the host never waits for either.
"""

from typing import Self

import torch
from torch import Tensor

from hpcphotoz.attacks.ball import AttackBatch
from hpcphotoz.attacks.losses import Condition

ALL_ROWS = slice(None)


class BestSoFar:
    """Images of greatest loss, (N, B, H, W), and their `loss` (N,): infinite where the stop condition holds.

    Args:
        batch: its images are the first ones kept, with a loss of minus infinity.
        stop: condition at which an object is finished: its image of that moment stays the best.
    """

    def __init__(self, batch: AttackBatch, stop: Condition | None) -> None:
        self._kernels, self._stop = batch.kernels, stop
        self.images = batch.images.clone(memory_format=torch.preserve_format)
        self.loss = torch.full((len(batch),), -torch.inf, device=batch.images.device)

    def add(self, rows: slice | Tensor, adv: Tensor, outputs: Tensor, loss: Tensor, labels: Tensor) -> None:
        """Keep the images `adv` of the objects `rows` where their loss is greater."""
        loss = loss.float().clamp(max=torch.finfo(torch.float32).max)  # infinity means: finished
        if self._stop is not None:
            loss = loss.masked_fill(self._stop(outputs, labels), torch.inf)
        if isinstance(rows, slice):
            self.loss = self._kernels.select(self.images, self.loss, adv, loss)
        else:
            better = loss > self.loss[rows]
            self.images[rows[better]], self.loss[rows[better]] = adv[better], loss[better]

    def forget_unfinished(self) -> Self:
        """Forget the losses of the objects that are not finished."""
        self.loss = self.loss.masked_fill(self.loss < torch.inf, -torch.inf)
        return self

    def merge(self, other: "BestSoFar") -> None:
        """Keep the better of both images, object by object."""
        self.loss = self._kernels.select(self.images, self.loss, other.images, other.loss)

    @property
    def active(self) -> Tensor | None:
        """(N,) bool: objects for which `stop` does not hold yet; None: there is no stop condition."""
        return None if self._stop is None else self.loss < torch.inf

    def unfinished_rows(self) -> slice | Tensor:
        """Rows to attack: on a CPU the active objects, on a GPU all (to count them the host would wait)."""
        active = self.active
        if active is None or active.device.type != "cpu" or active.all():
            return ALL_ROWS
        return active.nonzero()[:, 0]
