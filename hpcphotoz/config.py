"""Every option: frozen, typed, strict. A TOML file or a recipe by name, then command-line overrides."""

import json
import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hpcphotoz.errors import BadInput, nearest

Switch = Literal["auto", "on", "off"]
_LONGEST = 1 << 20  # characters of a configuration file
# The greatest radius, width or weight: far beyond any that makes sense, and far below 3.4e38, where float32
# ends, for it is multiplied by others on the way.
GREATEST = 1e6


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: object, field: ValidationInfo) -> object:
        numeric = cls.model_fields[field.field_name or ""].annotation in (int, float)
        if numeric and isinstance(value, bool):  # pydantic would take true for 1
            raise ValueError("want a number")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _no_endless_number(cls, value: object) -> object:
        if isinstance(value, int) and value >= 1 << 31:  # sizes and counts are computed with in 64 bits
            raise ValueError("want less than 2^31")
        return value


class Model(_Section):
    """The network and its redshift bins."""

    name: Literal["compact", "cnn", "inception"] = Field(
        "compact",
        description="compact: for laptops; cnn: small CNN of Campagne's public code; inception: Pasquet 2019",
    )
    bins: int = Field(180, ge=2, description="number of uniform redshift bins")
    z_min: float = Field(0.0, gt=-1, le=GREATEST, description="lower edge of the first bin (redshift)")
    z_max: float = Field(0.4, gt=-1, le=GREATEST, description="upper edge of the last bin (redshift)")
    normalisation: Literal["asinh", "sqrt"] = Field(
        "asinh", description="first layer: asinh(x / scale of the band), or Pasquet's sign(x)(sqrt(|x|+1)-1)"
    )
    softening: float = Field(
        10.0,
        gt=0,
        le=GREATEST,
        description="asinh: the scale of a band in mean sky sigmas of the training set",
    )
    relu_logits: bool = Field(False, description="keep the public code's ReLU on the logits (cnn, inception)")
    pool_counts_padding: bool = Field(
        True,
        description="inception: stride-1 pooling counts padded zeros (True: torch; False: TensorFlow SAME)",
    )
    width: int = Field(48, ge=8, description="compact: channels of the first stage")

    @model_validator(mode="after")
    def _ordered(self) -> "Model":
        if self.z_min >= self.z_max:
            raise ValueError(f"z_min {self.z_min} must be below z_max {self.z_max}")
        return self


class Data(_Section):
    """Which objects, and how shards are streamed."""

    where: str = Field("", description="only objects for which this holds, e.g. 'z_spec < 0.3 and ebv < 0.1'")
    validation: float = Field(
        0.05, ge=0, lt=1, description="fraction held out by object id, never trained on"
    )
    test: float = Field(0.0, ge=0, lt=1, description="fraction kept for evaluation, by object id")
    split_seed: int = Field(0, ge=0, lt=2**31, description="of the split, apart from training.seed")
    block_rows: int = Field(64, ge=1, description="neighbours on disk that are read together")
    window_blocks: int = Field(
        32, ge=1, description="blocks shuffled together (more where four global batches need more)"
    )
    read_threads: int = Field(2, ge=1, le=256, description="threads that read, per rank")
    windows_ahead: int = Field(
        1, ge=1, le=256, description="windows read ahead; in memory, shared by the ranks"
    )
    verify: Literal["first", "always", "never"] = Field(
        "first",
        description="compare images and labels with their checksums on the first pass of a process (with "
        'data.damaged "skip": the images on every pass)',
    )
    damaged: Literal["fail", "skip"] = Field(
        "fail",
        description="damaged images: name them and stop, or leave them out and count them, for which every "
        'pass compares checksums (not with verify "never")',
    )

    @model_validator(mode="after")
    def _something_left(self) -> "Data":
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave nothing to train on")
        return self


