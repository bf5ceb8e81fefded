"""Section `optimiser`: the algorithm, its learning rate, frozen and averaged weights, and the labels."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from hpcphotoz.config.section import GREATEST, Section


class Optimiser(Section):
    """The optimiser, its learning rate, frozen and averaged weights, and the labels of the loss."""

    algorithm: Literal["adamw", "adam", "sgd", "muon"] = Field(
        "adamw",
        description="adamw: Adam with decoupled weight decay; adam: Adam, the decay is added to the "
        "gradient; sgd: stochastic gradient descent with Nesterov momentum; muon: orthogonalised momentum "
        "for convolutions, adamw for all else",
    )
    learning_rate: float = Field(1e-3, gt=0, le=1e30, description="peak learning rate")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="algorithm sgd, and convolutions of muon: Nesterov momentum; 0: none"
    )
    schedule: Literal["cosine", "constant", "halfway", "one_cycle"] = Field(
        "cosine",
        description="learning rate after the warm-up; cosine: falls to zero; halfway: divided by 5 after "
        "half of the steps (Pasquet); one_cycle: rises from 1/25 of the peak in 30 % of the steps, then "
        "falls to 1/250,000 of it (Smith and Topin), without another warm-up",
    )
    warmup_steps: int = Field(
        50, ge=0, description="optimiser steps in which the learning rate grows linearly to its peak"
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        le=GREATEST,
        description="weight decay: decoupled for adamw and muon, else added to the gradient",
    )
    clip_norm: float = Field(
        0.0,
        ge=0,
        le=GREATEST,
        description="greatest Euclidean norm of the gradient of the mean loss of a global batch, over all "
        "parameters; a longer gradient is shortened to it; 0: none is. gradient_norm in metrics.jsonl has "
        "what is usual",
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay per optimiser step of an exponential moving average of the weights, such as "
        "0.999; validated, saved, exported and loaded in place of the last weights; 0: none",
    )
    freeze: list[str] = Field(
        [],
        description="parameters that are not trained: names of parameters or modules, with the wildcards * "
        "and ?, such as stem or 'blocks.0.*' (on a command line separated by spaces)",
    )
    label_width: float = Field(
        0.0,
        ge=0,
        le=GREATEST,
        description="standard deviation of a Gaussian label, in bins; 0: the label is the one bin of z_spec",
    )

    @field_validator("freeze", mode="before")
    @classmethod
    def _split_text(cls, value: object) -> object:
        """The text of a command line as a list."""
        return value.split() if isinstance(value, str) else value

    @field_validator("freeze", mode="after")
    @classmethod
    def _are_names(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            if not pattern or any(letter.isspace() or letter == "," for letter in pattern):
                raise ValueError(
                    f"{pattern!r}: want names without spaces and commas, such as ['stem', 'conv1.*']"
                )
        return patterns

    @model_validator(mode="after")
    def _options_fit(self) -> "Optimiser":
        fields = type(self).model_fields
        if self.algorithm not in ("sgd", "muon") and self.momentum != fields["momentum"].default:
            raise ValueError(f"momentum {self.momentum:g}: has an effect only with algorithm sgd or muon")
        if self.schedule == "one_cycle" and self.warmup_steps not in (0, fields["warmup_steps"].default):
            raise ValueError(
                f"warmup_steps {self.warmup_steps}: schedule one_cycle has its own, of 30 % of the steps"
            )
        return self
