"""Overlap of the attack with the clean passes on one rank: none, or on two CUDA streams.

Overlap `off` attacks before all passes; the others must give the same result. `streams` attacks on a second
CUDA stream, `side`, while forward and backward passes of the clean objects run on the first, `main`. Both use
the weights of the same step:

    events    W             A                            W'
    main   ───●─ clean forward, backward ──┬─ adversarial forward, backward, all-reduce ─ update ─●──
              │                            │ waits for A
    side      └ waits for W ─ attack ──●───┘                                           waits for W' ...
                                       A
    W   recorded on main before the step: the weights are updated, the batch has arrived
    A   recorded on side after the attack

    buffer                          written             read           used again after
    weights                         main, update        both           side: W of the next step; main: A
    batch (main's memory)           main, before W      both           A: a reference is kept until main has
                                                                       waited for it
    attacked images and temporary   side, from W to A   main, after A  W of the next step: only then does side
    tensors (side's memory)                                            write its memory again
    gradients                       main                main           -

Gradients of the clean pass stay on the rank. They are averaged once, with those of the adversarial pass,
while its backward pass runs. The attack sets `requires_grad` of the parameters to False while it is
*launched*; the clean pass is launched afterwards and sees it as True. On a CPU there is one stream, and
either uses all cores: attack and clean passes run one after the other, which is logged once. So do those of
a network with batch normalisation: clean passes write the running statistics that the attack reads.

Overlap `ranks` receives the images from other processes: `hpcphotoz.training.overlap.exchange`.
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
    """Where a step gets its attacked images; called at every step in the order begin, finish, done."""

    overlaps: bool  # whether clean passes run between begin and finish

    def begin(self, batch: RankBatch) -> None:
        """Start the attack if it overlaps; the network has the weights of this step."""

    def finish(self, batch: RankBatch) -> Tensor:
        """Attacked images (m, B, H, W) of the rows `batch.attacked`."""

    def done(self) -> None:
        """End the step: all passes have been launched, and the weights change next."""


class NoOverlap:
    """The attack runs before all passes."""

    overlaps = False

    def __init__(self, generate: AttackFunction) -> None:
        self._generate = generate

    def begin(self, batch: RankBatch) -> None:
        """Do nothing: the attack runs in `finish`."""

    def finish(self, batch: RankBatch) -> Tensor:
        """Attack the batch."""
        return self._generate(batch)

    def done(self) -> None:
        """Do nothing: no tensors are kept."""


class SerialOverlap(NoOverlap):
    """Overlap `streams` where the two cannot run at once: the attack first, then the clean passes.

    Args:
        generate: the attack.
        reason: why, for the log.
    """

    overlaps = True

    def __init__(self, generate: AttackFunction, reason: str = "no CUDA device") -> None:
        super().__init__(generate)
        self._adv: Tensor | None = None
        _log.warning("overlap streams: %s: clean passes and attack run one after the other", reason)

    def begin(self, batch: RankBatch) -> None:
        """Attack the batch: with the running statistics of this step, which the clean passes change."""
        self._adv = self._generate(batch)

    def finish(self, batch: RankBatch) -> Tensor:
        """The images that `begin` attacked."""
        assert self._adv is not None
        return self._adv

    def done(self) -> None:
        """Release the images."""
        self._adv = None


class StreamOverlap:
    """Overlap `streams` on a GPU: the attack runs on a second CUDA stream; see the diagram above."""

    overlaps = True

    def __init__(self, generate: AttackFunction, device: torch.device) -> None:
        self._generate, self._device = generate, device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._attacked = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._held: list[RankBatch] = []
        self._adv: Tensor | None = None

    def begin(self, batch: RankBatch) -> None:
        """Launch the attack on the side stream."""
        self._held.append(batch)
        self._ready.record(torch.cuda.current_stream(self._device))
        self._side.wait_event(self._ready)
        with torch.cuda.stream(self._side):
            self._adv = self._generate(batch)
            self._attacked.record(self._side)

    def finish(self, batch: RankBatch) -> Tensor:
        """Let the main stream wait for the attack."""
        assert self._adv is not None
        torch.cuda.current_stream(self._device).wait_event(self._attacked)
        return self._adv

    def done(self) -> None:
        """Release batch and images: the main stream waits for the attack before it reuses their memory."""
        self._held.clear()
        self._adv = None
