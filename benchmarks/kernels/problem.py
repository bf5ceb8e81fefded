"""The inputs of one kernel, and the tensors that it must read and write."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hpcphotoz.kernels import redshift_loss_reference
from hpcphotoz.kernels.attack import pgd_normalised_reference, reference, start_reference
from hpcphotoz.kernels.network import reference as network_reference

Call = Callable[[], object]
_DEFINITIONS = (
    reference,
    start_reference,
    pgd_normalised_reference,
    redshift_loss_reference,
    network_reference,
)


@dataclass(frozen=True)
class Problem:
    """The inputs of one kernel, and the large tensors that it reads and writes.

    Attributes:
        function: name of the definition and of the fused kernel.
        given: positional arguments.
        read: large tensors that it must read.
        written: one tensor like the large tensor that it writes.
        part: of the objects that are read and written.
        changed: those of the arguments that it changes in place.
        beside: another large tensor that it writes.
        exact: how many results, of those returned and then changed, are right to the bit in any case.
        others: rivals that this kernel alone has, by name.
        rounding: how far rivals may be off, of the largest number: they may round in between.
    """

    function: str
    given: tuple[Any, ...]
    read: tuple[Tensor, ...]
    written: Tensor
    part: float = 1.0
    changed: tuple[Tensor, ...] = ()
    beside: Tensor | None = None
    exact: int = 0
    others: Mapping[str, Call] = field(default_factory=dict)
    rounding: float = 1e-6

    @property
    def definition(self) -> Callable[..., Any]:
        """The plain torch form."""
        found: Callable[..., Any] = next(
            getattr(module, self.function) for module in _DEFINITIONS if hasattr(module, self.function)
        )
        return found

    @property
    def bytes(self) -> float:
        """Smallest number of bytes that a kernel must move: a tensor given twice is read once."""
        distinct = {tensor.data_ptr(): tensor.nbytes for tensor in self.read}
        written = self.written.nbytes + (0 if self.beside is None else self.beside.nbytes)
        return self.part * (sum(distinct.values()) + written)
