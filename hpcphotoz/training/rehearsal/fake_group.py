"""torch's fake process group: collectives of many ranks in one process, which send nothing.

A sum over ranks is this rank's own part, a broadcast leaves a tensor as it is, and every rank seems to give
what this one gives. Nothing arrives, so that in overlap `ranks` this rank makes what others would have sent:

    learner    attacks its own objects, and reads them from messages as those of the attackers
    attacker   receives its own weights, as those after an update
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from hpcphotoz.training.distributed.agreement import Verdict
from hpcphotoz.training.distributed.group import Subgroup
from hpcphotoz.training.monitoring.lost_ranks import JoinedRanks, WaitLimits, joined
from hpcphotoz.training.overlap.exchange import AttackerEndpoint, LearnerEndpoint
from hpcphotoz.training.overlap.messages import header
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.rehearsal.ranks import RehearsedRanks


class _NoLimits(WaitLimits):
    """Limits of waits that a fake group does not take: nobody waits in it."""

    def add(self, group: dist.ProcessGroup | None) -> None:
        """Leave the group as it is."""


@contextmanager
def fake_process_group(ranks: RehearsedRanks) -> Iterator[None]:
    """A block in which this process is one of many ranks; one rank alone has no group, as in training."""
    if ranks.size == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend

    together = JoinedRanks(None, _NoLimits(0, 1))
    dist.init_process_group("fake", store=FakeStore(), rank=ranks.rank, world_size=ranks.size)
    joined.append(together)
    try:
        yield
    finally:
        joined.remove(together)
        gc.collect()  # DistributedDataParallel, before its group: see `group.process_group`
        dist.destroy_process_group()


def average_without_waiting(model: DistributedDataParallel, size: int, subgroup: Subgroup) -> None:
    """Let a model average its gradients by a plain all-reduce.

    Its own asynchronous one fails: the fake group's future has no value (torch 2.13).

    Args:
        model: before its first pass.
        size, subgroup: number of the ranks that train, and their process group.
    """

    def hook(_: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        found = torch.futures.Future[Tensor]()
        gradients = bucket.buffer().div_(size)
        dist.all_reduce(gradients, group=subgroup)
        found.set_result(gradients)
        return found

    model.register_comm_hook(None, hook)


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
