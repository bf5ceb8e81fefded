"""The PGD step: the Triton kernel equals the reference bit for bit, and both have the properties of the
step.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hpcphotoz.kernels import reference

triton = pytest.importorskip("triton", reason="triton is not installed: the kernel cannot run")
from hpcphotoz.kernels import pgd as kernel  # noqa: E402

CASES = [
    # n, bands, height, width: smaller than a block, exactly one block (16 x 64 x 1), larger, odd, other band
    # counts
    (2, 5, 3, 3),
    (1, 1, 16, 64),
    (3, 5, 16, 17),
    (2, 3, 7, 5),
    (1, 6, 31, 33),
    (0, 5, 8, 8),
]


def problem(n: int, bands: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    x0 = torch.randn(n, bands, height, width, generator=g)
    eps = 0.1 + torch.rand(n, bands, generator=g)
    adv = x0 + eps[:, :, None, None] * (2 * torch.rand(x0.shape, generator=g) - 1)
    grad = torch.randn(x0.shape, generator=g)
    grad[torch.rand(x0.shape, generator=g) < 0.1] = 0
    grad[torch.rand(x0.shape, generator=g) < 0.1] = torch.nan
    step = 0.3 * eps
    lo, hi = torch.full((bands,), -1.5), torch.full((bands,), 1.5)
    return adv, x0, grad, eps, step, lo, hi


@pytest.mark.parametrize("shape", CASES)
def test_reference_stays_in_the_ball_and_the_bounds(shape: tuple[int, int, int, int]) -> None:
    adv, x0, grad, eps, step, lo, hi = problem(*shape)
    out = reference.pgd(adv, x0, grad, eps, step, lo, hi)
    # x0 +- eps is rounded once, and so is the difference taken here: half an ulp (2^-24) of |x0| + eps each.
    ulp = 2.0**-23 * (x0.abs() + eps[:, :, None, None])
    within = (out - x0).abs() <= eps[:, :, None, None] + ulp
    clipped = (x0.abs() > 1.5) & (out.abs() <= 1.5)  # the bounds win where x0 lies outside them
    assert (within | clipped).all()
    assert (out >= -1.5).all() and (out <= 1.5).all()


def test_reference_climbs_by_exactly_one_step_inside_the_ball() -> None:
    x0, one = torch.zeros(1, 2, 2, 2), torch.ones(1, 2)
    grad = torch.tensor([3.0, -2.0, 0.0, torch.nan, 1e-30, -torch.inf, torch.inf, -0.0]).reshape(1, 2, 2, 2)
    free = torch.full((2,), torch.inf)
    moved = reference.pgd(x0, x0, grad, one, 0.25 * one, -free, free)
    assert moved.flatten().tolist() == [0.25, -0.25, 0, 0, 0.25, -0.25, 0.25, 0]


@pytest.mark.parametrize("shape", CASES)
def test_projection_is_idempotent_and_zero_gradient_a_fixed_point(shape: tuple[int, int, int, int]) -> None:
    adv, x0, grad, eps, step, lo, hi = problem(*shape)
    once = reference.pgd(adv, x0, grad, eps, step, lo, hi)
    assert torch.equal(reference.pgd(once, x0, torch.zeros_like(grad), eps, step, lo, hi), once)


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the subprocess of the test below"
)
@pytest.mark.parametrize("shape", CASES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernel_equals_reference_bit_for_bit(
    shape: tuple[int, int, int, int], channels_last: bool, dtype: torch.dtype
) -> None:
    adv, x0, grad, eps, step, lo, hi = problem(*shape)
    grad = grad.to(dtype)
    if channels_last:
        adv, x0, grad = (t.contiguous(memory_format=torch.channels_last) for t in (adv, x0, grad))
    out = kernel.launch(adv, x0, grad, eps, step, lo, hi)
    assert torch.equal(out, reference.pgd(adv, x0, grad, eps, step, lo, hi))
    assert out.stride() == x0.stride()


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="is the subprocess")
def test_kernel_under_the_interpreter() -> None:
    # The variable must be set before the kernel is defined, so a process of its own runs this file.
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "bit_for_bit", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert found.returncode == 0 and "36 passed" in found.stdout, found.stdout + found.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", [*CASES, (64, 5, 64, 64)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_operator_on_cuda_equals_reference(shape: tuple[int, int, int, int], channels_last: bool) -> None:
    tensors = [t.cuda() for t in problem(*shape)]
    if channels_last:
        tensors[:3] = [t.contiguous(memory_format=torch.channels_last) for t in tensors[:3]]
    assert torch.equal(kernel.pgd(*tensors), reference.pgd(*tensors))


def test_operator_passes_opcheck() -> None:
    torch.library.opcheck(kernel.pgd, problem(2, 5, 4, 4))


def test_operator_refuses_what_it_would_get_wrong() -> None:
    adv, x0, grad, eps, step, lo, hi = problem(2, 5, 4, 4)
    strided = torch.randn(2, 5, 4, 8)[..., ::2]
    with pytest.raises(ValueError, match="contiguous"):
        kernel.pgd(adv, x0, strided, eps, step, lo, hi)
    with pytest.raises(ValueError, match="float32"):
        kernel.pgd(adv.double(), x0.double(), grad, eps, step, lo, hi)
    with pytest.raises(ValueError, match=r"eps .*want contiguous \(N, B\)"):
        kernel.pgd(adv, x0, grad, eps[:1], step, lo, hi)
    with pytest.raises(ValueError, match="one .N, B, H, W."):
        kernel.pgd(adv[:1], x0, grad, eps, step, lo, hi)
    with pytest.raises(ValueError, match="lo"):
        kernel.pgd(adv, x0, grad, eps, step, lo[:1], hi)
