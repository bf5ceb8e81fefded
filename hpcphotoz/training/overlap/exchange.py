"""Overlap `ranks`: attackers send attacked images to learners and receive weights, asynchronously.

With staleness s, the attack of step t uses the weights after t - s updates (or the first weights of this
process), whichever rank was quicker. The same run twice gives the same loss curve, and s = 0 gives the curve
of overlap `off`.

    s = 0   learner    clean 5 │ adversarial 5, update │ clean 6 │ ...      waits for the images only
            attacker   attack 5 │ (waits for weights 6) │ attack 6 │ ...
    s = 1   learner    clean 5, adversarial 5, update │ clean 6, ...
            attacker   attack 6 (weights 5)            │ attack 7 (weights 6)

    buffer                        written by          read by           used again
    images of a step, attacker    attack              isend             never: freed after its wait
    images of a step, learner     irecv               adversarial pass  never: freed after it
    weights, two, learner         copy after update   broadcast         after its wait, two versions later
    weights, two, attacker        broadcast           copy              two versions later: with staleness the
                                                                        next one arrives during the attack

An attacker asks for the weights after v updates only when it has sent its images of all steps before v, on
which these updates depend. On a GPU a pending receive occupies the device, and loading a kernel may wait
until the device is free. Asked for earlier, the receive would wait for an attack that itself waits for the
receive: a deadlock.

The header of the images carries the flags of the attacker: asked to stop, cannot read. Learners agree on a
verdict, which the header of the next weights carries. Until an attacker reads it, it has sent the images of
`staleness` further steps. Learners receive and drop these, so that no message stays unmatched.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist

from hpcphotoz.compute.statistics import running_statistics
from hpcphotoz.training.distributed.agreement import Verdict
from hpcphotoz.training.overlap.messages import ImageMessages, WeightMessages, header
from hpcphotoz.training.overlap.topology import ExchangeTopology
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.run.signals import StopRequest


@dataclass
class _Endpoint:
    """Topology and message buffers, which both kinds of ranks have."""

    topology: ExchangeTopology
    module: nn.Module  # the network whose weights are sent or received
    shape: tuple[int, int, int]  # (B, H, W) of an image
    device: torch.device
    first: int  # first step of this process
    waiting: Callable[[str], AbstractContextManager[None]]  # times a wait, given what the rank waits for

    def __post_init__(self) -> None:
        topology = self.topology
        self._images = ImageMessages(topology.overlap.images_transfer, self.shape, self.device)
        weights = [*self.module.parameters(), *running_statistics(self.module)]
        self._weights = WeightMessages(weights, topology.overlap.weights_transfer)
        in_group = topology.rank == 0 or topology.split.is_attacker(topology.rank)
        self._free = deque([self._weights.empty(), self._weights.empty()] if in_group else [])


class LearnerEndpoint(_Endpoint):
    """Receives attacked images on a learner; on rank 0 also sends the weights to the attackers."""

    overlaps = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._sent: deque[tuple[dist.Work, Tensor]] = deque()
        self._coming: list[tuple[dist.Work, Tensor, int, int]] = []
        self._given_up = 0
        # Number of attackers that are asked to stop, and number that cannot read.
        self.flags = torch.zeros(2, dtype=torch.float64)

    def begin(self, batch: RankBatch) -> None:
        """Start to receive the images of this step; they arrive during the clean passes."""
        self._coming = self._receive(batch.step)

    def finish(self, batch: RankBatch) -> Tensor:
        """Wait for the images; returns them as (m, B, H, W)."""
        clean = batch.images[batch.attacked]
        adv, self.flags = torch.empty_like(clean), torch.zeros(2, dtype=torch.float64)
        for request, message, start, stop in self._coming:
            with self.waiting("attacked images"):
                request.wait()
                fields = header(message).cpu()  # on a GPU the host waits here
            if int(fields[0]) != batch.step:
                raise RuntimeError(f"attacked images of step {int(fields[0])} arrived at step {batch.step}")
            self.flags += fields[1:3].double()
            mine, rows = self.topology.rows(batch, start, stop)
            adv[mine] = self._images.read(message, rows, clean[mine])
        return adv

    def done(self) -> None:
        """Free the messages of the step."""
        self._coming = []

    def publish(self, version: int, verdict: Verdict) -> None:
        """Send the weights after `version` updates, and the verdict, if an attack will need them."""
        if self.topology.rank or not self.topology.needed(version, self.first):
            return
        while not self._free:
            request, message = self._sent.popleft()
            with self.waiting("attackers to take weights"):
                request.wait()
            self._free.append(message)
        message = self._free.popleft()
        header(message)[:2] = torch.tensor([version, int(verdict)])
        self._weights.write(message)
        request = dist.broadcast(message, 0, group=self.topology.weights_group, async_op=True)
        self._sent.append((request, message))

    def give_up(self, version: int) -> None:
        """Tell attackers to stop after weights `version` have already been sent with GO_ON."""
        if version < self.topology.last:
            self._drop(range(version, version + 1))
            self.publish(version + 1, Verdict.PROBLEM)
            self._given_up = 1

    def end(self, version: int, verdict: Verdict) -> None:
        """Receive and drop the images that attackers sent before they read the verdict of `version`."""
        if verdict is not Verdict.GO_ON:
            version += self._given_up
            self._drop(range(version, min(version + self.topology.overlap.max_staleness, self.topology.last)))
        while self._sent:
            request, _ = self._sent.popleft()
            with self.waiting("attackers to take weights"):
                request.wait()

    def _drop(self, steps: range) -> None:
        for step in steps:
            for request, *_ in self._receive(step):
                with self.waiting("images that are not needed any more"):
                    request.wait()

    def _receive(self, step: int) -> list[tuple[dist.Work, Tensor, int, int]]:
        coming = []
        for message_slice in self.topology.message_slices(step):
            message = self._images.empty(message_slice.stop - message_slice.start)
            request = dist.irecv(message, message_slice.rank, tag=step)
            assert request is not None
            coming.append((request, message, message_slice.start, message_slice.stop))
        return coming


class AttackerEndpoint(_Endpoint):
    """Receives weights on an attacker, and sends the attacked images to the learners."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._version = self._steps_sent = self.first
        self._coming: tuple[dist.Work, Tensor] | None = None
        self._sent: deque[list[tuple[dist.Work, Tensor]]] = deque()

    def run(
        self, rank_batches: Iterator[RankBatch], generate: Callable[[RankBatch], Tensor], stop: StopRequest
    ) -> str | None:
        """Receive weights, attack and send the images, until the last step or until the learners stop.

        Args:
            rank_batches: this rank's slice of the global batch of every step.
            generate: the attack.
            stop: request to stop on this rank, which is sent to the learners with the images.

        Returns:
            Why this rank could not read its data, or None.
        """
        problem = None
        for batch in rank_batches:
            problem = batch.problem
            if self.weights_for(batch.step) is not Verdict.GO_ON:
                break
            self.send(batch, generate(batch), stop=bool(stop.reason))
        while self._sent:
            self._wait_for_oldest()
        return problem

    def weights_for(self, step: int) -> Verdict:
        """Load the weights with which a step is attacked; returns the verdict: attack only if it is GO_ON."""
        while self._version < max(step - self.topology.overlap.max_staleness, self.first):
            assert self._coming is not None
            request, message = self._coming
            with self.waiting(f"weights {self._version + 1}"):
                request.wait()
                version, verdict = header(message)[:2].tolist()
            if version != self._version + 1:
                raise RuntimeError(f"weights {version} arrived where {self._version + 1} were due")
            self._version, self._coming = version, None
            if verdict != Verdict.GO_ON:
                return Verdict(verdict)
            self._weights.read(message)
            self._free.append(message)
            self._ask()
        return Verdict.GO_ON

    def send(self, batch: RankBatch, adv: Tensor, stop: bool) -> None:
        """Send the attacked images of a step to their learners.

        Args:
            batch: the rank batch; images of skipped objects are sent as NaN.
            adv: (m, B, H, W), the attacked images of `batch.attacked`.
            stop: whether this rank is asked to stop.
        """
        clean, requests = batch.images[batch.attacked], []
        for message_slice in self.topology.message_slices(batch.step):
            message = self._images.empty(message_slice.stop - message_slice.start)
            fields = header(message)
            fields[:3] = torch.tensor([batch.step, int(stop), int(batch.problem is not None)])
            mine, rows = self.topology.rows(batch, message_slice.start, message_slice.stop)
            self._images.write(message, rows, adv[mine], clean[mine])
            request = dist.isend(message, message_slice.rank, tag=batch.step)
            assert request is not None
            requests.append((request, message))
        self._sent.append(requests)
        while len(self._sent) > 2:
            self._wait_for_oldest()
        self._steps_sent = batch.step + 1
        self._ask()

    def _wait_for_oldest(self) -> None:
        for request, _ in self._sent.popleft():
            with self.waiting("learners to take images"):
                request.wait()

    def _ask(self) -> None:
        """Start to receive the next weights, once all images on which they depend have been sent."""
        due = self._coming is None and self._version < self._steps_sent
        if due and self.topology.needed(self._version + 1, self.first):
            message = self._free.popleft()
            self._coming = (self._receive_weights(message), message)

    def _receive_weights(self, message: Tensor) -> dist.Work:
        request: dist.Work = dist.broadcast(message, 0, group=self.topology.weights_group, async_op=True)
        return request
