"""Section `optimiser`: AdamW, its learning rate, and the labels of its loss."""

from typing import Literal

from pydantic import Field

from hpcphotoz.config.section import GREATEST, Section


class Optimiser(Section):
    """AdamW, its learning rate, and the labels of the cross-entropy it minimises."""

    learning_rate: float = Field(1e-3, gt=0, le=1e30, description="peak learning rate of Adam")
    schedule: Literal["cosine", "constant", "halfway"] = Field(
        "cosine",
        description="learning rate after the warm-up; cosine: falls to zero; halfway: divided by 5 after "
        "half of the steps (Pasquet)",
    )
    warmup_steps: int = Field(
        50, ge=0, description="optimiser steps in which the learning rate grows linearly to its peak"
    )
    weight_decay: float = Field(0.0, ge=0, le=GREATEST, description="decoupled weight decay (AdamW)")
    label_width: float = Field(
        0.0,
        ge=0,
        le=GREATEST,
        description="standard deviation of a Gaussian label, in bins; 0: the label is the one bin of z_spec",
    )
