"""Muon: orthogonal steps of the size of AdamW's for convolutions, AdamW's own steps for all else."""

import copy

import pytest
import torch
from torch import Tensor, nn

from hpcphotoz.config import Compute, Optimiser
from hpcphotoz.training.compute import compute_options
from hpcphotoz.training.optimisation.optimiser import Muon, make_optimiser, orthogonalised

RATE = 0.01


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(6 * 36, 5)
    return compute_options(Compute(precision="fp32"), torch.device("cpu")).placed(
        nn.Sequential(*layers), torch.device("cpu")
    )


def optimiser(module: nn.Module, algorithm: str = "muon", **options: float) -> torch.optim.Optimizer:
    given = Optimiser(algorithm=algorithm, learning_rate=RATE, **options)
    return make_optimiser(given, module.parameters(), fused=True)


def take_steps(module: nn.Module, by: torch.optim.Optimizer, first: int, last: int) -> None:
    for k in range(first, last):
        by.zero_grad()
        module(torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(k))).square().sum().backward()
        by.step()


@pytest.mark.parametrize("shape", [(8, 8), (8, 40), (40, 8)])
def test_singular_values_become_about_one_and_singular_vectors_stay(shape: tuple[int, int]) -> None:
    left, _ = torch.linalg.qr(torch.randn(shape[0], 8, generator=torch.Generator().manual_seed(1)))
    right, _ = torch.linalg.qr(torch.randn(shape[1], 8, generator=torch.Generator().manual_seed(2)))
    matrix = left @ torch.diag(torch.logspace(-1.5, 1, 8)) @ right.T
    found = left.T @ orthogonalised(matrix) @ right
    # Jordan et al.: five iterations end between 0.68 and 1.13 for values from about 0.003 of the norm on.
    assert (found.diagonal() > 0.65).all() and (found.diagonal() < 1.25).all()
    assert (found - torch.diag(found.diagonal())).abs().max() < 1e-3
    assert not orthogonalised(torch.zeros(shape)).any()


def test_the_iterations_are_those_of_newton_and_schulz() -> None:
    matrix = torch.randn(8, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = matrix / torch.linalg.vector_norm(matrix)
    for _ in range(5):  # the quintic of Jordan et al., as they write it
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    torch.testing.assert_close(orthogonalised(matrix), x)


def test_only_convolutions_leave_adamw() -> None:
    ours, theirs = network(), network()
    take_steps(ours, optimiser(ours, weight_decay=0.1), 0, 1)
    take_steps(theirs, optimiser(theirs, "adamw", weight_decay=0.1), 0, 1)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q) == (p.ndim != 4), name


def test_steps_of_convolutions_are_orthogonal_and_as_large_as_those_of_adamw() -> None:
    module = network()
    before = [p.detach().clone() for p in module.parameters()]
    take_steps(module, optimiser(module), 0, 1)
    moved = [p.detach() - q for p, q in zip(module.parameters(), before, strict=True) if p.ndim == 4]
    for change in moved:
        matrix = change.flatten(1)
        values = torch.linalg.svdvals(matrix) / (0.2 * RATE * max(matrix.shape) ** 0.5)
        assert values.max() < 1.25 and values.min() > 0.3, "0.2 sqrt(larger side) learning rates"


def test_weights_decay_without_a_gradient_of_the_loss() -> None:
    module = network()
    before = [p.detach().clone() for p in module.parameters()]
    by = optimiser(module, weight_decay=0.5)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    by.step()
    for p, q in zip(module.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), (1 - RATE * 0.5) * q)


def test_a_step_that_found_infinity_changes_nothing() -> None:
    module = network()
    by = optimiser(module)
    take_steps(module, by, 0, 2)
    state, before = copy.deepcopy(by.state_dict()["state"]), copy.deepcopy(module.state_dict())
    for p in module.parameters():
        p.grad = torch.full_like(p, torch.nan)
    by.found_inf = torch.ones(())  # type: ignore[attr-defined]
    assert isinstance(by, Muon)
    by.step()
    assert all(torch.equal(p, q) for p, q in zip(module.state_dict().values(), before.values(), strict=True))
    for old, new in zip(state.values(), by.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old if isinstance(old[name], Tensor))


def test_a_checkpoint_continues_to_the_bit() -> None:
    whole = network()
    take_steps(whole, optimiser(whole), 0, 6)
    begun = network()
    first = optimiser(begun)
    take_steps(begun, first, 0, 3)
    resumed = network()
    resumed.load_state_dict(begun.state_dict())
    second = optimiser(resumed)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    take_steps(resumed, second, 3, 6)
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
