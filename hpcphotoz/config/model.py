"""Section `model`: the network and its redshift bins."""

import keyword
import re
import tomllib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from hpcphotoz.config.section import GREATEST, Section

OWN_NETWORKS = ("compact", "cnn", "inception")
TIMM = "timm:"  # begins the name of a network of timm
FACTORY_ARGUMENTS = ("bands", "stamp", "bins", "scale")  # given to every factory, beside `Model.options`
_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
# Options of timm that load weights: by download, or by unpickling a file.
_LOADS_WEIGHTS = re.compile(r"pretrained\w*|checkpoint_path|cache_dir")
Scalar = bool | int | float | str


class Model(Section):
    """The network and its redshift bins."""

    name: str = Field(
        "compact",
        description="compact: for laptops; cnn: the small CNN of Campagne's public code; inception: the "
        "network of Pasquet et al. 2019; package.module:factory: a network of your own, made by "
        "factory(bands=, stamp=, bins=, scale=, ...); timm:NAME: a network of the library timm",
    )
    options: dict[str, Scalar | list[Scalar]] = Field(
        {},
        description="package.module:factory, timm:NAME: further keyword arguments for the factory, such as "
        "{depth = 4}",
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
    crop: int = Field(
        0,
        ge=0,
        description="compact, cnn, inception: see the central crop x crop pixels of each stamp alone; a pass "
        "costs the less, and eps bounds the change of each pixel of the stamp all the same; 0: all of it",
    )
    binning: int = Field(
        1,
        ge=1,
        description="compact, cnn, inception: average the flux in squares of so many pixels a side; a "
        "pass costs about 1 / binning^2, and eps bounds the change of each pixel of the stamp all the same",
    )

    @field_validator("name")
    @classmethod
    def _names_a_network(cls, name: str) -> str:
        timm = name.startswith(TIMM) and re.fullmatch(r"[\w./-]+", name.removeprefix(TIMM))
        if name not in OWN_NETWORKS and not timm and not _FACTORY.fullmatch(name):
            raise ValueError(f"must be {', '.join(OWN_NETWORKS)}, package.module:factory or timm:NAME")
        return name

    @field_validator("options", mode="before")
    @classmethod
    def _read_inline_table(cls, value: object) -> object:
        """The text of a command line, `{depth = 4}`, as a mapping."""
        if not isinstance(value, str):
            return value
        try:
            found: dict[str, Any] = tomllib.loads(f"options = {value}")
        except ValueError:
            found = {}
        if list(found) != ["options"] or not isinstance(found["options"], dict):
            raise ValueError("must be a table such as {depth = 4, pool = 'mean'}")
        return found["options"]

    @field_validator("options", mode="after")
    @classmethod
    def _are_arguments(cls, options: dict[str, Scalar | list[Scalar]]) -> dict[str, Scalar | list[Scalar]]:
        for key in options:
            if not key.isidentifier() or keyword.iskeyword(key):
                raise ValueError(f"'{key}' cannot be the name of an argument")
            if key in FACTORY_ARGUMENTS:
                raise ValueError(f"'{key}' is given to the factory anyway: leave it out")
        return options

    @model_validator(mode="after")
    def _options_have_a_factory(self) -> "Model":
        if self.options and self.name in OWN_NETWORKS:
            raise ValueError(f"options are for package.module:factory and timm:NAME, not for {self.name}")
        return self

    @model_validator(mode="after")
    def _timm_loads_no_weights(self) -> "Model":
        found = [key for key in self.options if self.name.startswith(TIMM) and _LOADS_WEIGHTS.fullmatch(key)]
        if found:
            instead = "call timm.create_model in a factory of your own (package.module:factory)"
            raise ValueError(f"options: '{found[0]}' loads weights, which no option may do: {instead}")
        return self

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> "Model":
        defaults = {key: field.default for key, field in type(self).model_fields.items()}
        given = {key: getattr(self, key) for key in _unused(self.name)}
        found = [f"{key} {value}" for key, value in given.items() if value != defaults[key]]
        if found:
            have, them = ("has", "it") if len(found) == 1 else ("have", "them")
            do = f"leave {them} out; arguments of the factory go into model.options"
            raise ValueError(f"{', '.join(found)} {have} no effect on {self.name}: {do}")
        return self

    @model_validator(mode="after")
    def _bins_are_ordered(self) -> "Model":
        if self.z_min >= self.z_max:
            raise ValueError(f"z_min {self.z_min} must be below z_max {self.z_max}")
        return self


def renamed_network(section: Mapping[str, Any], name: object) -> dict[str, Any]:
    """Section `model`, not yet validated, for the network `name`.

    Options that belong to the network that it named before, such as the width of a recipe, are left out where
    `name` does not take them.
    """
    if section.get("name") == name:
        return dict(section)
    unused = _unused(name) if isinstance(name, str) else ()
    return {**{key: value for key, value in section.items() if key not in unused}, "name": name}


def _unused(name: str) -> tuple[str, ...]:
    """Options of this library's networks that a network of the user or of timm does not take."""
    if name in OWN_NETWORKS:
        return ()
    of_ours = ("relu_logits", "pool_counts_padding", "width", "crop", "binning")
    return of_ours if name.startswith(TIMM) else ("normalisation", *of_ours)
