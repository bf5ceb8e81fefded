"""Parts of a batch in threads: the network's own results, in order, for any number of threads."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from hpcphotoz.compute.parts import ROWS, ForwardInParts


class Network(nn.Module):
    """Says in which thread count it was called; refuses negative E(B-V)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(12, 4), list[tuple[int, int]]()

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        """Logits (N, 4)."""
        if (ebv < 0).any():
            raise ValueError("negative E(B-V)")
        self.calls.append((len(images), torch.get_num_threads()))
        out: Tensor = self.layer(images.flatten(1)) + ebv[:, None]
        return out


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("count", "each"), [(1, 1), (2, 1), (5, 1), (8, 2)])
def test_results_are_those_of_the_network_in_order(count: int, each: int) -> None:
    torch.set_num_threads(count)
    network, n = Network(), 3 * ROWS + 5
    images, ebv = torch.randn(n, 3, 2, 2), torch.rand(n)
    parts = ForwardInParts(network, n)
    found = parts(images, ebv)
    assert not found.requires_grad and torch.get_num_threads() == count
    assert sorted(network.calls) == [(5, each), *[(ROWS, each)] * 3]
    expected = [
        network(*part) for part in zip(torch.split(images, ROWS), torch.split(ebv, ROWS), strict=True)
    ]
    assert torch.equal(found, torch.cat(expected))
    network.calls.clear()
    assert torch.equal(parts(images[:4], ebv[:4]), network(images[:4], ebv[:4]))
    assert network.calls[0] == (4, count), "one part has all threads"


def test_an_error_in_a_thread_is_raised() -> None:
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match=r"negative E\(B-V\)"):
        ForwardInParts(Network(), 2 * ROWS)(torch.zeros(2 * ROWS, 3, 2, 2), torch.full((2 * ROWS,), -1.0))
    assert torch.get_num_threads() == 2
