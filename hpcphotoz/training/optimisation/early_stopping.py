"""The end of a run whose validations do not get better."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from hpcphotoz.config import Config
from hpcphotoz.training.distributed import group
from hpcphotoz.training.saving.criterion import score
from hpcphotoz.world import World


@dataclass
class EarlyStopping:
    """Decides after each validation whether the run ends early; the same on all ranks that validate.

    It has no state but the validation lines: a resumed run reads them again.
    """

    config: Config

    def __post_init__(self) -> None:
        self._best, self._best_epoch = math.inf, 0
        self.reason = ""  # why the run ends early; "": it does not

    @classmethod
    def resumed(cls, config: Config, lines: Sequence[Mapping[str, Any]], world: World) -> Self:
        """As it was after the validation lines of rank 0; called on all ranks."""
        stopping = cls(config)
        if config.run.patience:
            text = group.gather_texts(json.dumps(lines) if world.is_first else None, world)[0]
            for line in json.loads(str(text)):
                stopping.add(line)
        return stopping

    @property
    def because(self) -> str:
        """The reason after a colon, for messages; "": there is none."""
        return f": {self.reason}" if self.reason else ""

    def add(self, figures: Mapping[str, Any]) -> None:
        """Take in a validation line of metrics.jsonl: its epoch, counted from 0, and its figures."""
        run, epoch, found = self.config.run, int(figures["epoch"]), score(figures, self.config)
        if found is not None and found < self._best:
            self._best, self._best_epoch = found, epoch
        waited = epoch - self._best_epoch
        if run.patience and waited >= run.patience and not self.reason:
            why = f"no {run.criterion} validation figure was finite in {epoch + 1} epochs"
            if math.isfinite(self._best):
                best = f"{run.criterion} validation figure {self._best:.5f} of epoch {self._best_epoch + 1}"
                why = f"the {best} was not bettered for {waited} epochs"
            self.reason = f"{why} (run.patience {run.patience}; a larger one continues the run)"