class Training(_Section):
    """Optimisation."""

    seed: int = Field(0, ge=0, lt=2**31, description="the seed of everything random")
    epochs: int = Field(12, ge=1, description="passes over the data")
    global_batch: int = Field(128, ge=1, description="objects an optimiser step, over all ranks")
    learning_rate: float = Field(1e-3, gt=0, le=1e30, description="Adam's peak learning rate")
    schedule: Literal["cosine", "constant", "halfway"] = Field(
        "cosine", description="cosine to zero; constant; halfway: divided by 5 at half of the steps (Pasquet)"
    )
    warmup_steps: int = Field(50, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.0, ge=0, le=GREATEST, description="decoupled weight decay (AdamW)")
    augment: bool = Field(True, description="random flips and right-angle rotations")
    label_width: float = Field(
        0.0,
        ge=0,
        le=GREATEST,
        description="sigma of a Gaussian label in units of a bin; 0: cross-entropy on the one bin",
    )
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "auto",
        description="of training's passes: float32; its products rounded to TF32 on GPUs that have it; "
        "bfloat16 autocast; auto: the quickest by a short trial on the device, on a GPU of tf32 and bf16",
    )
    attack_precision: Literal["training", "fp32", "tf32", "bf16"] = Field(
        "training", description="of the attack's gradients; training: as training's passes"
    )
    objective: Literal["replace", "append", "consistency", "free"] = Field(
        "replace",
        description="attacked images replace theirs; are added to the batch; are held to the PDF of the "
        "clean ones (TRADES' term; attacks still raise attack.loss); or move by training's own gradients, "
        "attack.steps updates a batch (free)",
    )
    consistency_weight: float = Field(
        6.0,
        ge=0,
        le=GREATEST,
        description="objective consistency: of KL(clean PDF | attacked PDF) beside the cross-entropy",
    )
    eps_warmup_steps: int = Field(
        0,
        ge=0,
        description="optimiser steps over which the attack's eps and step grow linearly to their values",
    )
    k_warmup_steps: int = Field(
        0, ge=0, description="optimiser steps over which the attack's steps grow from 1 to attack.steps"
    )
    checkpoint_steps: int = Field(200, ge=1, description="optimiser steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=2, description="newest checkpoints kept")
    log_steps: int = Field(10, ge=1, description="optimiser steps between lines of progress")
    max_steps: int = Field(0, ge=0, description="stop the run after this many steps; 0: after all epochs")
    wall_minutes: float = Field(
        0, ge=0, description="save and stop cleanly after this long (minutes); 0: never"
    )
    overlap: Literal["off", "streams", "ranks"] = Field(
        "off",
        description="off: attack, then train; streams: clean passes beside the attack on a second CUDA "
        "stream; ranks: some ranks attack, the others train",
    )
    attackers: Literal["auto"] | int = Field(
        "auto", description="overlap ranks: how many ranks attack; auto: by the measured cost of both"
    )
    max_staleness: int = Field(
        0,
        ge=0,
        le=2,
        description="overlap ranks: optimiser steps by which the attacked weights may be behind",
    )
    transfer: Literal["fp32", "bf16", "int8"] = Field(
        "fp32", description="overlap ranks: attacked images as they are, or their changes in fewer bits"
    )
    weights_transfer: Literal["fp32", "bf16"] = Field(
        "fp32", description="overlap ranks: the weights on their way to attackers"
    )
    timeout_s: float = Field(
        300,
        gt=0,
        le=GREATEST,
        description="a rank that waits longer for another ends the run (seconds); more than a validation",
    )
    channels_last: Switch = Field("auto", description="memory order of images and weights; auto: on")
    merged: Switch = Field(
        "auto", description="inception: 1x1 convolutions of one input computed as one; auto: on CPUs"
    )
    padded: Switch = Field("auto", description="channels padded to multiples of 8; auto: off")
    compiled: Switch = Field(
        "auto",
        description="torch.compile; auto: on a GPU with a graph of the step, in runs of 2,000,000 images a "
        "rank and more, which earn back the minute or two of compiling",
    )
    graphs: Literal["auto", "off", "attack", "step"] = Field(
        "auto",
        description="CUDA graphs: of the attack, or of the whole gradient; auto: on a GPU step, with overlap "
        "streams attack, with overlap ranks and objective free off",
    )
    fused_adam: Switch = Field("auto", description="Adam's update as one kernel; auto: on")
    micro_batch: int = Field(
        0,
        ge=0,
        description="objects a forward and backward pass, gradients added up; 0: on a CPU 64, else all",
    )
    bucket_mb: float = Field(
        25, gt=0, le=GREATEST, description="gradients that are averaged over ranks at a time (MB)"
    )

    @field_validator("attackers", mode="before")
    @classmethod
    def _auto_or_a_number(cls, value: object) -> object:
        if value != "auto" and not str(value).isdecimal() or str(value) == "0":
            raise ValueError("want auto, or how many ranks attack")
        return value


class Attack(_Section):
    """Adversarial samples injected into training; fraction 0 is standard training."""

    fraction: float = Field(0.0, ge=0, le=1, description="fraction of each global batch that is attacked")
    method: Literal["fgsm", "pgd", "apgd"] = Field(
        "pgd", description="one step; several with projection; APGD, which chooses its step sizes"
    )
    ball: Literal["linf", "l2", "flux"] = Field(
        "linf",
        description="what eps bounds: linf, the change of every pixel; l2, its rms over a stamp; "
        "flux, as linf, and the flux of every band is conserved",
    )
    eps: float = Field(0.1, ge=0, le=GREATEST, description="radius of the ball in sky sigmas of each band")
    steps: int = Field(3, ge=1, description="steps of PGD and APGD")
    step_size: float = Field(
        0.0, ge=0, le=GREATEST, description="step of PGD in sky sigmas; 0: 2.5 eps / steps"
    )
    random_start: bool = Field(True, description="start at a random point of the ball (PGD, APGD)")
    restarts: int = Field(
        1, ge=1, le=4096, description="random starts, of which the best is kept (PGD, APGD)"
    )
    loss: Literal["cross_entropy", "margin", "shift", "crps"] = Field(
        "cross_entropy",
        description="what the attack raises: cross-entropy over bins, the DLR margin, |<z> - z_spec|, CRPS",
    )
    target: Literal["away", "redshift", "shift"] = Field(
        "away",
        description="away from z_spec; towards redshift target_value; towards z_spec + target_value (1 + z)",
    )
    target_value: float = Field(0.0, ge=-GREATEST, le=GREATEST, description="of the target")
    stop: float = Field(
        0.0,
        ge=0,
        le=GREATEST,
        description="an object is done when |<z> - z| > this times 1 + z (target: is within it); 0: never",
    )

    @model_validator(mode="after")
    def _belongs_together(self) -> "Attack":
        if self.method == "fgsm" and self.restarts > 1:
            raise ValueError(
                f"restarts {self.restarts}: fgsm has no random start to repeat: want pgd or apgd"
            )
        if self.method == "fgsm" and self.stop:
            raise ValueError(
                f"stop {self.stop:g}: fgsm is one step, nothing comes after it: want pgd or apgd"
            )
        if self.step_size and self.method != "pgd":
            raise ValueError(f"step_size {self.step_size:g}: {self.method} has its own: want pgd")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"restarts {self.restarts} without random_start are one")
        if self.target_value and self.target == "away":
            raise ValueError(
                f"target_value {self.target_value} without a target: want target redshift or shift"
            )
        return self


