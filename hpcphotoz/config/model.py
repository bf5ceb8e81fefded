"""Section `model`: the network and its redshift bins."""

from typing import Literal

from pydantic import Field, model_validator

from hpcphotoz.config.section import GREATEST, Section


class Model(Section):
    """The network and its redshift bins."""

    name: Literal["compact", "cnn", "inception"] = Field(
        "compact",
        description="compact: for laptops; cnn: the small CNN of Campagne's public code; inception: the "
        "network of Pasquet et al. 2019",
    )
    bins: int = Field(180, ge=2, description="number of uniform redshift bins")
    z_min: float = Field(0.0, gt=-1, le=GREATEST, description="lower edge of the first bin (redshift)")
    z_max: float = Field(0.4, gt=-1, le=GREATEST, description="upper edge of the last bin (redshift)")
    normalisation: Literal["asinh", "sqrt"] = Field(
        "asinh",
        description="first layer of the network: asinh(x / scale of the band), or Pasquet's "
        "sign(x) (sqrt(|x| + 1) - 1)",
    )
    softening: float = Field(
        10.0,
        gt=0,
        le=GREATEST,
        description="normalisation asinh: scale of a band, in mean sky sigmas of the dataset",
    )
    relu_logits: bool = Field(
        False, description="cnn, inception: apply a ReLU to the logits, as the public code does"
    )
    pool_counts_padding: bool = Field(
        True,
        description="inception: stride-1 pooling counts padded zeros (true: as torch; false: as "
        "TensorFlow's SAME)",
    )
    width: int = Field(48, ge=8, description="compact: channels of the first stage")

    @model_validator(mode="after")
    def _bins_are_ordered(self) -> "Model":
        if self.z_min >= self.z_max:
            raise ValueError(f"z_min {self.z_min} must be below z_max {self.z_max}")
        return self
