"""Weights of another run as the start of a new one: `train --from RUN`."""

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcphotoz.config import Config
from hpcphotoz.config.load import parse
from hpcphotoz.data.format.manifest import Header
from hpcphotoz.errors import BadInput
from hpcphotoz.models.build import bins_of
from hpcphotoz.training.run.network import read_state


@dataclass(frozen=True)
class Origin:
    """A trained network whose weights are the start of a run.

    The scale of its normalisation is kept: an object of some flux is the same numbers after the first layer
    as it was for the weights that follow, whatever the noise of the new images.
    """

    weights: Mapping[str, Tensor]
    scale: tuple[float, ...]  # (B,) nMgy
    facts: dict[str, Any]  # for provenance and checkpoints
    warnings: tuple[str, ...]  # what differs from the new run, but is no obstacle

    @property
    def text(self) -> str:
        """Tells its weights from others."""
        return f"step {self.facts['step']} (SHA-256 of its weights {self.facts['weights_sha256'][:12]})"


def read_origin(run: Path, config: Config, header: Header) -> Origin:
    """Read the network of a run, and compare it with the options and images of the run that begins with it.

    Args:
        run: run folder, one of its checkpoints, or a file *.safetensors; averaged weights are taken if it has
            them.
        config, header: options and dataset of the new run.

    Raises:
        BadInput: no such network; other bands, redshift bins or options of section `model`.
    """
    found = read_state(run)
    state, theirs, ours, who = found.state, parse(found.config, str(run)).model, config.model, f"--from {run}"
    if tuple(state["bands"]) != tuple(header.bands):
        pair = f"its bands are {','.join(state['bands'])}, those of the dataset {','.join(header.bands)}"
        raise BadInput(f"{who}: {pair}: want the same, in the same order")
    before, now = theirs.model_dump(), ours.model_dump()
    if differing := [key for key in before if before[key] != now[key]]:
        options = " ".join(f"--model.{key} {shlex.quote(str(before[key]))}" for key in differing)
        pair = "its section model differs"
        if bins_of(theirs) != bins_of(ours):
            pair = f"its redshift bins are {bins_of(theirs).text()}, not {bins_of(ours).text()}"
        raise BadInput(f"{who}: {pair}: want {options}")
    warnings = []
    if state["pixel_scale"] != header.pixel_scale:
        pair = f"{state['pixel_scale']:g} arcsec, those of the dataset {header.pixel_scale:g}"
        warnings.append(f"{who}: its pixels were {pair}: galaxies look larger or smaller to it")
    if state["stamp"] != header.stamp:
        pair = f"{state['stamp']} pixels a side, those of the dataset {header.stamp}"
        warnings.append(f"{who}: its stamps were {pair}")
    facts = {
        "run": str(run.resolve()),
        "checkpoint": found.path.name,
        "step": state["step"],
        "manifest_sha256": state["manifest_sha256"],
        "weights_sha256": weights_sha256(state["model"]),
    }
    return Origin(state["model"], tuple(state["scale"]), facts, tuple(warnings))


def check_origin(out: Path, run: Path, recorded: Mapping[str, Any] | None) -> None:
    """Refuse to continue a run with another --from than it was begun with.

    Args:
        out: folder of the run that is continued.
        run: what --from names now. If it has moved, its weights tell whether it is the same.
        recorded: `Origin.facts` in the checkpoint; None: the run began with random weights.

    Raises:
        BadInput: another run, or other weights.
    """
    instead = "leave --from out to continue it, or choose a new --out"
    if recorded is None:
        raise BadInput(f"{out}: holds a run that was not begun --from another: {instead}")
    if str(run.resolve()) == recorded["run"]:
        return
    if weights_sha256(read_state(run).state["model"]) != recorded["weights_sha256"]:
        raise BadInput(f"{out}: holds a run that was begun --from {recorded['run']}, not {run}: {instead}")


def weights_sha256(weights: Mapping[str, Any]) -> str:
    """SHA-256 of names and values of the tensors in a state dict, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        if isinstance(weights[name], Tensor):
            digest.update(name.encode())
            flat = weights[name].detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
