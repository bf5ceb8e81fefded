"""Section `adversarial`: how attacked images enter the training. Section `attack` says how they are made."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from hpcphotoz.config.attack import Attack
from hpcphotoz.config.compute import Compute
from hpcphotoz.config.overlap import Overlap
from hpcphotoz.config.section import GREATEST, Section


class Adversarial(Section):
    """How attacked images enter the training and the validation; with fraction 0 training is standard."""

    may_change: ClassVar[frozenset[str]] = frozenset({"validation_objects"})

    fraction: float = Field(0.0, ge=0, le=1, description="fraction of each global batch that is attacked")
    objective: Literal["replace", "append", "consistency", "free"] = Field(
        "replace",
        description="replace: attacked images take the place of clean ones; append: they are added to the "
        "batch; consistency: their PDFs are kept close to those of the clean images (the term of TRADES; the "
        "attack still raises attack.loss); free: the gradients of training move them, in attack.steps "
        "updates of each batch",
    )
    consistency_weight: float = Field(
        6.0,
        ge=0,
        le=GREATEST,
        description="objective consistency: weight of KL(clean PDF | attacked PDF) relative to the "
        "cross-entropy",
    )
    eps_warmup_steps: int = Field(
        0,
        ge=0,
        description="optimiser steps in which eps and step_size of the attack grow linearly to their values",
    )
    k_warmup_steps: int = Field(
        0, ge=0, description="optimiser steps in which the steps of the attack grow from 1 to attack.steps"
    )
    validation_objects: Literal["auto"] | int = Field(
        "auto",
        description="about this many validation objects, always the same ones, are attacked after each epoch "
        "by section attack at full strength; each costs as much as (2 attack.steps + 1) / 3 objects of a "
        "clean training step; auto: 256 if fraction is above 0, else none",
    )

    @field_validator("validation_objects", mode="before")
    @classmethod
    def _auto_or_a_number(cls, value: object) -> object:
        if value != "auto" and not str(value).isdecimal():
            raise ValueError("want auto, or a number of objects")
        return value

    @property
    def attacked_in_validation(self) -> int:
        """Number of validation objects that are attacked after each epoch."""
        if self.validation_objects == "auto":
            return 256 if self.fraction else 0
        return self.validation_objects

    @property
    def warmup_end(self) -> int:
        """The first optimiser step at which the attack has its full strength."""
        return max(self.eps_warmup_steps, self.k_warmup_steps)

    def conflict(self, attack: Attack, overlap: Overlap, compute: Compute) -> str | None:
        """Why the attack or objective cannot be had with the other sections; None if it can."""
        if attack.method == "square" and (self.fraction or self.attacked_in_validation):
            return "attack.method square: takes thousands of passes, for evaluation: want fgsm, pgd or apgd"
        if self.objective != "replace" and not self.fraction:
            return f"adversarial.objective {self.objective}: wants an adversarial.fraction above 0"
        if self.objective != "free":
            return None
        # Free adversarial training has no attack of its own: it moves images by the gradients of training.
        if overlap.mode != "off":
            return "adversarial.objective free: attacks by the gradients of training: want overlap.mode off"
        if attack.method != "pgd":
            return f"adversarial.objective free with attack.method {attack.method}: want pgd"
        if attack.restarts > 1 or attack.stop or attack.target != "away":
            return "adversarial.objective free: has no attack.restarts, attack.stop or attack.target"
        if attack.loss != "cross_entropy" or compute.micro_batch:
            return "adversarial.objective free: has no attack.loss of its own, and no compute.micro_batch"
        return None
