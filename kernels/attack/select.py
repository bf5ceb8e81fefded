"""Keeps the best image of each object so far, without a copy to the host.

Definition: `reference.select`. For an object that did not improve, two losses are read and no image. The
operator `hpcphotoz::select` runs the kernel on CUDA tensors and the reference elsewhere; the kernel itself
runs on CPU tensors under TRITON_INTERPRET=1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from hpcphotoz.kernels import checks
from hpcphotoz.kernels.attack import reference

BLOCK = 4096  # numbers a program, a power of two: most programs have nothing to do, so fewer and larger ones
IMAGES = (torch.float32, torch.bfloat16, torch.float16)


@triton.jit  # type: ignore[untyped-decorator]
def _select_kernel(  # type: ignore[no-untyped-def]
    out, best, best_loss, adv, loss, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    blocks: tl.constexpr = tl.cdiv(SIZE, BLOCK)
    n = (tl.program_id(0) // blocks).to(tl.int64)  # N B H W passes 2^31 elements at survey batch sizes
    block = tl.program_id(0) % blocks
    old = tl.load(best_loss + n)
    new = tl.load(loss + n)
    better = new > old
    if block == 0:  # to memory of its own: the other programs of the object may not have read the old one yet
        tl.store(out + n, tl.where(better, new, old))
    if better:
        i = block * BLOCK + tl.arange(0, BLOCK)
        tl.store(best + n * SIZE + i, tl.load(adv + n * SIZE + i, i < SIZE), i < SIZE)


def launch(best: Tensor, best_loss: Tensor, adv: Tensor, loss: Tensor, block: int = BLOCK) -> Tensor:
    """Run the kernel itself, on whatever device the tensors are; arguments as `reference.select`."""
    size = int(best.shape[1] * best.shape[2] * best.shape[3])
    if best.numel() == 0:
        return torch.where(loss > best_loss, loss, best_loss)
    out = torch.empty_like(best_loss)
    block = min(block, triton.next_power_of_2(size))
    programs = best.shape[0] * triton.cdiv(size, block)
    with checks.on_device(best):
        wrap_triton(_select_kernel)[(programs,)](out, best, best_loss, adv, loss, SIZE=size, BLOCK=block)
    return out


@triton_op("hpcphotoz::select", mutates_args={"best"})
def select(best: Tensor, best_loss: Tensor, adv: Tensor, loss: Tensor) -> Tensor:
    """`reference.select` as a torch operator: the fused kernel on CUDA, the reference elsewhere.

    Raises:
        ValueError: shapes, types, layouts or devices that do not belong together, as `checks` has them;
            images may have any of the types `IMAGES`, `best` and `adv` the same.
    """
    checks.check_dense("best", best, IMAGES)
    checks.check_like("adv", adv, best, (best.dtype,))
    checks.check_vector("best_loss", best_loss, best, torch.float32)
    checks.check_vector("loss", loss, best, torch.float32)
    if not best.is_cuda:
        return reference.select(best, best_loss, adv, loss)
    return launch(best, best_loss, adv, loss)
