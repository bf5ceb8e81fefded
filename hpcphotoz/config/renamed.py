"""Options under the names of earlier versions, when one section `training` held most of them."""

from collections.abc import Mapping
from typing import Any

from hpcphotoz.config.model import TIMM, renamed_network
from hpcphotoz.errors import BadInput

OLD_SECTION = "training"
_MOVED = {
    "data": ("augment",),
    "optimiser": ("learning_rate", "schedule", "warmup_steps", "weight_decay", "label_width"),
    "adversarial": ("objective", "consistency_weight", "eps_warmup_steps", "k_warmup_steps"),
    "overlap": ("attackers", "max_staleness", "weights_transfer"),
    "compute": (
        *("precision", "attack_precision", "channels_last", "compiled", "graphs", "fused_adam"),
        *("micro_batch", "bucket_mb"),
    ),
    "run": (
        *("seed", "epochs", "global_batch", "checkpoint_steps", "keep_checkpoints", "log_steps"),
        *("max_steps", "wall_minutes", "timeout_s"),
    ),
}
# Old `section.key` -> new `section.key`.
RENAMED: dict[str, str] = {
    **{f"{OLD_SECTION}.{key}": f"{section}.{key}" for section, keys in _MOVED.items() for key in keys},
    "training.overlap": "overlap.mode",
    "training.transfer": "overlap.images_transfer",
    "attack.fraction": "adversarial.fraction",
    "data.read_ahead": "data.windows_ahead",
}
# Options without a successor: on CPUs 1x1 convolutions of one input are now always computed as one, which is
# faster; channels padded to multiples of 8 were slower.
REMOVED = frozenset({"training.merged", "training.padded"})


def option_names(tree: Mapping[str, Any]) -> list[str]:
    """The options of a nested mapping, as `section.key`."""
    tables = {section: keys for section, keys in tree.items() if isinstance(keys, Mapping)}
    return [f"{section}.{key}" for section, keys in tables.items() for key in keys]


def to_current(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A nested mapping with old names replaced by today's; all else is kept as it is.

    Checkpoints, and config.toml of run folders, keep the names of the version that wrote them, and options
    that had no effect on a network of the user, or that gave a network of timm weights to begin with: those
    are left out.

    Raises:
        BadInput: an option under both names; the message begins with `source`.
    """
    current: dict[str, Any] = {}
    for section, keys in tree.items():
        if not isinstance(keys, Mapping):
            current[section] = keys
            continue
        if section != OLD_SECTION:
            current.setdefault(section, {})
        for key, value in keys.items():
            name = f"{section}.{key}"
            if name in REMOVED:
                continue
            new_section, _, new_key = RENAMED.get(name, name).partition(".")
            if name in RENAMED and new_key in tree.get(new_section, {}):
                raise BadInput(f"{source}: {name} is now {RENAMED[name]}, which is given too: leave one out")
            current.setdefault(new_section, {})[new_key] = value
    if isinstance(model := current.get("model"), dict):
        current["model"] = _without_needless(model)
    return current


def _without_needless(model: dict[str, Any]) -> dict[str, Any]:
    name, options = model.get("name"), model.get("options")
    if isinstance(name, str) and name.startswith(TIMM) and isinstance(options, Mapping):
        model = {**model, "options": {key: value for key, value in options.items() if key != "pretrained"}}
    return renamed_network({**model, "name": None}, name) if name else model
