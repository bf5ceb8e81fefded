"""The configuration of a run: eight sections, one file each. `load.py` reads and writes them."""

from pydantic import model_validator

from hpcphotoz.config.adversarial import Adversarial
from hpcphotoz.config.attack import Attack
from hpcphotoz.config.compute import Compute
from hpcphotoz.config.data import Data
from hpcphotoz.config.model import Model
from hpcphotoz.config.optimiser import Optimiser
from hpcphotoz.config.overlap import Overlap
from hpcphotoz.config.run import Run
from hpcphotoz.config.section import Section

__all__ = ["Adversarial", "Attack", "Compute", "Config", "Data", "Model", "Optimiser", "Overlap", "Run"]


class Config(Section):
    """Every option of a run."""

    model: Model = Model()
    data: Data = Data()
    optimiser: Optimiser = Optimiser()
    adversarial: Adversarial = Adversarial()
    attack: Attack = Attack()
    overlap: Overlap = Overlap()
    compute: Compute = Compute()
    run: Run = Run()

    @model_validator(mode="after")
    def _sections_fit(self) -> "Config":
        """Refuse options of different sections that contradict each other; each section has its own check."""
        conflict = (
            self.attack.conflict(self.model.z_min, self.model.z_max)
            or self.overlap.conflict(self.adversarial.fraction)
            or self.adversarial.conflict(self.attack, self.overlap, self.compute)
            or self.compute.conflict(
                self.overlap.mode, self.adversarial.objective, self.overlap.max_staleness
            )
            or self.run.conflict(self.data.validation, self.adversarial)
        )
        if conflict:
            raise ValueError(conflict)
        return self
