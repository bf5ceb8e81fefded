"""Steps whose loss is far above that of the steps before."""

from collections import deque
from statistics import median

WINDOW = 100  # steps that a loss is compared with
FEWEST = 20  # a loss is not compared with fewer steps
SIGMAS, RATIO = 6.0, 2.0


class LossSpikes:
    """Finds spikes of the loss among the steps of one process.

    The loss of a step is a spike if it is above median + 6 sigma of the last 100 steps, with sigma = 1.4826
    times the median of abs(loss - median), and above twice the median. The second rules out the noise of
    small batches where the loss has become steady. Neither a spike nor its neighbours in the window move
    median and sigma much.
    """

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._within = False  # whether the last loss was above the limit

    def limit_passed(self, loss: float) -> tuple[float, float] | None:
        """Add the loss of a step.

        Returns:
            Median and limit, if a spike begins with this step. None: it is no spike, or belongs to the one of
            the step before, or fewer than 20 steps came before it.
        """
        found, within = None, False
        # The median is at least the minimum, and that costs less.
        if len(self._losses) >= FEWEST and loss > RATIO * min(self._losses):
            middle = median(self._losses)
            sigma = 1.4826 * median(abs(value - middle) for value in self._losses)
            limit = max(middle + SIGMAS * sigma, RATIO * middle)
            within = loss > limit
            if within and not self._within:
                found = (middle, limit)
        self._losses.append(loss)
        self._within = within
        return found
