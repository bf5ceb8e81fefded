"""Networks of the user, by the name of the function that makes them, and networks of the library timm."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpcphotoz.config import Model
from hpcphotoz.config.model import FACTORY_ARGUMENTS, OWN_NETWORKS, TIMM
from hpcphotoz.errors import BadInput, nearest
from hpcphotoz.models.layers import Normalise, subsample_first
from hpcphotoz.models.trial import attempt, try_network, where_raised


class ImagesOnly(nn.Module):
    """A network that is called as network(images), with the interface of those that take E(B-V) too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        """Logits (N, bins) of images (N, B, H, W) in nMgy; E(B-V) is not used."""
        out: Tensor = self.network(images)
        return out


@dataclass(frozen=True)
class NetworkSource:
    """The source file in which the factory of a network is."""

    factory: str  # package.module:factory
    file: Path
    text: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return hashlib.sha256(self.text).hexdigest()


def make_network(model: Model, *, stamp: int, scale: tuple[float, ...]) -> nn.Module:
    """Make a network of the user or of timm, and try it on three images.

    Args:
        model: its `name` is package.module:factory or timm:NAME. The factory is called with the keyword
            arguments `bands` (their number), `stamp` (pixels a side), `bins` (number of logits), `scale`
            (nMgy per band, as `Normalise` takes it) and with `model.options`.
        stamp, scale: as `models.build.build`.

    Returns:
        A module that is called as module(images, ebv).

    Raises:
        BadInput: the factory cannot be imported or called, or the network is none that gives logits.
    """
    factory = _timm_factory(model) if model.name.startswith(TIMM) else _factory(model.name)
    given = {"bands": len(scale), "stamp": stamp, "bins": model.bins, "scale": scale, **model.options}
    _check_arguments(factory, model, given)
    made = attempt(f"model.name {model.name}: the factory", factory, **given)
    if not isinstance(made, nn.Module):
        kind = type(made).__name__
        raise BadInput(f"model.name {model.name}: the factory gives a {kind}: want a torch.nn.Module")
    subsample_first(made)
    network = taking_ebv(made, f"model.name {model.name}")
    try_network(network, model, stamp, scale)
    return network


def check_trusted(model: Model, trust_code: bool, source: str) -> None:
    """Refuse a network of the user that was not named by the user but by a file.

    Raises:
        BadInput: its factory would be imported and called without `trust_code`; begins with `source`.
    """
    if not trust_code and model.name not in OWN_NETWORKS and not model.name.startswith(TIMM):
        flag = "add --trust-code (trust_code=True in Python and RAIL) if you trust this file"
        raise BadInput(f"{source}: network {model.name}: loading it imports and calls that code: {flag}")


def source_of(model: Model) -> NetworkSource | None:
    """The source file of a user's factory; None: a network of this library or of timm, or no Python file.

    Raises:
        BadInput: the factory cannot be imported, or its file cannot be read.
    """
    if model.name in OWN_NETWORKS or model.name.startswith(TIMM):
        return None
    file = _file_of(_factory(model.name), model.name)
    if not file or not file.endswith(".py"):
        return None
    try:
        return NetworkSource(model.name, Path(file).resolve(), Path(file).read_bytes())
    except OSError as error:
        raise BadInput(f"model.name {model.name}: {file}: cannot be read: {error.strerror}") from None


def change_of_source(source: NetworkSource | None, recorded: str | None) -> str:
    """One line if a factory's file is not the recorded one any more; "": it is, or none is recorded.

    Args:
        source: the file now.
        recorded: SHA-256 of the file with which the network was trained.
    """
    now = source.sha256 if source else None
    if recorded is None or now == recorded:
        return ""
    file = f"{source.file}: its SHA-256 is {now[:8]}" if source and now else "the source file is missing"
    return f"{file}, {recorded[:8]} when the network was trained: the run folder keeps that as model.py.txt"


def _file_of(factory: Callable[..., Any], name: str) -> str | None:
    try:
        return inspect.getsourcefile(inspect.unwrap(factory))
    except TypeError:  # an object of a class that defines __call__, or a function written in C
        return getattr(sys.modules[name.partition(":")[0]], "__file__", None)


