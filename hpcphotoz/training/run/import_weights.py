"""Makes a run folder of the weights of a public code, which every command takes as a trained network."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcphotoz.atomic import check_output_folder, write_text
from hpcphotoz.config import Config
from hpcphotoz.config import load as configuration
from hpcphotoz.data.order import ORDER
from hpcphotoz.errors import BadInput, first_line
from hpcphotoz.models import public_weights
from hpcphotoz.models.public_weights import Arrays, PublicWeights
from hpcphotoz.training.run import checkpoint


def import_weights(file: Path, out: Path) -> PublicWeights:
    """Read weights of Campagne's or Pasquet's public code, and write them as a run folder at step 0.

    Args:
        file: a state dict of torch (*.pt, *.pth), or an npz of arrays under their names in the code.
        out: run folder to make. It can be loaded, evaluated and attacked; its training cannot be continued,
            because a state dict holds no state of the optimiser.

    Returns:
        The weights, with the code and network that they were recognised as.

    Raises:
        BadInput: a file that cannot be read, weights of another network, or a folder that holds something.
    """
    check_output_folder(out)
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out}: is not empty: choose an empty or new folder for the run")
    found = public_weights.from_arrays(_read(file), str(file))
    config = Config(model=found.model)
    state = {
        "model": found.weights,
        "step": 0,
        "manifest_sha256": "",
        "lost": [],
        "order": ORDER,
        "config": config.model_dump(),
        "bands": list(public_weights.BANDS),
        "stamp": public_weights.STAMP,
        "pixel_scale": public_weights.PIXEL_SCALE,
        "scale": list(found.scale),
    }
    origin = {"file": str(file.resolve()), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    record = {"starts": [], "imported": {**origin, "code": found.code, "with_ebv": found.with_ebv}}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "config.toml", configuration.to_toml(config))
        write_text(out / "provenance.json", json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise BadInput(f"{out}: cannot be written: {error.strerror}") from None
    checkpoint.save(out, state, 1)
    return found


def _read(file: Path) -> Arrays:
    """The arrays of a file by name."""
    if not file.is_file():
        raise BadInput(f"{file}: no such file")
    if file.suffix == ".npz":
        return _read_npz(file)
    if file.suffix not in (".pt", ".pth"):
        raise BadInput(f"{file}: want a state dict of torch (*.pt, *.pth) or arrays by name (*.npz)")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    # torch raises RuntimeError, EOFError, KeyError, UnpicklingError and others for what it cannot read.
    except Exception as error:
        instead = "save it anew with torch.save(model.state_dict(), FILE)"
        raise BadInput(f"{file}: not a state dict ({type(error).__name__}): {instead}") from None
    for name in ("model_state_dict", "state_dict", "model"):  # of a training loop's own checkpoint
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadInput(f"{file}: holds no state dict: save torch.save(model.state_dict(), FILE)")
    return {str(name): tensor.detach().float().numpy() for name, tensor in state.items()}


def _read_npz(file: Path) -> Arrays:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name], np.float32) for name in arrays.files}
    # numpy and zipfile raise ValueError, BadZipFile, KeyError and others.
    except Exception as error:
        raise BadInput(f"{file}: not a readable npz: {type(error).__name__}: {first_line(error)}") from None
