"""What an attacker does: attack its share of every batch with the weights that come, until it is told to
stop.
"""

from collections.abc import Callable, Iterator

from torch import Tensor

from hpcphotoz.training.agreement import Verdict
from hpcphotoz.training.exchange import ToLearners
from hpcphotoz.training.stop import StopRequest
from hpcphotoz.training.work import Work


def serve(
    learners: ToLearners,
    works: Iterator[Work],
    generate: Callable[[Work], Tensor],
    stop: StopRequest,
) -> str | None:
    """Attack until the last step or until the learners' verdict.

    Args:
        learners: where weights come from and images go.
        works: this rank's share of every step.
        generate: the attack.
        stop: a request on this rank; learners are told.

    Returns:
        Why this rank could not read; None: it could.
    """
    problem = None
    for work in works:
        problem = work.problem
        if learners.weights_for(work.step) is not Verdict.GO_ON:
            break
        learners.send(work, generate(work), stop=bool(stop.reason))
    learners.settle()
    return problem
