"""The safetensors file of a trained network: its tensors, and what is needed to build it.

The header's metadata hold, under `hpcphotoz`, a JSON text with the fields of `NetworkFacts`. Nothing in the
file is code; of a network of the user it holds the name of the factory, which is imported and called if the
caller trusts it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from hpcphotoz.atomic import atomic_write
from hpcphotoz.config import Config
from hpcphotoz.config.load import parse
from hpcphotoz.errors import BadInput, first_line
from hpcphotoz.training.saving.checkpoint_file import State, network_weights
from hpcphotoz.training.saving.temporary import owner

_FORMAT, _VERSION = "hpcphotoz", 1  # key of the JSON text in the file's metadata, and its version
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class NetworkFacts(BaseModel):
    """The JSON text in the header of a safetensors file: `TrainedNetwork` without its module."""

    model_config = ConfigDict(strict=True, extra="forbid")

    version: Literal[1]
    name: str
    config: dict[str, Any]
    bands: Annotated[tuple[str, ...], Field(min_length=1)]
    stamp: Annotated[int, Field(gt=0)]
    pixel_scale: _Positive
    scale: tuple[_Positive, ...]
    step: Annotated[int, Field(ge=0)]
    manifest_sha256: str
    datasets_sha256: tuple[str, ...] = ()
    source_sha256: str | None = None


def save_weights(state: State, name: str, path: Path) -> None:
    """Write the network of a checkpoint's state as one safetensors file, as `write_weights` does.

    Args:
        state: what a checkpoint of this version holds.
        name: of the network.
        path: file to write, in a run folder; an existing one is replaced, whole or not at all.

    Raises:
        BadInput: safetensors is not installed.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(exist_ok=True)
    given = {key: state[key] for key in NetworkFacts.model_fields if key in state}
    given |= {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
    given |= {"name": name}
    write_weights(path, given, parse(state["config"], str(path)), network_weights(state))


def write_weights(path: Path, given: dict[str, Any], config: Config, weights: Mapping[str, Tensor]) -> None:
    """Write a network as one safetensors file.

    Args:
        path: file to write; an existing one is replaced, whole or not at all.
        given: the fields of `NetworkFacts`, without version and configuration.
        config: of the network's run.
        weights: its state dict.

    Raises:
        BadInput: safetensors is not installed.
        OSError: the file cannot be written.
    """
    safetensors = _safetensors()
    facts = NetworkFacts(**{**given, "version": _VERSION, "config": config.model_dump(mode="json")})
    # Copies: safetensors takes neither other memory orders nor tensors that share memory.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
    with atomic_write(path, owner()) as temporary:
        temporary.write_bytes(safetensors.save(tensors, {_FORMAT: facts.model_dump_json()}))


def read_weights(path: Path) -> tuple[NetworkFacts, dict[str, Tensor]]:
    """The facts and tensors of a file of `write_weights`.

    Raises:
        BadInput: safetensors is not installed, or a file that is not such a one.
    """
    _safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_FORMAT)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: cannot be read as safetensors: {first_line(error)}") from None
    if text is None:
        raise BadInput(f"{path}: holds weights, but no network that `save_network` wrote")
    try:
        facts = NetworkFacts.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["loc"] == ("version",):
            wanted = f"this release reads version {_VERSION}"
            raise BadInput(f"{path}: version {first['input']!r:.40}, {wanted}") from None
        key = ".".join(str(part) for part in first["loc"]) or "the text"
        raise BadInput(f"{path}: '{_FORMAT}' in its header: {key}: {first['msg']}") from None
    if len(facts.bands) != len(facts.scale):
        counts = f"{len(facts.bands)} bands and a scale of {len(facts.scale)}"
        raise BadInput(f"{path}: '{_FORMAT}' in its header: {counts}: want one a band")
    return facts, tensors


def step_of_weights(path: Path) -> int | None:
    """The step in the header of a file of `write_weights`; None: there is no such file, or it is damaged.

    Raises:
        BadInput: safetensors is not installed.
    """
    _safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return NetworkFacts.model_validate_json((file.metadata() or {}).get(_FORMAT, "")).step
    except (OSError, SafetensorError, ValidationError):
        return None


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise BadInput(f"{error}: weights as safetensors need `pip install 'hpcphotoz[export]'`") from None
    return safetensors.torch