class Config(_Section):
    """A whole run."""

    model: Model = Model()
    data: Data = Data()
    training: Training = Training()
    attack: Attack = Attack()

    @model_validator(mode="after")
    def _target_is_possible(self) -> "Config":
        problem = impossible(self.attack, self.model.z_min, self.model.z_max)
        if problem:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _training_and_attack_fit(self) -> "Config":
        training, attack = self.training, self.attack
        if training.overlap == "ranks" and not attack.fraction:
            raise ValueError(
                "training.overlap ranks with attack.fraction 0: attackers would have nothing to do"
            )
        if training.objective != "replace" and not attack.fraction:
            raise ValueError(f"training.objective {training.objective}: wants an attack.fraction above 0")
        if training.objective == "free" and training.overlap != "off":
            raise ValueError("training.objective free attacks by training's own gradients: want overlap off")
        if training.graphs in ("attack", "step") and training.overlap == "ranks":
            raise ValueError(
                f"training.graphs {training.graphs} with overlap ranks: captures would wait for ranks"
            )
        if training.graphs in ("attack", "step") and training.objective == "free":
            raise ValueError(
                f"training.graphs {training.graphs} with objective free: has no attack of its own"
            )
        if training.overlap != "ranks":
            for name in ("attackers", "max_staleness", "transfer", "weights_transfer"):
                if getattr(training, name) != Training.model_fields[name].default:
                    raise ValueError(f"training.{name} means something with training.overlap ranks alone")
        if training.objective == "free" and attack.method != "pgd":
            raise ValueError(f"training.objective free with attack.method {attack.method}: want pgd")
        if training.objective == "free" and (attack.restarts > 1 or attack.stop or attack.target != "away"):
            raise ValueError("training.objective free: has no restarts, stop or target")
        if training.objective == "free" and (attack.loss != "cross_entropy" or training.micro_batch):
            raise ValueError("training.objective free: has no attack.loss of its own, and no micro_batch")
        return self


def impossible(attack: Attack, z_min: float, z_max: float) -> str | None:
    """What is wrong with an attack's target for bins on [z_min, z_max); None: nothing."""
    value, span = attack.target_value, f"[{z_min:g}, {z_max:g})"
    if attack.target == "redshift" and not z_min <= value < z_max:
        return f"target redshift {value:g}: outside the bins {span}"
    if attack.target == "shift" and abs(value) * (1 + z_min) >= z_max - z_min:
        return f"target shift {value:g}: carries every galaxy out of the bins {span}"
    return None


