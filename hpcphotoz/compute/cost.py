"""What an attack costs: floating-point operations as they are dispatched, and the law."""

from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def law(steps: int, fraction: float) -> float:
    """Cost of a training step of which a fraction is attacked by PGD-K, in clean steps: 1 + 2 K f / 3.

    Forward pass, input gradient and weight gradient cost a unit each: a clean step three, a step of an attack
    two.
    """
    return 1 + 2 * steps * fraction / 3


def flops(work: Callable[[], object]) -> int:
    """Operations of the convolutions and matrix products that a call dispatches, forwards and backwards.

    torch's own FlopCounterMode counts the same and fails with `torch.autograd.grad` (torch 2.13).
    """
    counter = _Counter()
    with counter:
        work()
    return counter.total


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out
