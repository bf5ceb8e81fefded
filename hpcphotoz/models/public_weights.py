"""Weights of the two public photometric-redshift codes, under the names and in the order of this library.

campagne   PyTorch: `conv0.conv.weight`, `i0.s1_0.activ.weight`, `fc0.linear.bias` ...; the Inception and the
           small CNN, each with E(B-V) or without
pasquet    TensorFlow: `conv0/weights`, `I0_/I0_S1_0/prelu`, `fc0b/biases` ...: kernels (y, x, in, out), dense
           weights (in, out), and features flattened as (y, x, channel)

A network without E(B-V) becomes one whose weights of E(B-V) are 0, which computes the same.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcphotoz.config import Model
from hpcphotoz.errors import BadInput
from hpcphotoz.models.build import build

Arrays = Mapping[str, npt.NDArray[np.float32]]
BANDS, STAMP, PIXEL_SCALE = ("u", "g", "r", "i", "z"), 64, 0.396  # of both codes; arcsec
_DENSE = {"fc0": "fc0", "fc0b": "fc1", "fc1": "fc2"}  # Pasquet's names, and ours


@dataclass(frozen=True)
class PublicWeights:
    """The weights of a public code, for the network that `model` describes."""

    code: str  # "campagne" or "pasquet"
    model: Model
    weights: dict[str, Tensor]
    with_ebv: bool  # whether the network was trained with E(B-V)

    @property
    def scale(self) -> tuple[float, ...]:
        """Per band: the scale of `Normalise`, which square-root normalisation does not use."""
        return (1.0,) * len(BANDS)


def from_arrays(arrays: Arrays, source: str) -> PublicWeights:
    """Recognise the code by the names of its arrays, and convert them.

    Args:
        arrays: name -> float32 array; "module." before the names and ":0" after them are ignored.
        source: where they come from; error messages begin with it.

    Raises:
        BadInput: names of neither code, or arrays that are missing, left over or of another shape.
    """
    found = {name.removeprefix("module.").removesuffix(":0"): array for name, array in arrays.items()}
    code = "pasquet" if "conv0/weights" in found else "campagne"
    if code == "pasquet":
        found = _from_tensorflow(found, source)
    if "conv0.conv.weight" not in found or "fc0.linear.weight" not in found:
        some = ", ".join(sorted(arrays)[:4])
        want = "want conv0.conv.weight ... (Campagne) or conv0/weights ... (Pasquet)"
        raise BadInput(f"{source}: names of neither public code ({some} ...): {want}")
    name = "inception" if any(key.startswith("i0.") for key in found) else "cnn"
    last = "fc2" if name == "inception" else "fc1"
    bins = found[f"{last}.linear.bias"].size if f"{last}.linear.bias" in found else 180
    # Campagne's last layer keeps its ReLU, and his stride-1 pool counts padded zeros; TensorFlow's does not.
    options = {"relu_logits": code == "campagne", "pool_counts_padding": code == "campagne"}
    model = Model(name=name, bins=max(bins, 2), normalisation="sqrt", **options)
    wanted = build(model, stamp=STAMP, scale=(1.0,) * len(BANDS)).state_dict()
    wanted_inputs = wanted["fc0.linear.weight"].shape[1]
    first = found["fc0.linear.weight"]
    with_ebv = first.shape[1:] != (wanted_inputs - 1,)
    if not with_ebv:
        found["fc0.linear.weight"] = np.pad(first, ((0, 0), (0, 1)))
    own = {"normalise.scale": wanted["normalise.scale"]}
    weights = own | {key: torch.from_numpy(np.array(array, np.float32)) for key, array in found.items()}
    _compare(weights, wanted, source)
    return PublicWeights(code, model, weights, with_ebv)


def _compare(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    for key, tensor in wanted.items():
        if key not in weights:
            raise BadInput(f"{source}: has no {key}: is the file complete?")
        if weights[key].shape != tensor.shape:
            ours, theirs = tuple(tensor.shape), tuple(weights[key].shape)
            sizes = f"stamps of {STAMP} pixels in {len(BANDS)} bands"
            raise BadInput(f"{source}: {key} of shape {theirs}: the network for {sizes} has {ours}")
        if not weights[key].isfinite().all():
            raise BadInput(f"{source}: {key} holds NaN or infinity")
    if left := sorted(set(weights) - set(wanted)):
        raise BadInput(f"{source}: {left[0]} belongs to no layer of this network")


def _from_tensorflow(arrays: Arrays, source: str) -> dict[str, npt.NDArray[np.float32]]:
    """Pasquet's arrays under Campagne's names, in torch's order of axes."""
    found: dict[str, npt.NDArray[np.float32]] = {}
    channels = 0
    for name, array in arrays.items():
        layer, _, kind = name.rpartition("/")
        inception = re.fullmatch(r"I(\d)_/I\1_S([12])_([012])", layer)
        if layer in _DENSE and kind in ("weights", "biases"):
            key = {"weights": "weight", "biases": "bias"}[kind]
            found[f"{_DENSE[layer]}.linear.{key}"] = array.T if kind == "weights" else array
        elif (layer == "conv0" or inception) and kind in ("weights", "biases", "prelu"):
            ours = f"i{inception[1]}.s{inception[2]}_{inception[3]}" if inception else layer
            key = {"weights": "conv.weight", "biases": "conv.bias", "prelu": "activ.weight"}[kind]
            if kind == "weights" and array.ndim != 4:
                raise BadInput(f"{source}: {name} of shape {array.shape}: want (y, x, in, out)")
            found[f"{ours}.{key}"] = array.transpose(3, 2, 0, 1) if kind == "weights" else array.reshape(-1)
        else:
            raise BadInput(f"{source}: {name}: not an array of Pasquet's network")
    # Channels of the last inception module: its 1x1 and 3x3 branches and the pooled one.
    for branch in ("s2_2", "s2_0", "s1_2"):
        channels += np.size(found.get(f"i4.{branch}.conv.bias", ()))
    first = found.get("fc0.linear.weight")
    if first is not None and channels and first.ndim == 2:
        found["fc0.linear.weight"] = _channels_first(first, channels)
    return found


def _channels_first(weight: npt.NDArray[np.float32], channels: int) -> npt.NDArray[np.float32]:
    """Dense weights (out, in) for features flattened as (channel, y, x) in place of (y, x, channel)."""
    pixels = weight.shape[1] // channels
    images, rest = weight[:, : pixels * channels], weight[:, pixels * channels :]
    turned = images.reshape(len(weight), pixels, channels).transpose(0, 2, 1).reshape(len(weight), -1)
    return np.concatenate([turned, rest], axis=1)
