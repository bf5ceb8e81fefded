"""The bytes that a pass must move, against counts made by hand."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.training.traffic import bytes_moved, bytes_of_update

# Bytes of the tensors of `Small`, two images of 5x8x8 float32.
X, W, B, SLOPE = 4 * 2 * 5 * 64, 4 * 8 * 5 * 9, 4 * 8, 4 * 8
Y, P = 4 * 2 * 8 * 64, 4 * 2 * 8 * 16  # after the convolution and its activation; after the pooling
FC, BIAS, OUT = 4 * 10 * 128, 4 * 10, 4 * 2 * 10
FORWARD = (X + W + B + SLOPE + Y) + (Y + P) + (P + FC + BIAS)  # without the output


class Small(nn.Module):
    """Convolution, PReLU, pooling, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.activation = nn.Conv2d(5, 8, 3, padding=1), nn.PReLU(8)
        self.linear = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(functional.avg_pool2d(self.activation(self.conv(x)), 2).flatten(1))
        return out


@pytest.fixture
def network() -> Small:
    torch.manual_seed(0)
    return Small()


def test_a_forward_pass_reads_and_writes_each_layer_once(network: Small) -> None:
    x = torch.randn(2, 5, 8, 8)
    assert bytes_moved(lambda: [network(x)]) == FORWARD + OUT
    # An activation that nothing else reads is never written: the sum alone leaves the last layer.
    assert bytes_moved(lambda: [network(x).relu().sum()]) == FORWARD + 4


def test_an_input_gradient_reads_no_activation_but_those_of_the_activations(network: Small) -> None:
    x, of_out = torch.randn(2, 5, 8, 8, requires_grad=True), torch.randn(2, 10)
    network.requires_grad_(False)

    def attack() -> Iterable[Tensor]:
        return torch.autograd.grad(network(x), x, of_out)

    backward = (OUT + FC + P) + (P + Y + SLOPE + Y) + (Y + W + X)
    assert bytes_moved(attack) == FORWARD + backward


def test_weight_gradients_read_the_inputs_of_the_layers(network: Small) -> None:
    out, of_out = network(torch.randn(2, 5, 8, 8)), torch.randn(2, 10)

    def backward() -> Iterable[Tensor]:
        out.backward(of_out)
        return [p.grad for p in network.parameters() if p.grad is not None]

    linear = (OUT + P + FC) + BIAS + (OUT + FC + P)
    assert bytes_moved(backward) == linear + (P + Y + SLOPE + Y + SLOPE) + (Y + X + W + B)


def test_bytes_are_those_of_the_precision_of_a_layer(network: Small) -> None:
    x = torch.randn(2, 5, 8, 8)

    def convolve() -> Iterable[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return [network.conv(x)]

    assert bytes_moved(convolve) == (X + W + B + Y) // 2


def test_a_sum_reads_its_other_operand_and_a_concatenation_costs_nothing(network: Small) -> None:
    x, conv = torch.randn(2, 5, 8, 8), network.conv
    assert bytes_moved(lambda: [conv(x) + conv(x)]) == 2 * (X + W + B + Y) + Y
    last = nn.Conv2d(16, 1, 1, bias=False)
    joined = 2 * (X + W + B + Y) + 2 * Y + 4 * 16 + 4 * 2 * 64
    assert bytes_moved(lambda: [last(torch.cat([conv(x), conv(x)], 1))]) == joined


def test_an_activation_in_place_is_written_once(network: Small) -> None:
    x = torch.randn(2, 5, 8, 8)
    assert bytes_moved(lambda: [network.conv(x).relu_().mul_(2)]) == X + W + B + Y


def test_an_update_reads_gradients_and_moves_weights_and_moments(network: Small) -> None:
    size = sum(p.nbytes for p in network.parameters())
    network(torch.randn(2, 5, 8, 8)).sum().backward()
    adam = torch.optim.AdamW(network.parameters())
    adam.step()
    assert bytes_of_update(adam) == 7 * size
    sgd = torch.optim.SGD(network.parameters(), lr=0.1)
    sgd.step()
    assert bytes_of_update(sgd) == 3 * size
    network.linear.weight.grad = None
    assert bytes_of_update(sgd) == 3 * (size - FC)
