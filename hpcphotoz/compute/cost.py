"""The cost of an attack: operations counted as torch dispatches them, and the law that predicts them."""

from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def attack_cost_law(steps: int, fraction: float) -> float:
    """Cost of an adversarial training step in units of a clean one: 1 + 2 K f / 3.

    Forward pass, input gradient and weight gradient cost about the same: a clean step has all three, a step
    of an attack the first two.

    Args:
        steps: K, steps of PGD.
        fraction: f, the attacked fraction of a batch.
    """
    return 1 + 2 * steps * fraction / 3


def flops(call: Callable[[], object]) -> int:
    """Count the operations of the convolutions and matrix products in a call, backward passes included.

    torch's own FlopCounterMode counts the same but fails with `torch.autograd.grad` (torch 2.13).
    """
    counter = _Counter()  # type: ignore[no-untyped-call]
    with counter:
        call()
    return counter.total


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out
