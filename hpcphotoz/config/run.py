"""Section `run`: seed, length, batch, checkpoints, logs and limits of a run."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from hpcphotoz.config.adversarial import Adversarial
from hpcphotoz.config.section import GREATEST, Section

_HOLD_OUT = "data.validation is 0: hold out a fraction of the objects, such as 0.05"


class Run(Section):
    """Seed, length, batch, checkpoints, logs and limits."""

    may_change: ClassVar[frozenset[str]] = frozenset(
        "checkpoint_steps keep_checkpoints keep_hours log_steps max_steps wall_minutes timeout_s".split()
        + ["start_timeout_s", "patience", "criterion", "sinks", "max_skipped_steps"]
    )
    may_grow: ClassVar[frozenset[str]] = frozenset({"epochs"})

    seed: int = Field(0, ge=0, lt=2**31, description="seed of all random numbers, except those of the split")
    epochs: int = Field(
        12, ge=1, description="passes over the training objects; a larger number extends a run"
    )
    global_batch: int = Field(128, ge=1, description="objects of one optimiser step, over all ranks")
    checkpoint_steps: int = Field(200, ge=1, description="optimiser steps between checkpoints")
    keep_checkpoints: int = Field(
        2, ge=2, description="number of newest checkpoints that are kept, at least 2"
    )
    keep_hours: float = Field(
        0, ge=0, le=GREATEST, description="time between checkpoints that are kept for good (hours); 0: none"
    )
    log_steps: int = Field(10, ge=1, description="optimiser steps between lines of metrics.jsonl")
    max_steps: int = Field(0, ge=0, description="stop after this many optimiser steps; 0: after all epochs")
    max_skipped_steps: int = Field(
        10,
        ge=0,
        description="steps in a row that may be skipped because their loss or gradient is not finite; one "
        "more ends the run",
    )
    wall_minutes: float = Field(
        0, ge=0, description="stop, with the save, before this time is over (minutes); 0: never"
    )
    timeout_s: float = Field(
        300,
        gt=0,
        le=GREATEST,
        description="end the run if a rank waits longer than this for another in a step (seconds)",
    )
    start_timeout_s: float = Field(
        0,
        ge=0,
        le=GREATEST,
        description="the same for the start, the first step, saves and validations (seconds); with "
        "overlap.mode ranks, longer than a validation takes; 0: twice timeout_s",
    )
    patience: int = Field(
        0,
        ge=0,
        description="end the run after this many epochs in a row that did not better its best validation "
        "figure; 0: never",
    )
    criterion: Literal["clean", "robust", "weighted"] = Field(
        "clean",
        description="the validation figure that tells which epoch is best; clean: sigma_mad; robust: "
        "sigma_mad_adversarial; weighted: their mean, with weight adversarial.fraction on the second",
    )

    sinks: list[Literal["tensorboard", "wandb"]] = Field(
        [],
        description="where the lines of metrics.jsonl go too; tensorboard: RUN/tensorboard; wandb: Weights & "
        "Biases, offline in RUN/wandb unless WANDB_MODE is set (on a command line separated by spaces)",
    )

    @field_validator("sinks", mode="before")
    @classmethod
    def _split_text(cls, value: object) -> object:
        """The text of a command line as a list."""
        return value.split() if isinstance(value, str) else value

    @field_validator("sinks", mode="after")
    @classmethod
    def _are_different(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError(f"{', '.join(names)}: name each once")
        return names

    def conflict(self, validation: float, adversarial: Adversarial) -> str | None:
        """Why the criterion cannot be had; None if it can.

        Args:
            validation: fraction of the objects held out for validation.
            adversarial: says how many of them are attacked.
        """
        if self.patience and not validation:
            return f"run.patience {self.patience}: nothing is validated: {_HOLD_OUT}"
        if self.criterion == "clean":
            return None
        if not validation:
            return f"run.criterion {self.criterion}: nothing is validated: {_HOLD_OUT}"
        if not adversarial.attacked_in_validation:
            auto = adversarial.validation_objects == "auto"
            why = "adversarial.fraction is 0" if auto else "adversarial.validation_objects is 0"
            give = "give a number of them, such as adversarial.validation_objects 256"
            return f"run.criterion {self.criterion}: no validation object is attacked, as {why}: {give}"
        return None
