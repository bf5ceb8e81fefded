"""The ends of overlap `ranks` in a rehearsal: this rank makes what the other ranks would have sent.

learner    attacks its own objects, and reads them from messages as those of the attackers
attacker   receives its own weights, as those after an update
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributed as dist

from hpcphotoz.training.distributed.agreement import Verdict
from hpcphotoz.training.overlap.exchange import AttackerEndpoint, LearnerEndpoint
from hpcphotoz.training.overlap.messages import header
from hpcphotoz.training.rank_batch import RankBatch


class RehearsedLearner(LearnerEndpoint):
    """Receives attacked images that it has made itself, with the weights of the same step."""

    generate: Callable[[RankBatch], Tensor]  # the attack; set before the first step

    def __post_init__(self) -> None:
        super().__post_init__()
        self.attack_s: list[float] = []  # of each step, which attackers would spend

    def begin(self, batch: RankBatch) -> None:
        """Attack, and write the images into the messages of the step."""
        start, clean = time.perf_counter(), batch.images[batch.attacked]
        adv = self.generate(batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.attack_s.append(time.perf_counter() - start)
        super().begin(batch)
        for _, message, start, stop in self._coming:
            header(message)[:3] = torch.tensor([batch.step, 0, 0])
            mine, rows = self.topology.rows(batch, start, stop)
            self._images.write(message, rows, adv[mine], clean[mine])


class RehearsedAttacker(AttackerEndpoint):
    """Receives its own weights; those of the learners would have changed."""

    def _receive_weights(self, message: Tensor) -> dist.Work:
        header(message)[:2] = torch.tensor([self._version + 1, int(Verdict.GO_ON)])
        self._weights.write(message)
        return super()._receive_weights(message)
