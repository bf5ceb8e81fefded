"""The best image so far: the kernel equals the reference bit for bit, and needs no decision of the host."""

from itertools import product
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hpcphotoz.kernels.attack import reference
from tests.helpers.kernels.interpreter import (
    compiled,
    interpret,
    interpreted,
    on_cuda,
    passed_under_the_interpreter,
    thinned,
)

triton = pytest.importorskip("triton", reason="triton is not installed: the kernel cannot run")
from hpcphotoz.kernels.attack import select as kernel

# n, bands, height, width against programs of 4096 numbers: smaller, exactly one, several, odd; no images.
SHAPES = [(4, 5, 3, 3), (3, 1, 64, 64), (5, 5, 64, 64), (2, 3, 33, 47), (0, 5, 8, 8)]
FORMATS = [torch.contiguous_format, torch.channels_last]
interpret(kernel)
pytestmark = pytest.mark.usefixtures("poison")


def problem(
    shape: tuple[int, int, int, int],
    layout: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses that are better, equal, worse, NaN and infinite in turn."""
    g = torch.Generator().manual_seed(0)
    images = [torch.randn(shape, generator=g).to(dtype).contiguous(memory_format=layout) for _ in range(2)]
    n = shape[0]
    old = torch.tensor([0.0, 1.0, 2.0, -torch.inf, torch.inf])[:n]
    new = torch.tensor([0.5, 1.0, 1.0, torch.nan, 9.0])[:n]
    best, adv, old, new = (t.to(device) for t in (*images, old, new))
    return best, old, adv, new


@interpreted
@pytest.mark.parametrize(
    ("shape", "block", "layout", "dtype"),
    thinned(
        list(product(SHAPES, [kernel.BLOCK, 512], FORMATS, kernel.IMAGES)),
        lambda k: k % 3 == (k // 3 + k // 6) % 3,
    ),
)
def test_kernel_equals_reference_bit_for_bit(
    shape: tuple[int, int, int, int], block: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    best, old, adv, new = problem(shape, layout, dtype)
    wanted, before = best.clone(memory_format=torch.preserve_format), old.clone()
    loss = reference.select(wanted, old, adv, new)
    assert torch.equal(kernel.launch(best, old, adv, new, block), loss)
    assert torch.equal(best, wanted) and torch.equal(old, before) and best.stride() == wanted.stride()


@compiled
@pytest.mark.timeout(600)  # seconds on an idle machine, minutes on a busy one
@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_kernel_under_the_interpreter(slow: bool) -> None:
    assert passed_under_the_interpreter(__file__, "bit_for_bit", slow=slow) >= 10


def test_only_better_images_are_kept() -> None:
    best, old, adv, new = problem((5, 2, 3, 3))
    before = best.clone()
    loss = kernel.select(best, old, adv, new)
    assert loss.tolist() == [0.5, 1.0, 2.0, -torch.inf, torch.inf]  # NaN is never better
    assert torch.equal(best[0], adv[0]) and torch.equal(best[1:], before[1:])
    kernel.select(best, loss, adv + 1, new)
    assert torch.equal(best[0], adv[0])  # an equal loss is not better


def test_operator_passes_opcheck_and_compiles_as_one_graph() -> None:
    torch.library.opcheck(kernel.select, problem((5, 2, 3, 3)))

    def kept(best: Tensor, old: Tensor, adv: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        best = best + 0
        loss = kernel.select(best, old, adv, new)
        return best, loss

    given = problem((5, 2, 3, 3))
    for a, b in zip(
        torch.compile(kept, fullgraph=True, backend="aot_eager")(*given), kept(*given), strict=True
    ):
        assert torch.equal(a, b)


@compiled
@pytest.mark.parametrize("tracing_mode", ["fake", "symbolic"])
def test_the_launch_can_be_traced(tracing_mode: Literal["fake", "symbolic"]) -> None:
    # As torch.compile sees it on a GPU, with a batch of any size too.
    def launch(best: Tensor, old: Tensor, adv: Tensor, new: Tensor) -> Tensor:
        return kernel.launch(best, old, adv, new)

    graph = make_fx(launch, tracing_mode=tracing_mode)(*problem((4, 2, 3, 3)))
    assert "triton_kernel_wrapper" in graph.code


def test_operator_refuses_what_it_would_get_wrong() -> None:
    best, old, adv, new = problem((4, 2, 3, 3))
    with pytest.raises(ValueError, match="adv"):
        kernel.select(best, old, adv[:2], new)
    with pytest.raises(ValueError, match="loss .*want"):
        kernel.select(best, old, adv, new[:3])
    with pytest.raises(ValueError, match="call .contiguous"):
        kernel.select(best, old, adv.transpose(-1, -2), new)
    with pytest.raises(ValueError, match="best_loss .*float32"):
        kernel.select(best, old.double(), adv, new)
    with pytest.raises(ValueError, match="adv is on meta and the images are on cpu"):
        kernel.select(best, old, adv.to("meta"), new)


@on_cuda
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_operator_on_cuda_equals_reference(
    shape: tuple[int, int, int, int], layout: torch.memory_format
) -> None:
    best, old, adv, new = problem(shape, layout, device="cuda")
    wanted = best.clone(memory_format=torch.preserve_format)
    loss = reference.select(wanted, old, adv, new)
    assert torch.equal(kernel.select(best, old, adv, new), loss) and torch.equal(best, wanted)
