"""Parameters that are not trained, by patterns of their names."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hpcphotoz.compute.statistics import running_statistics
from hpcphotoz.errors import BadInput, nearest

_LISTED = 12  # names in a message


def freeze(module: nn.Module, patterns: Sequence[str]) -> None:
    """Let the parameters that the patterns name require no gradient.

    Args:
        module: the network.
        patterns: each the name of a parameter, or of a module, whose parameters are all meant; * stands for
            any text, ? for one letter.

    Raises:
        BadInput: a pattern that names no parameter, or patterns that name all.
    """
    names = [name for name, _ in module.named_parameters()]
    for pattern in patterns:
        if not any(_named(name, pattern) for name in names):
            modules = [name for name, part in module.named_modules() if name and list(part.parameters())]
            hint = nearest(pattern, [*modules, *names])
            raise BadInput(
                f"optimiser.freeze {pattern}: no parameter of the network has this name{hint}; "
                f"it has {_listed(names)}"
            )
    found = [name for name in names if any(_named(name, pattern) for pattern in patterns)]
    if len(found) == len(names):
        raise BadInput(
            f"optimiser.freeze {' '.join(patterns)}: names all parameters: nothing is left to train"
        )
    for name in found:
        module.get_parameter(name).requires_grad_(False)


def frozen_names(module: nn.Module) -> list[str]:
    """Names of the parameters that require no gradient, in order."""
    return [name for name, parameter in module.named_parameters() if not parameter.requires_grad]


def training_mode(module: nn.Module) -> nn.Module:
    """Put a network in training mode; returns it.

    Normalisation layers whose parameters are all frozen stay in evaluation mode: they keep their running
    statistics, and normalise with them.
    """
    module.train()
    for layer in module.modules():
        if isinstance(layer, _NormBase) and _is_frozen(layer):
            layer.eval()
    return module


def gathered_statistics(module: nn.Module) -> list[Tensor]:
    """Running statistics of the normalisation layers that gather them, the same order on all ranks."""
    layers = [part for part in module.modules() if isinstance(part, _NormBase) and not _is_frozen(part)]
    return [tensor for layer in layers for tensor in running_statistics(layer)]


def _is_frozen(layer: nn.Module) -> bool:
    own = list(layer.parameters())
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def frozen_text(module: nn.Module, names: Sequence[str]) -> str:
    """How much of a network is frozen, and what, in one line."""
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    values, of = sum(sizes[name] for name in names), sum(sizes.values())
    return f"frozen: {len(names)} of {len(sizes)} parameters, {values:,} of {of:,} values: {_listed(names)}"


def _named(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