def _check_arguments(factory: Callable[..., Any], model: Model, given: dict[str, Any]) -> None:
    """Refuse arguments that the factory's signature does not take, and say which it wants."""
    try:
        every = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # written in C
        return
    named = [p for p in every if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [p.name for p in named]
    where = f"the factory of {model.name} ({_file_of(factory, model.name)})"
    unknown = [] if any(p.kind is p.VAR_KEYWORD for p in every) else [n for n in given if n not in names]
    for name in unknown:
        if name in model.options:
            others = [other for other in names if other not in FACTORY_ARGUMENTS]
            hint = nearest(name, others)
            raise BadInput(f"model.options: {where} takes no '{name}'{hint}")
        wanted = f"it is called with {', '.join(FACTORY_ARGUMENTS)} and model.options"
        raise BadInput(f"model.name: {where} takes no '{name}': {wanted}")
    if missing := [p.name for p in named if p.default is p.empty and p.name not in given]:
        raise BadInput(f"model.options: {where} wants '{missing[0]}' too: add it")


def _factory(name: str) -> Callable[..., Any]:
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not (error.name and (module == error.name or module.startswith(f"{error.name}."))):
            raise BadInput(f"model.name {name}: cannot import {module}: {where_raised(error)}") from None
        folder = "install it, or name its folder in PYTHONPATH, as an absolute path"
        raise BadInput(f"model.name {name}: there is no module {error.name} here: {folder}") from None
    # A module may raise anything while it is imported.
    except (Exception, SystemExit) as error:
        raise BadInput(f"model.name {name}: cannot import {module}: {where_raised(error)}") from None
    for part in path.split("."):
        if not hasattr(found, part):
            raise BadInput(f"model.name {name}: {module} holds no {path}: give a function or class of it")
        found = getattr(found, part)
    if not callable(found):
        raise BadInput(f"model.name {name}: {path} is a {type(found).__name__}: want a function or class")
    factory: Callable[..., Any] = found
    return factory


def _timm_factory(model: Model) -> Callable[..., nn.Module]:
    try:
        import timm
    except ImportError as error:
        need = "networks of timm need `pip install 'hpcphotoz[timm]'`"
        raise BadInput(f"model.name {model.name}: {error}: {need}") from None
    # A torchvision of another build than torch raises RuntimeError: it misses operators.
    except Exception as error:
        build = f"torchvision must be of the same build (CPU or CUDA) as torch {torch.__version__}"
        raise BadInput(
            f"model.name {model.name}: cannot import timm: {where_raised(error)}: {build}"
        ) from None
    name = model.name.removeprefix(TIMM)
    if not timm.is_model(name):
        some = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:6])
        like = f"; it has {some}" if some else ""
        raise BadInput(f"model.name {model.name}: timm {timm.__version__} has no {name}{like}")

    def factory(bands: int, stamp: int, bins: int, scale: tuple[float, ...], **options: object) -> nn.Module:
        """`Normalise`, then the network of timm with its first layer for `bands` and its last for `bins`."""
        cfg = timm.get_pretrained_cfg(name)
        if cfg is not None and cfg.fixed_input_size:  # transformers and mixers; the others refuse the option
            options = {"img_size": stamp, **options}
        network = timm.create_model(name, in_chans=bands, num_classes=bins, **options)
        return nn.Sequential(Normalise(model.normalisation, scale), network)

    return factory


def taking_ebv(network: nn.Module, who: str) -> nn.Module:
    """The network as module(images, ebv), where it may be one that is called as module(images).

    It takes E(B-V) if its `forward` has a second argument that is required, or is named `ebv`.

    Args:
        network: returns logits (N, bins).
        who: the network, in the message.

    Raises:
        BadInput: its `forward` takes other arguments.
    """
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    every = inspect.signature(network.forward).parameters.values()
    parameters = [parameter for parameter in every if parameter.kind in positional]
    required = [
        p.name for p in every if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if not parameters or len(required) > 2:
        wanted = "want forward(self, images, ebv) or forward(self, images)"
        raise BadInput(f"{who}: its forward takes {', '.join(required) or 'nothing'}: {wanted}")
    takes_it = len(required) == 2 or (len(parameters) > 1 and parameters[1].name == "ebv")
    return network if takes_it else ImagesOnly(network)
