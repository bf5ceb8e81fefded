"""The loop of an attacker rank: receive weights, attack, send the images."""

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
    """Run an attacker rank until the last step, or until the learners stop.

    It receives weights, attacks its slice of every global batch, and sends the images.

    Args:
        learners: exchanges weights and images with the learners.
        rank_batches: this rank's slice of the global batch of every step.
        generate: the attack.
        stop: request to stop on this rank, which is sent to the learners with the images.

    Returns:
        Why this rank could not read its data, or None.
    """
    problem = None
    for batch in rank_batches:
        problem = batch.problem
        if learners.weights_for(batch.step) is not Verdict.GO_ON:
            break
        learners.send(batch, generate(batch), stop=bool(stop.reason))
    learners.flush()
    return problem
