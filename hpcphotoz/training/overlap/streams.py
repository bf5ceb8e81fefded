"""Where adversarial images come from, and what goes on beside: nothing, or the clean passes.

`off` makes them before the passes: the oracle of the others. `streams` makes them on a second CUDA stream
while the clean objects' forward and backward passes run on the first, all against the weights of one step:

    events    W             A                            W'
    main   ───●─ clean forward, backward ──┬─ adversarial forward, backward, all-reduce ─ update ─●──
              │                            │ waits for A
    side      └ waits for W ─ attack ──●───┘                                           waits for W' ...
                                       A
    W   recorded on main before the step: weights are updated, the batch is there
    A   recorded on side after the attack

    buffer                          written             read           used again after
    weights                         main, update        both           side: W of the next step; main: A
    batch (main's memory)           main, before W      both           A: a reference is kept until main has
                                                                       waited for it
    attacked images, and what the   side, from W to A   main, after A  W of the next step: only then does side
    attack takes (side's memory)                                       write its memory again
    gradients                       main                main           -

Gradients of the clean pass stay on the rank; they are averaged once, with those of the adversarial pass,
whose backward pass the all-reduce overlaps. The attack freezes the parameters while it is *launched*: the
clean pass is launched after, so that neither sees the other's flags. On a CPU there is one stream, and the
cores are busy
with either: clean passes and attack run one after the other, which is said once.

`ranks` receives them from other processes: `hpcphotoz.training.overlap.exchange`.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from hpcphotoz.training.rank_batch import RankBatch

_log = logging.getLogger(__name__)
AttackFunction = Callable[[RankBatch], Tensor]


class AdversarySource(Protocol):
    """A source of attacked images, asked in this order at every step: begin, finish, done."""

    overlaps: bool  # whether clean passes run between begin and finish

    def begin(self, batch: RankBatch) -> None:
        """The weights are those of this step from now on."""

    def finish(self, batch: RankBatch) -> Tensor:
        """Attacked images (m, B, H, W) of the rows `batch.attacked`."""

    def done(self) -> None:
        """All passes of the step have been launched; the weights change next."""


class NoOverlap:
    """Made when they are asked for, before any pass."""

    overlaps = False

    def __init__(self, generate: AttackFunction) -> None:
        self._generate = generate

    def begin(self, batch: RankBatch) -> None:
        """Nothing yet."""

    def finish(self, batch: RankBatch) -> Tensor:
        """Attack."""
        return self._generate(batch)

    def done(self) -> None:
        """Nothing is held."""


class SerialOverlap(NoOverlap):
    """`streams` on a CPU: the clean passes first, then the attack."""

    overlaps = True

    def __init__(self, generate: AttackFunction) -> None:
        super().__init__(generate)
        _log.warning("overlap streams: no CUDA device: clean passes and attack run one after the other")


class StreamOverlap:
    """`streams` on a GPU; see the diagram above.

    Args:
        generate: the attack.
        device: a CUDA device.
    """

    overlaps = True

    def __init__(self, generate: AttackFunction, device: torch.device) -> None:
        self._generate, self._device = generate, device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._attacked = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._held: list[RankBatch] = []
        self._adv: Tensor | None = None

    def begin(self, batch: RankBatch) -> None:
        """Launch the attack beside what main does next."""
        self._held.append(batch)
        self._ready.record(torch.cuda.current_stream(self._device))
        self._side.wait_event(self._ready)
        with torch.cuda.stream(self._side):
            self._adv = self._generate(batch)
            self._attacked.record(self._side)

    def finish(self, batch: RankBatch) -> Tensor:
        """Let main wait for the attack."""
        assert self._adv is not None
        torch.cuda.current_stream(self._device).wait_event(self._attacked)
        return self._adv

    def done(self) -> None:
        """Main has waited: what it holds may be freed, and is used again in the order of the diagram."""
        self._held.clear()
        self._adv = None
