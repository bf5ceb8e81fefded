"""What an attacker does: attack its share of every batch with the weights that come, until it is told to
stop.
"""

from collections.abc import Callable, Iterator

from torch import Tensor

from hpcphotoz.training.exchange import ToLearners, Verdict
from hpcphotoz.training.stop import StopRequest
from hpcphotoz.training.work import Work


def serve(
    learners: ToLearners,
    shares: Iterator[tuple[Work, int, str | None]],
    generate: Callable[[Work], Tensor],
    stop: StopRequest,
) -> str | None:
    """Attack until the last step or until the learners' verdict.

    Args:
        learners: where weights come from and images go.
        shares: of every step: work, objects left out, why it is empty if it cannot be read.
        generate: the attack.
        stop: a request on this rank; learners are told.

    Returns:
        Why this rank could not read; None: it could.
    """
    problem = None
    for work, _, problem in shares:
        if learners.weights_for(work.step) is not Verdict.GO_ON:
            break
        learners.send(work, generate(work), bool(stop.reason), problem is not None)
    learners.settle()
    return problem
