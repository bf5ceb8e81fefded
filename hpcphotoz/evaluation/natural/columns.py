"""Numbers of each object, collected batch by batch and gathered from all ranks."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hpcphotoz.evaluation.scoring.objects import gather_rows
from hpcphotoz.ranks import Ranks

Floats = npt.NDArray[np.float64]


class Columns:
    """Numbers of each object by name."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._parts: dict[str, list[Floats]] = {name: [np.zeros(0)] for name in names}

    def add(self, name: str, values: Tensor | npt.NDArray[np.floating]) -> None:
        """Append the numbers of a batch, (N,)."""
        values = values.double().cpu().numpy() if isinstance(values, Tensor) else values
        self._parts[name].append(np.asarray(values, np.float64))

    def add_amplitude(self, of: str, change: Tensor) -> None:
        """Append root mean square and greatest absolute value of (N, B, H, W) as `rms OF` and `max OF`."""
        pixels = change.flatten(1)
        self.add(f"rms {of}", pixels.square().mean(dim=1).sqrt())
        self.add(f"max {of}", pixels.abs().amax(dim=1))

    def gather(self, ranks: Ranks) -> dict[str, Floats]:
        """The numbers of all objects, in order of rank, on every rank."""
        return {name: gather_rows(np.concatenate(parts), ranks) for name, parts in self._parts.items()}
