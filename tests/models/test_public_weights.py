"""Weights of the public codes load into networks that compute what those codes compute."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hpcphotoz.config import Model
from hpcphotoz.errors import BadInput
from hpcphotoz.models.build import build
from hpcphotoz.models.public_weights import PublicWeights, from_arrays

Floats = npt.NDArray[np.float32]
ONES = (1.0,) * 5


def network_of(found: PublicWeights) -> torch.nn.Module:
    network = build(found.model, stamp=64, scale=found.scale)
    network.load_state_dict(found.weights)
    return network.eval()


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return 5 * torch.randn(2, 5, 64, 64, generator=generator), torch.tensor([0.02, 0.7])


def campagne(name: str, seed: int = 0) -> dict[str, Floats]:
    torch.manual_seed(seed)
    state = build(Model(name=name), stamp=64, scale=ONES).state_dict()
    return {key: tensor.numpy() for key, tensor in state.items() if key != "normalise.scale"}


@pytest.mark.parametrize("name", ["cnn", "inception"])
def test_campagnes_weights_give_his_network(name: str) -> None:
    arrays = campagne(name)
    found = from_arrays({f"module.{key}": array for key, array in arrays.items()}, "weights.pt")
    assert (found.code, found.model.name, found.with_ebv) == ("campagne", name, True)
    images, ebv = inputs()
    logits = network_of(found)(images, ebv)
    plain = build(Model(name=name, normalisation="sqrt"), stamp=64, scale=ONES)
    plain.load_state_dict(found.weights)
    assert logits.min() == 0  # his last layer keeps its ReLU
    torch.testing.assert_close(logits, plain(images, ebv).relu())


def test_the_small_cnn_without_ebv() -> None:
    arrays = campagne("cnn")
    arrays["fc0.linear.weight"] = arrays["fc0.linear.weight"][:, :-1]
    found = from_arrays(arrays, "weights.pt")
    assert not found.with_ebv
    network, (images, ebv) = network_of(found), inputs()
    logits = network(images, ebv)
    assert torch.equal(logits, network(images, 0 * ebv))
    x = images.sign() * ((images.abs() + 1).sqrt() - 1)
    w = {key: torch.from_numpy(array) for key, array in arrays.items()}
    for k in range(3):
        x = functional.conv2d(x, w[f"conv{k}.conv.weight"], w[f"conv{k}.conv.bias"], padding=2)
        x = functional.avg_pool2d(functional.prelu(x, w[f"conv{k}.activ.weight"]), 2, 2, ceil_mode=True)
    for k in range(2):
        x = functional.linear(x.flatten(1), w[f"fc{k}.linear.weight"], w[f"fc{k}.linear.bias"]).relu()
    torch.testing.assert_close(logits, x, rtol=1e-4, atol=1e-4)


class Pasquet:
    """Pasquet's network as TensorFlow computes it: images NHWC, SAME padding that averages do not count."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(1)
        self.arrays: dict[str, Floats] = {}

    def _array(self, name: str, *shape: int, gain: float = 1.0) -> Tensor:
        if name not in self.arrays:
            spread = gain / np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 0.1
            self.arrays[name] = self._rng.normal(0, spread, shape).astype(np.float32)
        return torch.from_numpy(self.arrays[name])

    def conv(self, x: Tensor, name: str, size: int, channels: int) -> Tensor:
        kernel = self._array(f"{name}/weights", size, size, x.shape[-1], channels, gain=1.4)
        y = functional.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), padding=size // 2)
        y = y.permute(0, 2, 3, 1) + self._array(f"{name}/biases", channels)
        slope = self._array(f"{name}/prelu", channels)
        return torch.where(y > 0, y, slope * y)

    def dense(self, x: Tensor, name: str, outputs: int) -> Tensor:
        return x @ self._array(f"{name}/weights", x.shape[1], outputs) + self._array(
            f"{name}/biases", outputs
        )

    def inception(self, x: Tensor, k: int, a: int, b: int, large: bool) -> Tensor:
        def layer(x: Tensor, name: str, size: int, channels: int) -> Tensor:
            return self.conv(x, f"I{k}_/I{k}_{name}", size, channels)

        branches = [layer(x, "S2_2", 1, b)]
        if large:
            branches.append(layer(layer(x, "S1_1", 1, a), "S2_1", 5, b))
        branches.append(layer(layer(x, "S1_0", 1, a), "S2_0", 3, b))
        y = layer(x, "S1_2", 1, a).permute(0, 3, 1, 2)
        count = functional.pad(torch.ones_like(y[:1, :1]), (0, 1, 0, 1))
        total = functional.avg_pool2d(functional.pad(y, (0, 1, 0, 1)), 2, 1)
        branches.append((total / functional.avg_pool2d(count, 2, 1)).permute(0, 2, 3, 1))
        return torch.cat(branches, dim=-1)

    def __call__(self, images: Tensor, ebv: Tensor) -> Tensor:
        def pool(x: Tensor) -> Tensor:
            return functional.avg_pool2d(x.permute(0, 3, 1, 2), 2, 2).permute(0, 2, 3, 1)

        x = images.permute(0, 2, 3, 1)
        x = pool(self.conv(x.sign() * ((x.abs() + 1).sqrt() - 1), "conv0", 5, 64))
        x = pool(self.inception(self.inception(x, 0, 48, 64, True), 1, 64, 92, True))
        x = pool(self.inception(self.inception(x, 2, 92, 128, True), 3, 92, 128, True))
        x = self.inception(x, 4, 92, 128, False)
        x = torch.cat([x.flatten(1), ebv[:, None]], dim=1)
        for name in ("fc0", "fc0b"):
            x = self.dense(x, name, 1096).relu()
        return self.dense(x, "fc1", 180)


def test_pasquets_weights_give_the_network_of_tensorflow() -> None:
    images, ebv = inputs()
    theirs = Pasquet()
    wanted = theirs(images, ebv)
    found = from_arrays({f"{name}:0": array for name, array in theirs.arrays.items()}, "weights.npz")
    assert (found.code, found.model.name, found.with_ebv) == ("pasquet", "inception", True)
    # Sums of 22,273 products in another order.
    torch.testing.assert_close(
        network_of(found)(images, ebv), wanted, rtol=1e-3, atol=1e-3 * float(wanted.std())
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.clear(), "w.pt: names of neither public code"),
        (lambda a: a.pop("conv1.conv.bias"), "has no conv1.conv.bias: is the file complete"),
        (lambda a: a.update({"fc9.linear.bias": np.zeros(3)}), "fc9.linear.bias belongs to no layer"),
        (lambda a: a.update({"conv0.conv.weight": np.zeros((64, 3, 5, 5))}), r"\(64, 3, 5, 5\): the network"),
        (
            lambda a: a.update({"fc0.linear.weight": np.zeros(())}),
            r"fc0.linear.weight of shape \(\): the net",
        ),
        (lambda a: a.update({"fc1.linear.bias": np.zeros(())}), r"fc1.linear.weight of shape \(180, 1024\)"),
        (lambda a: a["conv0.conv.bias"].fill(np.nan), "conv0.conv.bias holds NaN or infinity"),
    ],
)
def test_other_weights_are_refused(change: Any, says: str) -> None:
    arrays = {name: array.copy() for name, array in campagne("cnn").items()}
    change(arrays)
    with pytest.raises(BadInput, match=says):
        from_arrays(arrays, "w.pt")
