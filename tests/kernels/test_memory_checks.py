"""The checks of memory that all kernel tests use find what they are there for, in every kernel."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.kernels.interpreter import compiled, interpreted, passed_under_the_interpreter
from tests.helpers.kernels.memory_checks import checked
from tests.helpers.kernels.prelu_problems import problem as prelu_problem
from tests.helpers.kernels.step_problems import CASES, problem

triton = pytest.importorskip("triton", reason="triton is not installed: the kernels cannot run")
import triton.language as tl

from hpcphotoz.kernels import load, redshift_loss
from hpcphotoz.kernels.attack import flux, l2, pgd, select, start
from hpcphotoz.kernels.checks import StepArguments
from hpcphotoz.kernels.network import backward, forward

pytestmark = pytest.mark.usefixtures("poison")


def launches() -> dict[str, tuple[Any, Callable[[], object]]]:
    """Each kernel that writes memory of torch.empty, on inputs that several programs share."""
    p = problem((3, 5, 7, 11), CASES[1])
    step = StepArguments(**p)
    key, ids = torch.tensor([1, 2]), torch.arange(3)
    stored, code = (100 * p["x0"]).to(torch.int16), torch.arange(3)
    square = stored[..., :7].contiguous()
    loss = (torch.randn(9, 180), 0.4 * torch.rand(9), None, "crps", 0.0, 0.4 / 180)
    best = p["x0"].clone()
    activation = prelu_problem((3, 7, 5, 6), "halve", layout=torch.channels_last)
    return {
        "pgd": (pgd, lambda: pgd.launch(step, block=64)),
        "momentum": (pgd, lambda: pgd.launch(step, p["x0"], block=64)),
        "l2": (l2, lambda: l2.launch(step)),
        "flux": (flux, lambda: flux.launch(step)),
        "start": (start, lambda: start.launch(p["x0"], ids, p["eps"], p["lo"], p["hi"], key, groups=16)),
        "load": (load, lambda: load.launch(square, torch.ones(3, 5), code, tile=4)),
        "select": (select, lambda: select.launch(best, torch.zeros(3), p["adv"], torch.ones(3))),
        "redshift_loss": (redshift_loss, lambda: redshift_loss.launch(*loss)),
        "prelu_pool": (forward, lambda: forward.launch(*activation.forward, block=64)),
        "prelu_pool_gradients": (backward, lambda: backward.launch(*activation, block=64)),
    }


class WithoutLast:
    """A kernel whose last program never runs."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = checked(kernel)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self._kernel[(*grid[:-1], grid[-1] - 1)]


def outputs(found: object) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)  # type: ignore[call-overload]


@interpreted
@pytest.mark.parametrize(
    "name",
    "pgd momentum l2 flux start load select redshift_loss prelu_pool prelu_pool_gradients".split(),
)
def test_under_interpreter_a_program_that_does_not_run_leaves_nan(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, launch = launches()[name]
    monkeypatch.setattr(module, "wrap_triton", checked)
    assert all(t.isfinite().all() for t in outputs(launch()))
    monkeypatch.setattr(module, "wrap_triton", WithoutLast)
    assert all(t.isnan().any() for t in outputs(launch()))


@triton.jit  # type: ignore[untyped-decorator]
def _sum_kernel(out, x, N: tl.constexpr, OTHER: tl.constexpr, PAST: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, 8)
    if OTHER:
        found = tl.load(x + i, i < N, 0.0)
    else:
        found = tl.load(x + i, i < N)
    tl.store(out + PAST, tl.sum(found, 0))


@interpreted
def test_under_interpreter_a_lane_that_no_load_fills_is_nan() -> None:
    out, x = torch.zeros(1), torch.ones(5)
    checked(_sum_kernel)[(1,)](out, x, N=5, OTHER=True, PAST=0)
    assert out.item() == 5
    checked(_sum_kernel)[(1,)](out, x, N=5, OTHER=False, PAST=0)
    assert out.isnan()


@interpreted
@pytest.mark.parametrize(("verb", "n", "past"), [("reads 1 places", 6, 0), ("writes 1 places", 5, 1)])
def test_under_interpreter_places_outside_the_tensors_are_refused(verb: str, n: int, past: int) -> None:
    memory = torch.ones(64)  # a view of memory that is there: no fault of the processor would tell
    with pytest.raises(Exception, match=verb):
        checked(_sum_kernel)[(1,)](memory[:1], memory[8:13], N=n, OTHER=True, PAST=past)


@compiled
@pytest.mark.timeout(600)  # seconds on an idle machine, minutes on a busy one
def test_checks_under_the_interpreter() -> None:
    assert passed_under_the_interpreter(__file__, "under_interpreter", slow=False) == 13


def test_new_memory_is_poisoned() -> None:
    assert torch.empty(9).isnan().all() and torch.empty_like(torch.zeros(9).bfloat16()).isnan().all()
    assert (torch.empty(9, dtype=torch.int16) == 32767).all() and torch.empty(9, dtype=torch.bool).all()
