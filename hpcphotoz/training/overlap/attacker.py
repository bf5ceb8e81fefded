"""What an attacker does: attack its share of every batch with the weights that come, until it is told to
stop.
"""

from collections.abc import Callable, Iterator

from torch import Tensor

from hpcphotoz.training.distributed.agreement import Verdict
from hpcphotoz.training.overlap.exchange import AttackerEndpoint
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.run.signals import StopRequest


def run_attacker(
    learners: AttackerEndpoint,
    rank_batches: Iterator[RankBatch],
    generate: Callable[[RankBatch], Tensor],
    stop: StopRequest,
) -> str | None:
    """Attack until the last step or until the learners' verdict.

    Args:
        learners: where weights come from and images go.
        rank_batches: this rank's share of every step.
        generate: the attack.
        stop: a request on this rank; learners are told.

    Returns:
        Why this rank could not read; None: it could.
    """
    problem = None
    for batch in rank_batches:
        problem = batch.problem
        if learners.weights_for(batch.step) is not Verdict.GO_ON:
            break
        learners.send(batch, generate(batch), stop=bool(stop.reason))
    learners.flush()
    return problem