def recipes() -> list[str]:
    """Names of the ready configurations."""
    folder = resources.files("hpcphotoz") / "recipes"
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def options() -> dict[str, tuple[str, str]]:
    """Every option as `section.key` -> (default, description)."""
    return {
        f"{section}.{key}": (str(field.default), (field.description or "") + _choices(field.annotation))
        for section, outer in Config.model_fields.items()
        for key, field in type(outer.default).model_fields.items()
    }


def _choices(annotation: object) -> str:
    return f" [{', '.join(get_args(annotation))}]" if get_origin(annotation) is Literal else ""


def load(source: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Read a configuration and apply overrides.

    Args:
        source: path of a TOML file, or the name of a recipe.
        overrides: `section.key` -> text, as given on the command line.

    Raises:
        BadInput: no such file or recipe, not TOML, an unknown key (valid ones are listed), a value out of
            range.
    """
    tree = _read(source)
    for name, text in (overrides or {}).items():
        section, _, key = name.partition(".")
        if name not in options():
            raise BadInput(f"--{name}: unknown option{nearest(name, options())}; valid: {_valid(section)}")
        given = tree.setdefault(section, {})
        if not isinstance(given, dict):
            raise BadInput(f"{source}: {section} = {given!r}: want a table [{section}]")
        given[key] = text
    return parse(tree, source, overrides)


def value_of(name: str, text: str) -> Any:
    """The value of one option, `section.key`, from the text of a command line.

    Raises:
        ValueError: it is out of range; the message says what is wrong.
    """
    section, _, key = name.partition(".")
    try:
        found = Config.model_validate({section: {key: text}})
    except ValidationError as error:
        raise ValueError(_reason(error.errors()[0])) from None
    return getattr(getattr(found, section), key)


def parse(tree: Mapping[str, Any], where: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Validate a nested mapping.

    Args:
        tree: section -> key -> value.
        where: names it in the message of a `BadInput`.
        overrides: the options in it that come from a command line, which are named as they were typed.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            hint = nearest(name, [*options(), *Config.model_fields])
            raise BadInput(
                f"{where}: unknown key '{name}'{hint}; valid: {_valid(name.split('.')[0])}"
            ) from None
        said, typed = _reason(first), overrides or {}
        if name in typed:
            raise BadInput(f"--{name} {typed[name]}: {said}") from None
        # Options that do not fit together: those of the command line are named if the reason speaks of them.
        concerned = [f"--{key} {typed[key]}" for key in typed if _speaks_of(said, key)]
        where = " ".join([where, *(["with"] if concerned else []), *concerned])
        given = first.get("input")
        value = "" if isinstance(given, dict) else f" = {given!r}"  # several options that do not fit together
        raise BadInput(
            f"{where}: {said}" if name in ("", where) else f"{where}: {name}{value}: {said}"
        ) from None


def _reason(error: Mapping[str, Any]) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


def _speaks_of(said: str, name: str) -> bool:
    return name.partition(".")[2] in re.findall(r"\w+", said)


def to_toml(config: Config) -> str:
    """The configuration as TOML text that `load` reads back to an equal one."""
    lines = []
    for section, values in config.model_dump().items():
        lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def _toml(value: bool | int | float | str) -> str:
    # JSON's strings and booleans are TOML's.
    return json.dumps(value) if isinstance(value, bool | str) else repr(value)


def _valid(section: str) -> str:
    names = [name for name in options() if name.startswith(section + ".")] or list(Config.model_fields)
    return ", ".join(names)


def _read(source: str) -> dict[str, Any]:
    path = Path(source)
    try:
        if source in recipes() and not path.is_file():
            text = (resources.files("hpcphotoz") / "recipes" / f"{source}.toml").read_text(encoding="utf-8")
        else:
            with path.open(encoding="utf-8-sig") as file:  # some editors begin with a byte order mark
                text = file.read(_LONGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        known, why = ", ".join(recipes()), getattr(error, "strerror", None) or error
        raise BadInput(
            f"{source}: not a readable TOML file nor a recipe ({known}){nearest(source, recipes())}: {why}"
        ) from None
    if len(text) > _LONGEST:  # a device such as /dev/zero has no end
        raise BadInput(f"{source}: more than {_LONGEST} characters: not a configuration")
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, and numbers of thousands of digits
        raise BadInput(f"{source}: not TOML: {error}") from None
    except RecursionError:
        raise BadInput(f"{source}: nested too deeply: want sections of keys and values") from None
